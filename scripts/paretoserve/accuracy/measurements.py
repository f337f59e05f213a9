"""Measured runs of real deployments, and the deployments that they were runs of.

A file (CSV or Parquet) has one row per run: what was served on what, the load, and the mean ttft
and tpot of a closed loop of `concurrency` clients. Public dashboards record layouts in several
ways. Where a disagg run is of a published recipe (see recipes) its deployment is the recipe's; else
its layout is recovered before it is priced, by rules in this order (G: GPUs of a worker):

dense models       tp and pp as they stand; the columns of experts say nothing
agg, sizes         tp dp = moe_tp moe_ep: as they stand
agg, products      tp = moe_tp moe_ep with moe_tp = moe_ep > 1: G = moe_tp, TP with as much EP;
                   dp = moe_tp moe_ep likewise: attention data parallel with as much EP;
                   tp = dp with moe_ep = tp dp: G = tp, TP with as much EP
agg, experts only  dp is not given: what the experts' width leaves beside tp
disagg, counted    workers are given: as they stand, experts over all GPUs of the worker
disagg, flattened  workers are not given: tp is G, and moe_ep > 1 (or G beyond a node of 8) says
                   expert parallel. Attention is tensor parallel in decode workers of a node for few
                   clients (`attention_dp_from`); elsewhere every GPU has a rank
heads that tp does not divide: an attention rank on every GPU

An empty or zero size is 1. `concurrency` is that of the loop; where it is empty the batch of all
attention ranks stands for it, also where it is smaller in runs that are not of a dashboard: then
the loop went over several replicas, of which one is taken.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, isfinite
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from paretoserve.accuracy.recipes import Recipe, Told, recipes_of
from paretoserve.errors import InputError, did_you_mean
from paretoserve.hardware import canonical_name
from paretoserve.models.catalog import find_model
from paretoserve.models.dimensions import GQA, MLA, Model

SIZES = ("tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
TEXTS = ("id", "backend", "backend_version", "model_path", "system", "precision", "mode")
LOAD = ("isl", "osl", "concurrency")
MEASURED = ("silicon_ttft_ms", "silicon_tpot_ms")
ROLES = ("prefill", "decode")
OF_ROLES = tuple(
    f"{role}_{name}" for role in ROLES for name in ("batch_size", "num_workers", *SIZES)
)
SERVED = ("draft_tokens", "decode_slots")
COLUMNS = (*TEXTS, *LOAD, *MEASURED, "batch_size", *SIZES, *OF_ROLES, *SERVED)
REQUIRED = ("backend", "model_path", "system", "mode", "isl", "osl", *MEASURED)
BACKENDS = ("trtllm", "sglang", "vllm")
# Loads of the public dashboards, whose lengths vary. Other runs have prompts of their nominal
# length, but answers end apart; those of SGLang with loads in powers of two stay in step.
DASHBOARD_LOADS = {(1024, 1024), (1024, 8192), (8192, 1024)}
VARYING, DRIFTING, FIXED = (0.8, 1.0), (0.9, 1.1), (1.0, 1.0)
NODE_GPUS = 8  # of a server


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
    draft_tokens: int = 0
    decode_slots: int | None = None
    host_overlaps: bool = True
    drafts_told: bool = True

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
    def settled(self) -> bool:
        """Whether row or recipe tell what ran: its workers, and whether it drafted."""
        return self.counted and self.drafts_told

    @property
    def of_dashboard(self) -> bool:
        """Whether its load is one of the public dashboards'."""
        return (self.isl, self.osl) in DASHBOARD_LOADS

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
    rows = list(_rows(file))
    known = _recipes(rows)
    for number, row in enumerate(rows):
        try:
            found.append(_measurement(number, row, attention_dp_from, known.get(number, ())))
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


def _recipes(rows: Sequence[Mapping[str, Any]]) -> dict[int, tuple[Recipe, ...]]:
    """The published recipes that each row may be of, by its number."""
    told = {}
    for number, row in enumerate(rows):
        try:
            told[number] = _told(row)
        except InputError:
            continue  # what is wrong with it is said when it is read
    return dict(zip(told, recipes_of(list(told.values())), strict=True))


def _told(row: Mapping[str, Any]) -> Told:
    model = find_model(row["model_path"] or "")
    if row["mode"] == "agg":
        sizes, workers = {"agg": _agg_layout(row, model)}, {}
        attention_dp = {"agg": sizes["agg"][2] > 1}
    else:
        sizes = {role: _sizes(row, f"{role}_") for role in ROLES}
        counted = all(row.get(f"{role}_num_workers") for role in ROLES)
        workers = {role: round(row[f"{role}_num_workers"]) for role in ROLES} if counted else {}
        attention_dp = {role: sizes[role][2] > 1 for role in workers}
    return Told(
        id=row.get("id") or "",
        backend=row["backend"] or "",
        version=row.get("backend_version") or "",
        architecture=model.digest,
        system=canonical_name(row["system"] or ""),
        precision=row.get("precision") or "",
        load=(round(row["isl"] or 0), round(row["osl"] or 0)),
        clients=round(_clients(row)),
        gpus={role: tp * dp for role, (tp, _, dp, *_) in sizes.items()},
        workers=workers,
        attention_dp=attention_dp,
    )


def _measurement(
    number: int, row: Mapping[str, Any], attention_dp_from: float, recipes: Sequence[Recipe]
) -> Measurement:
    for name in ("backend", "model_path", "system", "mode"):
        if not row[name]:
            raise InputError(f"{name} is not given")
    backend, mode = row["backend"], row["mode"]
    if backend not in BACKENDS:
        raise InputError(f"backend '{backend}' is not one of {', '.join(BACKENDS)}")
    if mode not in ("agg", "disagg"):
        raise InputError(f"mode '{mode}' is neither agg nor disagg")
    model = find_model(row["model_path"])
    recipe = recipes[0] if recipes else None
    if recipe and "agg" not in recipe.sides:
        pools = {role: Pool(side.layout, side.workers) for role, side in recipe.sides.items()}
    else:
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
        draft_tokens=_served(row, "draft_tokens", recipe and recipe.draft_tokens) or 0,
        decode_slots=_served(row, "decode_slots", recipe and recipe.slots),
        host_overlaps=recipe.host_overlaps if recipe else True,
        drafts_told=row.get("draft_tokens") is not None
        or len({one.draft_tokens > 0 for one in recipes}) < 2,
    )


def _served(row: Mapping[str, Any], name: str, by_recipe: int | None) -> int | None:
    """What the row tells, else what its recipe does."""
    told = row.get(name)
    return by_recipe if told is None else round(told)


def _batch_of_ranks(row: Mapping[str, Any], pools: Mapping[str, Pool]) -> float:
    """Requests in flight by the recorded batch size, of an attention rank."""
    pool = pools.get("agg") or pools["decode"]
    batch = row.get("batch_size") or row.get("decode_batch_size")
    if not batch:
        raise InputError("neither concurrency nor a batch size is given")
    return batch * pool.layout[2] * (pool.workers or 1)


def _sizes(row: Mapping[str, Any], prefix: str = "") -> tuple[int, int, int, int, int]:
    return tuple(max(round(row.get(prefix + name) or 1), 1) for name in SIZES)


def _agg_layout(row: Mapping[str, Any], model: Model) -> tuple[int, int, int, int, int]:
    """(tp, pp, dp, moe_tp, moe_ep) of a worker, whose sizes may be told as products."""
    tp, pp, dp, moe_tp, moe_ep = _sizes(row)
    experts = moe_tp * moe_ep
    if not model.is_moe:
        return (tp, pp, 1, 1, 1)
    if tp == experts and moe_tp == moe_ep > 1:
        return (moe_tp, pp, 1, 1, moe_ep)
    if dp == experts and moe_tp == moe_ep > 1:
        return (1, pp, moe_tp, 1, moe_ep)
    if tp == dp > 1 and moe_ep == tp * dp:
        return (tp, pp, 1, 1, tp)
    if tp * dp == experts:
        return (tp, pp, dp, moe_tp, moe_ep)
    if experts == 1:
        return (tp, pp, dp, tp * dp, 1)
    if experts % tp == 0:
        return (tp, pp, experts // tp, moe_tp, moe_ep)
    raise InputError(f"tp {tp} and dp {dp} do not go with moe_tp {moe_tp} and moe_ep {moe_ep}")


def _agg(row: Mapping[str, Any], model: Model) -> dict[str, Pool]:
    layout = _agg_layout(row, model)
    return {"agg": Pool(_divided(layout, model))}


def _disagg(row: Mapping[str, Any], model: Model, attention_dp_from: float) -> dict[str, Pool]:
    pools = {}
    for role in ROLES:
        tp, pp, dp, moe_tp, moe_ep = _sizes(row, f"{role}_")
        gpus, workers = tp * dp, row.get(f"{role}_num_workers")
        few = gpus <= NODE_GPUS and role == "decode" and _clients(row) < attention_dp_from
        if not model.is_moe:
            layout = (tp, pp, 1, 1, 1)
            workers = (workers or 1) * dp
        elif workers:
            if moe_tp * moe_ep != gpus:
                moe_tp, moe_ep = (gpus, 1) if moe_ep == 1 else (1, gpus)
            layout = (tp, pp, dp, moe_tp, moe_ep)
        elif moe_ep == 1 and gpus <= NODE_GPUS:
            layout = (gpus, pp, 1, gpus, 1)
        else:
            layout = (gpus, pp, 1, 1, gpus) if few else (1, pp, gpus, 1, gpus)
        pools[role] = Pool(_divided(layout, model), round(workers) if workers else None)
    return pools


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
