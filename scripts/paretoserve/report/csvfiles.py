"""The CSV files of an experiment, with the column names of the user's guide's era.

Rows are of one replica (as those tools wrote them), except `tokens/s/gpu_cluster`: over all GPUs
that were asked for, idle ones included.
"""

import csv
import io
from collections.abc import Callable
from operator import itemgetter

import pyarrow as pa

from paretoserve import schemas
from paretoserve.experiments.experiment import Experiment
from paretoserve.models.catalog import find_model
from paretoserve.report.terminal import Row, parallel_name

Columns = dict[str, Callable[[Row], object]]  # their name -> its value from a row of ours


def best_csv(experiment: Experiment, best: pa.Table) -> str:
    """Return best_config_topn.csv: the best configurations of one experiment, best first."""
    cluster: Columns = {"tokens/s/gpu_cluster": itemgetter("tokens_per_s_per_gpu")}
    return _csv(experiment.name, best, _columns(experiment) | cluster)


def pareto_csv(experiment: Experiment, frontier: pa.Table) -> str:
    """Return pareto.csv: the frontier of one experiment, slowest user first."""
    index: Columns = {"index": itemgetter("rank")}
    return _csv(experiment.name, frontier, index | _columns(experiment))


def _csv(experiment: str, table: pa.Table, columns: Columns) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in table.sort_by("rank").to_pylist():
        if row["experiment"] == experiment:
            writer.writerow(_formatted(value(row)) for value in columns.values())
    return text.getvalue()


def _formatted(value: object) -> object:
    # Measured latencies are float32: seven digits say all there is.
    return f"{value:.7g}" if isinstance(value, float) else value


def _columns(experiment: Experiment) -> Columns:
    """Return the columns of this serving mode in their order."""
    rate: Columns = {
        "seq/s": _per_replica,
        "seq/s/gpu": lambda row: _per_replica(row) / row["gpus_per_replica"],
        "tokens/s": lambda row: _per_replica(row) * experiment.osl,
        "tokens/s/gpu": lambda row: _per_replica(row) * experiment.osl / row["gpus_per_replica"],
        "tokens/s/user": itemgetter("tokens_per_s_per_user"),
    }
    head: Columns = {
        "model": lambda row: experiment.model_name,
        "isl": lambda row: experiment.isl,
        "osl": lambda row: experiment.osl,
        "concurrency": itemgetter("concurrency_per_replica"),
        "request_rate": _per_replica,
    }
    latency: Columns = {"ttft": itemgetter("ttft_ms"), "tpot": itemgetter("tpot_ms")}
    size: Columns = {"num_total_gpus": itemgetter("gpus_per_replica")}
    if experiment.serving_mode == "agg":
        worker = _layout(experiment, "agg", "")
        ctx_tokens: Columns = {"ctx_tokens": itemgetter("agg_ctx_tokens")}
        engine = _engine(experiment, "agg", "")
        batch = _batch("agg", "")
        return head | batch | latency | rate | size | worker | ctx_tokens | engine
    batch = {
        **_batch("prefill", "(p)"),
        "(p)workers": itemgetter("prefill_workers"),
        **_batch("decode", "(d)"),
        "(d)workers": itemgetter("decode_workers"),
    }
    rate["(p)seq/s/worker"] = itemgetter("prefill_seq_per_s_per_worker")
    rate["(d)seq/s/worker"] = itemgetter("decode_seq_per_s_per_worker")
    workers = {
        name: value
        for role, short in (("prefill", "(p)"), ("decode", "(d)"))
        for part in (_layout, _engine)
        for name, value in part(experiment, role, short).items()
    }
    return head | batch | latency | rate | size | workers


def _per_replica(row: Row) -> float:
    """Requests per second of one replica."""
    return row["request_rate_per_s"] / row["replicas"]


def _batch(role: str, short: str) -> Columns:
    return {
        f"{short}bs": itemgetter(f"{role}_batch_size"),
        f"{short}global_bs": lambda row: row[f"{role}_batch_size"] * row[f"{role}_dp"],
    }


def _layout(experiment: Experiment, role: str, short: str) -> Columns:
    is_moe, worker = find_model(experiment.model_name).is_moe, experiment.worker(role)
    precision = {
        "gemm": worker.gemm_quant_mode,
        "kvcache": worker.kvcache_quant_mode,
        "fmha": worker.fmha_quant_mode,
        "moe": worker.moe_quant_mode,
        "comm": worker.comm_quant_mode,
    }
    columns: Columns = {
        **{name: itemgetter(f"{role}_{name}") for name in schemas.LAYOUT},
        "parallel": lambda row: parallel_name(row, role, is_moe),
        **{name: _always(mode) for name, mode in precision.items()},
        "memory": itemgetter(f"{role}_memory_gib"),
    }
    return {short + name: value for name, value in columns.items()}


def _engine(experiment: Experiment, role: str, short: str) -> Columns:
    worker = experiment.worker(role)
    return {
        f"{short}backend": _always(worker.backend),
        f"{short}version": _always(worker.version),
        f"{short}system": _always(worker.system),
    }


def _always(value: object) -> Callable[[Row], object]:
    return lambda row: value
