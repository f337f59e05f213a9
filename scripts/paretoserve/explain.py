"""One configuration of a run, from its operators to tokens/s/gpu, by the code that answered.

The configuration is asked for again by itself: its candidates are enumerated, priced with kernels
that record what they look up, and served. What comes out must equal the row of the run; where it
does not, tables or code have changed since, and the explanation says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paretoserve import paths, schemas
from paretoserve.errors import InputError, did_you_mean
from paretoserve.experiments.experiment import Experiment, Replica
from paretoserve.experiments.plan import Ask, Group, Work, works
from paretoserve.interpolation import PROVENANCE
from paretoserve.models.catalog import find_model
from paretoserve.paths import RunPaths
from paretoserve.perfdb.catalogue import Catalogue
from paretoserve.question import read_question
from paretoserve.records import read_table
from paretoserve.serving import disaggregated as disagg
from paretoserve.stages import answering
from paretoserve.stages.enumerating import enumerate_candidates
from paretoserve.stages.estimating import estimate_work
from paretoserve.stages.simulating import NOT_SIMULATED, with_simulations
from paretoserve.tracing import Call, Operator, Trace

OPERATORS_SUM = "sum of its operators"
MEMORY = ("weights", "kv_cache", "activations", "buffers")
Row = dict[str, Any]
Workers = dict[str, answering.Worker]


@dataclass(frozen=True)
class Term:
    """One number of the arithmetic: what it is, how it comes from others, value and unit."""

    name: str
    formula: str
    value: float
    unit: str


@dataclass(frozen=True)
class _Part:
    """A worker of the configuration, its candidate and its steps."""

    work: Work
    candidate: Row
    steps: dict[str, list[Operator]]
    step_ms: dict[str, float]


def explain(result: Path, name: str | None, rank: int, *, frontier: bool = False) -> Row:
    """Explain the configuration `rank` of an experiment, of the best ones or of the frontier.

    Returns plain data: the question, the row, each worker's memory and steps down to the measured
    points, and the arithmetic from the steps on. `differences` are columns of the row that no
    longer come out as they stand in the run.

    Parameters
    ----------
    result
        Folder of a run, or of one of its experiments.
    name
        The experiment; not needed where `result` is its folder or the run has only one.

    Raises
    ------
    InputError
        There is no such run, experiment or rank, or it can no longer be asked.
    """
    run, name = _find(result, name)
    row = _row(run, name, rank, frontier)
    experiment = _experiment(run, name)
    parts, estimates, candidates, group_of_work = [], {}, {}, {}
    for work in works(experiment):
        role = work.worker.role
        if work.id != row[f"{role}_work_id"]:
            raise InputError(
                f"{run.folder}: {name} has other {role} workers now than those that were priced; "
                "run it again"
            )
        part, priced = _worker(work, row[f"{role}_candidate_id"])
        parts.append(part)
        group_of_work[work.id] = work.id
        candidates[work.id] = pa.Table.from_pylist([part.candidate], schemas.CANDIDATES)
        estimates[work.id] = priced
    narrowed = _narrowed(experiment, row)
    ask = Ask(run.run, (narrowed,), group_of_work)
    of_frontier, of_best, *_ = answering.pareto(ask, candidates, estimates)
    again = of_frontier
    if not frontier:
        simulated = row["sim_reason"] != NOT_SIMULATED["sim_reason"]
        again = with_simulations([narrowed], of_best, simulated)
    pools = answering.Pools(group_of_work, candidates, estimates)
    workers = {
        work.worker.role: pools.worker(work, experiment.total_gpus) for work in works(experiment)
    }
    terms = _agg_terms if experiment.serving_mode == "agg" else _disagg_terms
    return {
        "experiment": name,
        "table": "frontier" if frontier else "best",
        "question": _question(experiment),
        "deployment": {column: value for column, value in row.items() if value is not None},
        "differences": _differences(row, again.to_pylist()),
        "workers": {part.work.worker.role: _worker_told(part) for part in parts},
        "arithmetic": [vars(term) for term in terms(experiment, row, workers)],
    }


def _question(experiment: Experiment) -> Row:
    names = ("model_name", "serving_mode", "total_gpus", "isl", "osl", "ttft_ms", "tpot_ms")
    return {name: getattr(experiment, name) for name in names} | {
        "is_moe": find_model(experiment.model_name).is_moe
    }


def _find(result: Path, name: str | None) -> tuple[RunPaths, str]:
    """The run, and the experiment's name in it."""
    folder = result.resolve()
    here = RunPaths(folder.parent, folder.name)
    above = RunPaths(folder.parent.parent, folder.parent.name)
    if not here.best.exists() and above.best.exists():
        if name not in (None, folder.name):
            raise InputError(f"{result}: is the folder of {folder.name}, not of {name}")
        return above, folder.name
    if not here.best.exists():
        raise InputError(f"{result}: is no folder of a run: it has no {here.best.name}")
    names = read_table(here.status, ["experiment"])["experiment"].to_pylist()
    if name is None and len(names) == 1:
        return here, names[0]
    if name not in names:
        asked = "which experiment?" if name is None else f"no experiment '{name}'"
        near = "" if name is None else did_you_mean(name, names)
        raise InputError(f"{result}: {asked}{near}; it has {', '.join(names)}")
    return here, name


def _row(run: RunPaths, name: str, rank: int, frontier: bool) -> Row:
    file = run.frontier if frontier else run.best
    rows = read_table(file).filter(pc.field("experiment") == name).to_pylist()
    for row in rows:
        if row["rank"] == rank:
            return row
    if not rows:
        told = read_table(run.status).filter(pc.field("experiment") == name).to_pylist()
        raise InputError(f"{name} has no configuration to explain: {told[0]['reason']}")
    ranks = [row["rank"] for row in rows]
    raise InputError(f"{file}: {name} has no rank {rank}; it has {min(ranks)} to {max(ranks)}")


def _experiment(run: RunPaths, name: str) -> Experiment:
    """The question, from the experiment's own folder or, in a large sweep, from what was asked."""
    asked = sorted(paths.asked_folder(run.results, run.run).glob("*"))
    for file in (run.experiment(name).config, *asked):
        if file.exists():
            for experiment in read_question(file, Catalogue()).experiments:
                if experiment.name == name:
                    return experiment
    raise InputError(
        f"{run.folder}: neither {run.experiment(name).config.relative_to(run.folder)} nor the file "
        f"that was asked is there to tell what {name} asked; run it again"
    )


def _worker(work: Work, candidate_id: int) -> tuple[_Part, pa.Table]:
    """The candidate, priced by itself; its row of ESTIMATES too."""
    found = enumerate_candidates(Group("", (work,)))
    one = found.filter(pc.field("candidate_id") == candidate_id)
    worker = work.worker
    trace = Trace(worker.system, worker.backend, worker.version)
    priced, _ = estimate_work(work, one, trace.kernels, trace)
    [estimate] = priced.to_pylist()
    step_ms = {step: estimate[f"{step}_step_ms"] for step in trace.steps}
    return _Part(work, one.to_pylist()[0], trace.steps, step_ms), priced


def _narrowed(experiment: Experiment, row: Row) -> Experiment:
    """The experiment that allows no other replica than the row's."""
    if experiment.serving_mode == "agg":
        return experiment
    gpus = row["gpus_per_replica"]
    only = Replica((gpus,), gpus, row["prefill_workers"], row["decode_workers"])
    return replace(experiment, replica=only)


def _differences(row: Row, again: list[Row]) -> Row:
    if not again:
        return {"rank": {"run": row["rank"], "now": None}}
    return {
        name: {"run": value, "now": again[0].get(name)}
        for name, value in row.items()
        if name != "rank" and value != again[0].get(name)
    }


def _agg_terms(experiment: Experiment, row: Row, workers: Workers) -> Iterator[Term]:
    worker, tuning = workers["agg"], experiment.tuning
    steps, served = answering.serve_aggregated(experiment, worker)
    scale, decode_scale = tuning.prefill_correction_scale, tuning.decode_correction_scale
    bound = _of(steps.mixed) >= _of(steps.lifetime)
    alone = _of(steps.mixed) <= _of(steps.chunks)
    tpot = "mixed_step_ms / tokens_per_step" if bound else "(lifetime_ms - own_ms) / (osl - 1)"
    running, queue, turn = (
        "lifetime_ms / max(mixed, lifetime) / 2",
        f"mixed_step_ms / prompts * u / (2 * (1 - u)), u = min(mixed / lifetime, {scale:g})",
        "(mixed - lifetime) * mixed_step_ms",
    )
    decoding = "" if bound else " + (lifetime - mixed) * decode_step_ms"
    per_token = f"1 / (prefill_share / {scale:g} + (1 - prefill_share) / {decode_scale:g})"
    rate = f"1000 * {row['agg_batch_size']} / lifetime_ms * busy * {_of(worker.ranks):g}"
    share = "mixed * (mixed_step_ms - decode_step_ms) / lifetime_ms"
    told = (
        ("mixed_step_ms", OPERATORS_SUM, worker["mixed_step_ms"], "ms"),
        ("decode_step_ms", OPERATORS_SUM, worker["decode_step_ms"], "ms"),
        ("prompts", "ctx_tokens / isl", steps.prompts, "in a mixed step"),
        ("chunks", "ceil(1 / prompts)", steps.chunks, "passes of a prompt"),
        *_tokens_per_step(experiment),
        ("lifetime", "chunks + (osl - 1) / tokens_per_step", steps.lifetime, "steps of a request"),
        ("mixed", "max(batch_size / prompts, chunks)", steps.mixed, "of them with prompts"),
        ("lifetime_ms", f"mixed * mixed_step_ms{decoding}", served.lifetime_ms, "ms"),
        ("own_ms", "chunks * mixed_step_ms", served.own_ms, "ms for its prompt"),
        ("tpot_ms", tpot, row["tpot_ms"], "ms"),
        ("running_ms", "0" if alone else running, served.running_ms, "ms until a step ends"),
        ("queue_ms", "0" if alone else queue, served.queue_ms, "ms behind prompts (M/D/1)"),
        ("turn_ms", turn if bound else "0", served.turn_ms, "ms where prompts bind"),
        ("ttft_ms", "own_ms + running_ms + queue_ms + turn_ms", row["ttft_ms"], "ms"),
        ("prefill_share", share, served.prefill_share, "of the time, 0 to 1"),
        ("busy", per_token, served.busy, "by the correction scales"),
        ("worker_rate", rate, row["agg_seq_per_s_per_worker"], "requests/s, of all dp * pp"),
    )
    yield from (Term(name, formula, _of(value), unit) for name, formula, value, unit in told)
    yield from _cluster_terms(experiment, row, "worker_rate")


def _disagg_terms(experiment: Experiment, row: Row, workers: Workers) -> Iterator[Term]:
    prefill, decode, tuning = workers["prefill"], workers["decode"], experiment.tuning
    scale, decode_scale = tuning.prefill_correction_scale, tuning.decode_correction_scale
    can = answering.rates(experiment, prefill, decode)
    x, y, gpus = (
        np.array([row[name]]) for name in ("prefill_workers", "decode_workers", "gpus_per_replica")
    )
    kv_bytes = prefill["kv_bytes_per_prompt"]
    transfer_ms = disagg.transfer_ms(kv_bytes, gpus, can.source, can.target)[0]
    served = disagg.serve(
        x,
        y,
        prefill["prefill_step_ms"],
        can.prefill_seq_per_s,
        prefill.ranks,
        transfer_ms,
        can.decode_seq_per_s,
        scale,
        decode_scale,
    )
    prefills = f"1000 * {row['prefill_batch_size']} / prefill_step_ms * {_of(prefill.ranks):g}"
    decodes = f"1000 * {row['decode_batch_size']} / tpot_ms / (osl - 1) * {_of(decode.ranks):g}"
    queue = f"mean wait of M/D/{_of(x * prefill.ranks):g} at that utilisation"
    told = (
        ("prefill_step_ms", OPERATORS_SUM, row["prefill_step_ms"], "ms"),
        ("decode_step_ms", OPERATORS_SUM, row["decode_step_ms"], "ms"),
        *_tokens_per_step(experiment),
        ("tpot_ms", "decode_step_ms / tokens_per_step", row["tpot_ms"], "ms"),
        ("prefill_rate", prefills, can.prefill_seq_per_s, "requests/s of a worker"),
        ("decode_rate", decodes, can.decode_seq_per_s, "requests/s of a worker"),
        ("supply", f"{scale:g} * {x[0]} * prefill_rate", served.supply, "requests/s"),
        ("demand", f"{decode_scale:g} * {y[0]} * decode_rate", served.demand, "requests/s"),
        ("replica_rate", "min(supply, demand)", served.rate, "requests/s"),
        ("utilisation", f"replica_rate / supply * {scale:g}", served.utilisation, "of prefill"),
        ("wait", queue, served.wait, "prefill passes"),
        ("transfer_ms", f"KV cache of a prompt, {_of(kv_bytes):.6g} bytes", transfer_ms, "ms"),
        ("ttft_ms", "prefill_step_ms * (1 + wait) + transfer_ms", row["ttft_ms"], "ms"),
    )
    yield from (Term(name, formula, _of(value), unit) for name, formula, value, unit in told)
    yield from _cluster_terms(experiment, row, "replica_rate")


def _tokens_per_step(experiment: Experiment) -> Iterator[tuple[str, str, float, str]]:
    rates = experiment.nextn_accept_rates[: experiment.nextn]
    accepted = (" * ".join(f"{rate:g}" for rate in rates[: i + 1]) for i in range(len(rates)))
    value = answering.tokens_per_step(experiment)
    yield "tokens_per_step", " + ".join(["1", *accepted]), value, "of a request"


def _of(values: np.ndarray | float) -> float:
    """The number of the one candidate."""
    return float(np.ravel(values)[0])


def _cluster_terms(experiment: Experiment, row: Row, rate: str) -> Iterator[Term]:
    total, gpus = row["total_gpus"], row["gpus_per_replica"]
    per_gpu = f"request_rate * {experiment.osl} / {total}"
    told = (
        ("replicas", f"floor({total} / {gpus})", row["replicas"], f"of {gpus} GPUs"),
        ("idle_gpus", f"{total} - replicas * {gpus}", total - row["gpus_used"], "that count too"),
        ("request_rate", f"replicas * {rate}", row["request_rate_per_s"], "requests/s"),
        ("tokens_per_s_per_gpu", per_gpu, row["tokens_per_s_per_gpu"], ""),
        ("tokens_per_s_per_user", "1000 / tpot_ms", row["tokens_per_s_per_user"], ""),
    )
    yield from (Term(name, formula, float(value), unit) for name, formula, value, unit in told)


def _worker_told(part: _Part) -> Row:
    worker, candidate = part.work.worker, part.candidate
    return {
        "system": worker.system,
        "backend": worker.backend,
        "version": worker.version,
        "layout": {name: candidate[name] for name in schemas.LAYOUT},
        "batch_size": candidate["batch_size"],
        "ctx_tokens": candidate["ctx_tokens"],
        "memory_gib": {name: candidate[f"{name}_gib"] for name in MEMORY}
        | {"total": candidate["memory_gib"], "limit": candidate["memory_limit_gib"]},
        "steps": {
            step: {
                "ms": part.step_ms[step],
                "operators": [told for told in map(_operator_told, operators) if told["ms"] > 0],
            }
            for step, operators in part.steps.items()
        },
    }


def _operator_told(operator: Operator) -> Row:
    return {
        "operator": operator.name,
        "times": operator.times,
        "ms_each": float(operator.latency.ms[0]),
        "ms": float(operator.latency.scaled(operator.times).ms[0]),
        "provenance": PROVENANCE[int(operator.latency.provenance[0])],
        "notes": list(operator.latency.notes),
        "look_ups": [_look_up(call) for call in operator.calls],
    }


def _look_up(call: Call) -> Row:
    points = list(call.points())
    ms, codes = call.latency.ms.ravel().tolist(), call.latency.provenance.ravel().tolist()
    return {
        "kernel": call.kernel,
        "of": call.constants,
        "tables": [
            {
                "file": _shown(one.file),
                "operator": one.operator,
                "where": dict(one.where),
            }
            for one in call.slices
        ],
        "points": [
            {
                "at": point,
                "ms": value,
                "provenance": PROVENANCE[code],
                "measured": call.measured(point),
            }
            for point, value, code in zip(points, ms, codes, strict=True)
        ],
    }


def _shown(file: Path) -> str:
    """A file's name from the project's folder on."""
    return str(file.relative_to(paths.ROOT) if file.is_relative_to(paths.ROOT) else file)
