"""Measured runs of real deployments, and the deployments that they were runs of.

A file (CSV or Parquet) has one row per run: what was served on what, the load, and the mean ttft
and tpot of a closed loop of `concurrency` clients. Public dashboards record layouts in several
ways, so a layout is recovered before it is priced; the rules in their order (G: GPUs of a worker):

dense models       tp and pp as they stand; the columns of experts say nothing
agg, sizes         tp dp = moe_tp moe_ep: as they stand
agg, products      tp = moe_tp moe_ep with moe_tp = moe_ep > 1: G = moe_tp, TP with as much EP;
                   dp = moe_tp moe_ep likewise: attention data parallel with as much EP;
                   tp = dp with moe_ep = tp dp: G = tp, TP with as much EP
agg, experts only  dp is not given: what the experts' width leaves beside tp
agg, a rack        more GPUs than heads can be split over: disagg after all, prefill workers of 8
                   GPUs beside decode over 32 (long prompts) or two thirds of the rack
disagg, counted    workers are given: as they stand, experts over all GPUs of the worker
disagg, flattened  workers are not given: tp is G, and moe_ep > 1 (or G beyond a node of 8) says
                   expert parallel. Attention is tensor parallel in decode workers of a node for few
                   clients (`attention_dp_from`) and of two nodes without a rack, and in SGLang's
                   prefill workers of a node without one; elsewhere every GPU has a rank
disagg, a rack     flattened, with one size beyond 8 for both: the GPUs of both. Decode over the
                   largest power of two below, over half of that for long prompts and 1024 clients
                   or more; prefill workers of a tray each over the rest
disagg, no sizes   one GPU that cannot hold the model: tensor parallel over a node; decode for many
                   clients is wide, an attention rank on each of 32 GPUs
heads that tp does not divide: an attention rank on every GPU

An empty or zero size is 1. `concurrency` is that of the loop; where it is empty the batch of all
attention ranks stands for it, also where it is smaller in runs that are not of a dashboard: then
the loop went over several replicas, of which one is taken.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil, isfinite
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from paretoserve.errors import InputError, did_you_mean
from paretoserve.hardware import System, canonical_name, load_system
from paretoserve.models.catalog import find_model
from paretoserve.models.dimensions import GQA, MLA, Model, param_count

SIZES = ("tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
TEXTS = ("id", "backend", "backend_version", "model_path", "system", "precision", "mode")
LOAD = ("isl", "osl", "concurrency")
MEASURED = ("silicon_ttft_ms", "silicon_tpot_ms")
ROLES = ("prefill", "decode")
OF_ROLES = tuple(
    f"{role}_{name}" for role in ROLES for name in ("batch_size", "num_workers", *SIZES)
)
COLUMNS = (*TEXTS, *LOAD, *MEASURED, "batch_size", *SIZES, *OF_ROLES)
REQUIRED = ("backend", "model_path", "system", "mode", "isl", "osl", *MEASURED)
BACKENDS = ("trtllm", "sglang", "vllm")
# Loads of the public dashboards, whose lengths vary. Other runs have prompts of their nominal
# length, but answers end apart; those of SGLang with loads in powers of two stay in step.
DASHBOARD_LOADS = {(1024, 1024), (1024, 8192), (8192, 1024)}
VARYING, DRIFTING, FIXED = (0.8, 1.0), (0.9, 1.1), (1.0, 1.0)
# Where not even the sizes are told: a node, or decode over so many GPUs for so many clients.
WIDE_GPUS, WIDE_FROM = 32, 512
MANY_CLIENTS = 1024  # for which prefill of long prompts takes more of a rack than decode
LARGEST_TP = 32  # of a tensor parallel worker
NODE_GPUS = 8  # of the servers that flattened rows without an NVLink rack come from


@dataclass(frozen=True)
class Pool:
    """Workers of one role: (tp, pp, dp, moe_tp, moe_ep) of each, and how many; None: not told."""

    layout: tuple[int, int, int, int, int]
    workers: int | None = 1

    @property
    def gpus(self) -> int:
        """GPUs of one worker."""
        tp, pp, dp, *_ = self.layout
        return tp * pp * dp


@dataclass(frozen=True)
class Measurement:
    """One run; `pools` has the key agg, or prefill and decode."""

    row: int
    id: str
    model: str
    architecture: str
    system: str
    backend: str
    version: str
    precision: str
    mode: str
    isl: int
    osl: int
    concurrency: int
    ttft_ms: float
    tpot_ms: float
    pools: Mapping[str, Pool] = field(hash=False)

    @property
    def isl_range(self) -> tuple[float, float]:
        """Between which shares of the nominal length its prompts lie."""
        return VARYING if self.of_dashboard else FIXED

    @property
    def osl_range(self) -> tuple[float, float]:
        """The same of its answers."""
        if self.of_dashboard:
            return VARYING
        in_step = self.backend == "sglang" and not self.isl & (self.isl - 1)
        return FIXED if in_step else DRIFTING

    @property
    def longest(self) -> int:
        """Tokens of its longest request."""
        return ceil(self.isl * self.isl_range[1]) + ceil(self.osl * self.osl_range[1])

    @property
    def counted(self) -> bool:
        """Whether the workers of all pools are told."""
        return all(pool.workers for pool in self.pools.values())

    @property
    def of_dashboard(self) -> bool:
        """Whether its load is one of the public dashboards'."""
        return (self.isl, self.osl) in DASHBOARD_LOADS

    @property
    def on_servers(self) -> bool:
        """Whether it is a disagg run of SGLang on servers without an NVLink rack."""
        return self.mode == "disagg" and _on_servers(self.backend, load_system(self.system))

    @property
    def gpus(self) -> int:
        """GPUs of all pools, 0 where workers are not told."""
        pools = self.pools.values()
        return sum(pool.gpus * pool.workers for pool in pools) if self.counted else 0

    @property
    def layout(self) -> str:
        """Its pools, as in tp8pp1dp1etp1ep8 x 4; the experts' part as the guide spells it."""
        told = []
        for role, pool in self.pools.items():
            sizes = zip(("tp", "pp", "dp", "etp", "ep"), pool.layout, strict=True)
            count = f" x {pool.workers or '?'}" if role != "agg" else ""
            told.append("".join(f"{name}{size}" for name, size in sizes) + count)
        return " / ".join(told)

    @property
    def family(self) -> tuple[Any, ...]:
        """What near-duplicates share: a fold of a cross-validation has all of a family."""
        layouts = tuple(pool.layout for pool in self.pools.values())
        return (self.architecture, self.system, self.backend, self.precision, self.mode, layouts)


@dataclass(frozen=True)
class Skipped:
    """A run that is no deployment of ours, and why."""

    row: int
    id: str
    reason: str


def read_measurements(
    file: Path, attention_dp_from: float
) -> tuple[list[Measurement], list[Skipped]]:
    """Read the runs of a file.

    Parameters
    ----------
    file
        CSV or Parquet with the columns of `COLUMNS`; those of `REQUIRED` must be there.
    attention_dp_from
        Clients from which a flattened disagg run is taken to decode with attention data parallel.

    Raises
    ------
    InputError
        The file cannot be read or lacks a column. What is wrong with one row only skips that row.
    """
    found: list[Measurement] = []
    skipped: list[Skipped] = []
    for number, row in enumerate(_rows(file)):
        try:
            found.append(_measurement(number, row, attention_dp_from))
        except InputError as error:
            skipped.append(Skipped(number, str(row.get("id") or number), str(error)))
    return found, skipped


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    types = {name: pa.string() if name in TEXTS else pa.float64() for name in COLUMNS}
    try:
        if file.suffix == ".parquet":
            table = pq.read_table(file)
            told = [name for name in COLUMNS if name in table.column_names]
            table = table.select(told).cast(pa.schema({name: types[name] for name in told}))
        else:
            options = pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=True)
            table = pyarrow.csv.read_csv(file, convert_options=options)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error
    except pa.ArrowException as error:
        raise InputError(f"{file}: is not a table: {str(error).splitlines()[0]}") from error
    for name in REQUIRED:
        if name not in table.column_names:
            nearest = did_you_mean(name, table.column_names)
            raise InputError(f"{file}: column '{name}' is missing{nearest}")
    for row in table.select([name for name in COLUMNS if name in table.column_names]).to_pylist():
        yield {name: None if _no_number(value) else value for name, value in row.items()}


def _no_number(value: Any) -> bool:
    return isinstance(value, float) and not isfinite(value)


def _measurement(number: int, row: Mapping[str, Any], attention_dp_from: float) -> Measurement:
    for name in ("backend", "model_path", "system", "mode"):
        if not row[name]:
            raise InputError(f"{name} is not given")
    backend, mode = row["backend"], row["mode"]
    if backend not in BACKENDS:
        raise InputError(f"backend '{backend}' is not one of {', '.join(BACKENDS)}")
    if mode not in ("agg", "disagg"):
        raise InputError(f"mode '{mode}' is neither agg nor disagg")
    model = find_model(row["model_path"])
    pools = _agg(row, model) if mode == "agg" else _disagg(row, model, attention_dp_from)
    for name in (*MEASURED, "isl", "osl"):
        if not (row[name] or 0) > 0:
            raise InputError(f"{name} is {row[name]}, must be more than 0")
    isl, osl = round(row["isl"]), round(row["osl"])
    concurrency = row.get("concurrency") or _batch_of_ranks(row, pools)
    if mode == "agg" and (isl, osl) not in DASHBOARD_LOADS and row.get("batch_size"):
        concurrency = min(concurrency, _batch_of_ranks(row, pools))
    return Measurement(
        row=number,
        id=str(row.get("id") or number),
        model=row["model_path"],
        architecture=model.digest,
        system=canonical_name(row["system"]),
        backend=backend,
        version=row.get("backend_version") or "",
        precision=row.get("precision") or "",
        mode=mode,
        isl=isl,
        osl=osl,
        concurrency=max(round(concurrency), 1),
        ttft_ms=float(row["silicon_ttft_ms"]),
        tpot_ms=float(row["silicon_tpot_ms"]),
        pools=pools,
    )


def _batch_of_ranks(row: Mapping[str, Any], pools: Mapping[str, Pool]) -> float:
    """Requests in flight by the recorded batch size, of an attention rank."""
    pool = pools.get("agg") or pools["decode"]
    batch = row.get("batch_size") or row.get("decode_batch_size")
    if not batch:
        raise InputError("neither concurrency nor a batch size is given")
    return batch * pool.layout[2] * (pool.workers or 1)


def _sizes(row: Mapping[str, Any], prefix: str = "") -> tuple[int, int, int, int, int]:
    return tuple(max(round(row.get(prefix + name) or 1), 1) for name in SIZES)


def _agg(row: Mapping[str, Any], model: Model) -> dict[str, Pool]:
    tp, pp, dp, moe_tp, moe_ep = _sizes(row)
    experts = moe_tp * moe_ep
    if not model.is_moe:
        layout = (tp, pp, 1, 1, 1)
    elif tp == experts and moe_tp == moe_ep > 1:
        layout = (moe_tp, pp, 1, 1, moe_ep)
    elif dp == experts and moe_tp == moe_ep > 1:
        layout = (1, pp, moe_tp, 1, moe_ep)
    elif tp == dp > 1 and moe_ep == tp * dp:
        layout = (tp, pp, 1, 1, tp)
    elif tp * dp == experts:
        layout = (tp, pp, dp, moe_tp, moe_ep)
    elif experts == 1:
        layout = (tp, pp, dp, tp * dp, 1)
    elif experts % tp == 0:
        layout = (tp, pp, experts // tp, moe_tp, moe_ep)
    else:
        raise InputError(f"tp {tp} and dp {dp} do not go with moe_tp {moe_tp} and moe_ep {moe_ep}")
    if layout[0] > LARGEST_TP and _divided(layout, model) != layout:
        return _rack(row, layout[0])
    return {"agg": Pool(_divided(layout, model))}


def _rack(row: Mapping[str, Any], gpus: int) -> dict[str, Pool]:
    """A whole rack told as one worker: prefill workers of a node of 8 beside one wide decode."""
    decode = WIDE_GPUS if row["isl"] > row["osl"] else gpus * 2 // 3
    wide = tuple((1, 1, size, 1, size) for size in (NODE_GPUS, decode))
    return {
        "prefill": Pool(wide[0], max((gpus - decode) // NODE_GPUS, 1)),
        "decode": Pool(wide[1]),
    }


def _disagg(row: Mapping[str, Any], model: Model, attention_dp_from: float) -> dict[str, Pool]:
    system = load_system(row["system"])
    if whole := _all_gpus(row, model, system):
        return whole
    pools = {}
    for role in ROLES:
        tp, pp, dp, moe_tp, moe_ep = _sizes(row, f"{role}_")
        gpus, workers = tp * dp, row.get(f"{role}_num_workers")
        if not workers and gpus == 1 and _too_large_for_one(model, system):
            wide = role == "decode" and _clients(row) >= WIDE_FROM
            gpus = WIDE_GPUS if wide else system.gpus_per_node
        if not model.is_moe:
            layout = (tp, pp, 1, 1, 1)
            workers = (workers or 1) * dp
        elif workers:
            if moe_tp * moe_ep != gpus:
                moe_tp, moe_ep = (gpus, 1) if moe_ep == 1 else (1, gpus)
            layout = (tp, pp, dp, moe_tp, moe_ep)
        elif moe_ep == 1 and gpus <= NODE_GPUS:
            layout = (gpus, pp, 1, gpus, 1)
        elif _attention_tp(role, gpus, row, system, attention_dp_from):
            layout = (gpus, pp, 1, 1, gpus)
        else:
            layout = (1, pp, gpus, 1, gpus)
        pools[role] = Pool(_divided(layout, model), round(workers) if workers else None)
    return pools


def _attention_tp(
    role: str, gpus: int, row: Mapping[str, Any], system: System, attention_dp_from: float
) -> bool:
    """Whether the attention of a flattened run's expert parallel worker is tensor parallel."""
    if role == "prefill":
        return gpus <= NODE_GPUS and _on_servers(row["backend"], system)
    if gpus <= NODE_GPUS:
        return _clients(row) < attention_dp_from
    return gpus <= 2 * NODE_GPUS and not system.gpus_per_rack


def _on_servers(backend: str, system: System) -> bool:
    """Whether SGLang's recipes for servers without an NVLink rack hold."""
    return backend == "sglang" and not system.gpus_per_rack


def _all_gpus(row: Mapping[str, Any], model: Model, system: System) -> dict[str, Pool]:
    """Pools of a run on a rack that tells the GPUs of both together as the size of each, if so.

    Decode is a worker of the largest power of two below, of half that where many clients send long
    prompts; prefill the rest, a tray each.
    """
    told = [_sizes(row, f"{role}_") for role in ROLES]
    gpus, tray = told[0][0] * told[0][2], system.gpus_per_node
    counted = any(row.get(f"{role}_num_workers") for role in ROLES)
    on_rack = model.is_moe and system.gpus_per_rack and gpus > NODE_GPUS
    if counted or not on_rack or told[0] != told[1]:
        return {}
    decode = 2 ** ((gpus - 1).bit_length() - 1)
    if row["isl"] > row["osl"] and _clients(row) >= MANY_CLIENTS:
        decode //= 2
    wide = tuple((1, 1, size, 1, size) for size in (tray, decode))
    return {"prefill": Pool(wide[0], max((gpus - decode) // tray, 1)), "decode": Pool(wide[1])}


def _too_large_for_one(model: Model, system: System) -> bool:
    """Whether even 4-bit weights exceed one GPU: the sizes are not told."""
    return param_count(model) / 2 > system.memory_bytes


def _clients(row: Mapping[str, Any]) -> float:
    return row.get("concurrency") or 0


def _divided(layout: tuple[int, ...], model: Model) -> tuple[int, ...]:
    """The layout, or an attention rank on every GPU where tp does not divide the heads."""
    tp, pp, dp, *_ = layout
    heads = {
        layer.attention.heads for _, layer in model.layers if isinstance(layer.attention, GQA | MLA)
    }
    if model.is_moe and any(count % tp for count in heads):
        return (1, pp, tp * dp, 1, tp * dp)
    return layout
