"""Print all figures.

make bench                                        ours
make bench PEER="/path/to/python /other/python"   also the answers of peers installed with these
"""

import argparse

import numpy as np

from paretoserve.bench.accuracy import accuracy
from paretoserve.bench.predictions import predictions
from paretoserve.bench.processes import machine
from paretoserve.bench.questions import questions, stages
from paretoserve.bench.simulation import simulation
from paretoserve.bench.sweeps import CUTS, sweeps


def main() -> None:
    """Print the tables asked for, each with the load at its time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--peer", nargs="*", default=[], help="Python interpreters that have aiconfigurator"
    )
    parser.add_argument("--runs", type=int, default=5, help="repeats of each timed command")
    parser.add_argument("--sizes", type=int, nargs="*", choices=list(CUTS), default=list(CUTS))
    tables = {
        "accuracy": accuracy,
        "questions": lambda: questions(arguments.peer, arguments.runs),
        "simulation": lambda: simulation(arguments.runs),
        "stages": lambda: stages(arguments.runs),
        "predictions": predictions,
        "sweeps": lambda: sweeps(arguments.sizes),
    }
    parser.add_argument("--only", nargs="*", choices=list(tables), default=list(tables))
    arguments = parser.parse_args()
    for name in arguments.only:
        print(f"{machine()}, numpy {np.__version__}\n{tables[name]()}", flush=True)


if __name__ == "__main__":
    main()
