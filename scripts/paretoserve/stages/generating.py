"""Generate: the guide's folder of one experiment, from its frontier and best deployments."""

import csv
import io
import shutil
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from paretoserve.deploy.checking import check, check_scripts
from paretoserve.deploy.deployment import Deployment
from paretoserve.deploy.generator_config import generator_config
from paretoserve.errors import InputError, did_you_mean
from paretoserve.experiments.experiment import Experiment
from paretoserve.experiments.plan import Ask, Plan
from paretoserve.experiments.resolving import fields_of
from paretoserve.paths import ExperimentPaths, RunPaths
from paretoserve.records import write_text
from paretoserve.report.csvfiles import best_csv, pareto_csv

# For which experiments files are written: by AUTO for all of few, for winners of some, for none of
# many (of those, `snakemake results/<run>/<experiment>/config.yaml` writes one's files).
ALL, WINNERS, NONE, AUTO = SCOPES = ("all", "winners", "none", "auto")
MOST_FOR_ALL, MOST_FOR_WINNERS = 50, 1000
WINNER_COLUMNS = (
    *("model", "isl", "osl", "ttft_ms", "tpot_ms", "sla_probability", "total_gpus"),
    *("winner", "tokens_per_s_per_gpu", "files"),
)


def scope_of(ask: Ask, scope: str = AUTO) -> str:
    """Return the scope that AUTO stands for, by the number of experiments; any other as it is."""
    if scope != AUTO:
        return scope
    count = len(ask.experiments)
    return ALL if count <= MOST_FOR_ALL else WINNERS if count <= MOST_FOR_WINNERS else NONE


def checked_scope(given: object, where: str) -> str:
    """Return a scope as it was given; InputError if it is none."""
    if given not in SCOPES:
        raise InputError(
            f"{where} is {given!r}{did_you_mean(str(given), SCOPES)}; allowed: {', '.join(SCOPES)}"
        )
    return str(given)


def question_key(experiment: Experiment) -> tuple[str, int, int, float, float, float | None, int]:
    """Return what was asked: model, load, SLA and cluster, but not where and how it is served."""
    one = experiment
    sla = one.ttft_ms, one.tpot_ms, one.sla_probability
    return one.model_name, one.isl, one.osl, *sla, one.total_gpus


def winners(ask: Ask, best: pa.Table) -> list[tuple[Experiment, float]]:
    """Return the best experiment of each question that was put to several, with its tokens/s/gpu.

    In the order in which the questions were asked; of equals the first wins.
    """
    first = best.filter(pc.equal(best["rank"], 1))
    throughput = dict(
        zip(
            first["experiment"].to_pylist(),
            first["tokens_per_s_per_gpu"].to_pylist(),
            strict=True,
        )
    )
    found: dict[tuple, tuple[Experiment, float]] = {}
    for one in ask.experiments:
        if one.name not in throughput:
            continue
        question = question_key(one)
        if question not in found or throughput[one.name] > found[question][1]:
            found[question] = one, throughput[one.name]
    return list(found.values())


def generate_winners(
    plan: Plan, best: pa.Table, answer: Callable[[str, str], pa.Table], run: RunPaths
) -> str:
    """Write the folders of the winners below `run`, and return them as CSV.

    `answer(chunk, name)` returns a table that answers a chunk. A winner whose files cannot be
    written has the reason in its row.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(WINNER_COLUMNS)
    chunk_of = {one.name: chunk.id for chunk in plan.chunks for one in chunk.experiments}
    for won, throughput in winners(plan.ask, best):
        chunk, folder = chunk_of[won.name], run.experiment(won.name)
        try:
            generate(won, answer(chunk, "frontier"), answer(chunk, "best"), folder)
        except InputError as error:
            files = f"none: {error}"
        else:
            files = folder.folder.name
        rows.writerow([*question_key(won), won.name, f"{throughput:.2f}", files])
    return text.getvalue()


def generate(
    experiment: Experiment, frontier: pa.Table, best: pa.Table, folder: ExperimentPaths
) -> None:
    """Write CSV files, the resolved experiment, and a folder per best configuration.

    Raises
    ------
    InputError
        An engine cannot run a configuration, or refuses a file. Nothing is written then.
    """
    frontier, best = (
        table.filter(pc.equal(table["experiment"], experiment.name)) for table in (frontier, best)
    )
    files, scripts = {}, {}
    for row in best.to_pylist():
        deployment, rank = Deployment(experiment, row), row["rank"]
        content = deployment.files()
        check(deployment, content)
        files[folder.generator_config(rank)] = _yaml(generator_config(experiment, row))
        for name, text in content.items():
            file = folder.deployment(rank, experiment.serving_mode) / name
            files[file] = text
            if file.suffix == ".sh":
                scripts[f"{folder.top(rank).name}/{name}"] = text
    if scripts:
        check_scripts(scripts)
    # The files that a folder always has come last: if they are there, so are the others.
    files |= {
        folder.best_csv: best_csv(experiment, best),
        folder.pareto_csv: pareto_csv(experiment, frontier),
        folder.config: _yaml({experiment.name: fields_of(experiment)}),
    }
    for stale in folder.folder.glob(folder.top("*").name):
        shutil.rmtree(stale)
    for file, text in files.items():
        write_text(file, text, executable=file.suffix == ".sh", durable=False)


def _yaml(content: dict[str, object]) -> str:
    return yaml.dump(content, Dumper=yaml.CSafeDumper, sort_keys=False)
