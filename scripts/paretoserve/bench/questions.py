"""Single questions as whole processes, ours and the peers'."""

import statistics
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from prettytable import PrettyTable

from paretoserve import paths
from paretoserve.bench.processes import beside, own, run, spread, times
from paretoserve.experiments.plan import Plan, make_plan
from paretoserve.inprocess import run_in_process
from paretoserve.perfdb.catalogue import Catalogue
from paretoserve.question import read_question
from paretoserve.stages.generating import generate

LOAD = "--isl 3000 --osl 512 --ttft 1000"
QUESTIONS = {
    "the guide's example": (
        f"cli default --model QWEN3_32B --total_gpus 32 --system h200_sxm {LOAD} --tpot 10",
        "Qwen/Qwen3-32B",
    ),
    "DEEPSEEK_V3 on 64 GPUs": (
        f"cli default --model DEEPSEEK_V3 --total_gpus 64 --system h200_sxm {LOAD} --tpot 40",
        "deepseek-ai/DeepSeek-V3",
    ),
}


def questions(peers: Sequence[str], runs: int) -> str:
    """Return a table for each question: our whole process, and each peer's."""
    return "\n".join(_compared(name, peers, runs) for name in QUESTIONS)


def _compared(name: str, peers: Sequence[str], runs: int) -> str:
    asked, huggingface = QUESTIONS[name]
    command = [own("paretoserve"), *asked.split()]
    seconds = times(lambda: run(command), runs)
    ours = statistics.median(seconds)
    table = _table(name, asked)
    table.add_row(["paretoserve, report only", *spread(seconds), ""])
    seconds = times(lambda: _in_folder(lambda to: run([*command, "--save_dir", to])), runs)
    table.add_row(["paretoserve, files written", *spread(seconds), ""])
    for peer in peers:
        title, theirs = _peer(peer, asked, huggingface, runs)
        ratio = f"{statistics.median(theirs) / ours:.0f}" if theirs else "does not answer"
        table.add_row([title, *(spread(theirs) if theirs else ["", "", ""]), ratio])
    return f"{table}\n"


def _peer(interpreter: str, asked: str, huggingface: str, runs: int) -> tuple[str, Sequence[float]]:
    """Version of a peer and its seconds, none if it does not run.

    Earlier releases know models by the guide's names, later ones by Hugging Face ids, and flags
    with dashes.
    """
    code = "from importlib.metadata import version; print(version('aiconfigurator'))"
    title = f"aiconfigurator {run([interpreter, '-c', code]).output.split()[-1]}"
    model = asked.split()[asked.split().index("--model") + 1]
    later = asked.replace(model, huggingface).replace("total_gpus", "total-gpus")
    for spelling in (later, asked):
        command = [beside(interpreter, "aiconfigurator"), *spelling.split()]
        try:
            run(command)
        except subprocess.CalledProcessError:
            continue
        return title, times(lambda command=command: run(command), runs, warm=True)
    return title, ()


def stages(runs: int) -> str:
    """Return a table of the guide's example in a running process, and of starting one."""
    plan = _plan()
    table = _table("in a running process", paths.EXPERIMENTS.name)
    for name, call in {
        "all stages, files written": lambda: _in_folder(
            lambda folder: run_in_process(plan, Path(folder))
        ),
        "generate stage of one experiment, top 3": _generation(plan),
        "start-up: paretoserve --version": lambda: run([own("paretoserve"), "--version"]),
        "start-up: paretoserve plan": lambda: run([own("paretoserve"), "plan", str(_FILE)]),
    }.items():
        table.add_row([name, *spread(times(call, runs)), ""])
    return f"{table}\n"


_FILE = paths.EXPERIMENTS / "qwen3_32b_h200.yaml"


def _plan() -> Plan:
    return make_plan(*read_question(_FILE, Catalogue()))


def _generation(plan: Plan) -> Callable[[], None]:
    """A call that writes the files of the first experiment, from results that are at hand."""
    result = run_in_process(plan, None)
    experiment = plan.ask.experiments[0]

    def generate_once() -> None:
        _in_folder(
            lambda folder: generate(
                experiment, result.frontier, result.best, paths.ExperimentPaths(Path(folder))
            )
        )

    return generate_once


def _table(first: str, title: str) -> PrettyTable:
    table = PrettyTable([first, "median s", "min s", "max s", "times ours"], align="r")
    table.align[first] = "l"
    table.title = title.removeprefix("cli default ")
    return table


def _in_folder(call: Callable[[str], object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        call(folder)
