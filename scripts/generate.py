"""Rule generate: the guide's folder of one experiment, from its answer."""

from pathlib import Path

from paretoserve.experiments.experiment import Experiment
from paretoserve.logs import job_log
from paretoserve.paths import ExperimentPaths
from paretoserve.records import read_table
from paretoserve.stages.generating import generate


def main(experiment: Experiment, input, output, log) -> None:
    """Write the folder in which `output.config` lies for an experiment."""
    with job_log(log[0]) as note:
        frontier, best = read_table(Path(input.frontier)), read_table(Path(input.best))
        folder = ExperimentPaths(Path(output.config).parent)
        generate(experiment, frontier, best, folder)
        note(f"{folder.folder} written")
