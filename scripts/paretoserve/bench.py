"""Figures to quote: accuracy of the look-ups on points left out, and speed. Prints, never judges.

make bench                                   accuracy and our own times
make bench PEER=/path/to/bin/aiconfigurator  also the peer's answer to the same question
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from prettytable import PrettyTable

from paretoserve import paths
from paretoserve.experiments.loading import load_files
from paretoserve.experiments.plan import Plan, make_plan
from paretoserve.experiments.resolving import resolve_all
from paretoserve.inprocess import run_in_process
from paretoserve.interpolation import GridTable
from paretoserve.operators.kernels import Kernels
from paretoserve.perfdb.catalogue import Catalogue
from paretoserve.perfdb.tables import PerfTables
from paretoserve.stages.generating import generate

HELD_OUT = ("h200_sxm", "trtllm", "1.3.0rc20")
QUESTION = (
    "cli default --model QWEN3_32B --total_gpus 32 --system h200_sxm "
    "--ttft 1000 --tpot 10 --isl 3000 --osl 512"
)
# The peer's later releases know the model by its Hugging Face id and spell flags with dashes.
PEER_QUESTION = QUESTION.replace("QWEN3_32B", "Qwen/Qwen3-32B").replace("total_gpus", "total-gpus")

Errors = Iterable[tuple[np.ndarray, np.ndarray]]


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="Python interpreter that has aiconfigurator installed")
    parser.add_argument("--runs", type=int, default=5, help="repeats of each timed command")
    arguments = parser.parse_args()
    print(f"cores: {os.cpu_count()}, python {sys.version.split()[0]}, numpy {np.__version__}\n")
    print(_accuracy(Kernels(PerfTables(*HELD_OUT))))
    print(_speed(arguments.peer, arguments.runs))


def _accuracy(kernels: Kernels) -> str:
    table = PrettyTable(["held out", "points", "median error %", "90th percentile %"], align="r")
    table.align["held out"] = "l"
    table.title = f"leave one out: {' '.join(HELD_OUT)}"
    for name, pairs in _held_out(kernels):
        error = np.concatenate([np.abs(predicted / measured - 1) for predicted, measured in pairs])
        low, high = np.quantile(error, [0.5, 0.9]) * 100
        table.add_row([name, len(error), f"{low:.2f}", f"{high:.2f}"])
    return f"{table}\n"


def _held_out(kernels: Kernels) -> Iterator[tuple[str, Errors]]:
    gemm = [kernels.gemm.table(dtype) for dtype in ("float16", "fp8", "fp8_block")]
    yield "gemm, one m of a curve", [table.held_out_points() for table in gemm]
    yield "gemm, a whole (n, k)", [table.held_out_sites() for table in gemm]
    context = _grids(kernels, "context_attention", ("attn_dtype", "kv_dtype", "head_dim", "window"))
    yield "context attention, isl", [grid.held_out(1) for grid in context]
    yield "context attention, batch", [grid.held_out(2) for grid in context]
    generation = _grids(kernels, "generation_attention", ("kv_dtype", "head_dim", "window"))
    yield "generation attention, position", [grid.held_out(2) for grid in generation]
    yield "generation attention, batch", [grid.held_out(1) for grid in generation]
    latent = kernels.latent_attention
    context = [latent.context_grid("float16", kv) for kv in ("float16", "fp8")]
    yield "context latent attention, isl", [grid.held_out(1) for grid in context]
    generation = [latent.generation_grid(kv) for kv in ("float16", "fp8")]
    yield "generation latent attention, position", [grid.held_out(2) for grid in generation]
    yield "generation latent attention, batch", [grid.held_out(1) for grid in generation]
    experts = [
        kernels.experts().tables(dtype, distribution)
        for dtype in ("float16", "fp8", "fp8_block")
        for distribution in ("power_law_1.01", "power_law_1.2")
    ]
    curves = [table.grid(tuple(shape)) for table in experts for shape in table.shapes.tolist()]
    yield "experts, one token count", [curve.held_out(0) for curve in curves]
    yield "experts, a whole split", [table.held_out(same=6) for table in experts]
    yield "experts, a whole model", [table.held_out(same=4) for table in experts]


def _grids(kernels: Kernels, operator: str, keys: tuple[str, ...]) -> list[GridTable]:
    """All grids of an attention operator: per KV head count, and one of multi-head attention."""
    rows = kernels.tables.rows(operator)
    kv = np.where(rows["heads"] == rows["kv_heads"], 0, rows["kv_heads"])
    slices = sorted(set(zip(*(rows[key].tolist() for key in keys), kv.tolist(), strict=True)))
    grid: Callable[..., GridTable] = getattr(kernels, operator).grid
    return [grid(*key) for key in slices]


def _speed(peer: str | None, runs: int) -> str:
    table = PrettyTable(["the guide's example", "median s", "min s", "max s"], align="r")
    table.align["the guide's example"] = "l"
    table.title = QUESTION.removeprefix("cli default ")
    own = _beside(sys.executable, "paretoserve")
    timed = {
        "stages in a running process, files written": _times(_stages, runs),
        "generate stage of one experiment, top 3": _times(_generation(), runs),
        "whole process, report only": _times(lambda: _run([own, *QUESTION.split()]), runs),
        "whole process, files written": _times(
            lambda: _in_folder(lambda folder: _run([own, *QUESTION.split(), "--save_dir", folder])),
            runs,
        ),
    }
    if peer:
        timed["the peer's whole process"] = _times(
            lambda: _run([_beside(peer, "aiconfigurator"), *PEER_QUESTION.split()]), runs
        )
    for name, seconds in timed.items():
        table.add_row([name, *(f"{f(seconds):.2f}" for f in (statistics.median, min, max))])
    lines = [str(table)]
    if peer:
        ratio = statistics.median(timed["the peer's whole process"]) / statistics.median(
            timed["whole process, report only"]
        )
        lines.append(f"the peer takes {ratio:.0f} times our whole process (medians)")
    return "\n".join(lines)


def _beside(interpreter: str, command: str) -> str:
    """Path of a command that is installed with an interpreter."""
    return str(Path(interpreter).with_name(command))


def _times(call: Callable[[], object], runs: int) -> list[float]:
    """Seconds of each of `runs` calls, after one that does not count."""
    seconds = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def _stages() -> None:
    plan = _plan()
    _in_folder(lambda folder: run_in_process(plan, Path(folder)))


def _plan() -> Plan:
    file = paths.EXPERIMENTS / "qwen3_32b_h200.yaml"
    return make_plan(resolve_all(load_files([file]), Catalogue()))


def _generation() -> Callable[[], None]:
    """A call that writes the files of the first experiment, from results that are at hand."""
    plan = _plan()
    result = run_in_process(plan, None)
    experiment = plan.ask.experiments[0]

    def generate_once() -> None:
        _in_folder(
            lambda folder: generate(
                experiment, result.frontier, result.best, paths.ExperimentPaths(Path(folder))
            )
        )

    return generate_once


def _in_folder(call: Callable[[str], object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        call(folder)


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
