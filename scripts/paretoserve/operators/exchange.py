"""All-to-all exchange of tokens between expert-parallel GPUs: dispatch to experts, and combine.

Each of g GPUs sends its tokens to the GPUs of their k experts: (g - 1) (1 - (1 - 1/g)^k) others for
each token if choices are even. Beyond an NVLink domain a token is sent once to each of the other
D - 1 domains that it needs, by the same formula, and passed on inside.
traffic = copies inside / NVLink + copies between / network; a copy is h values in the width of the
experts' input on the way there, 16 bit on the way back.

config/estimation.yaml names the tables of each engine, for many (prefill) and for few (decode)
tokens. More GPUs than any measured, and shapes that nobody measured, are scaled by the traffic. A
table of another system with the same links stands in before the next table of the list.
"""

from dataclasses import replace
from functools import cache, cached_property

import numpy as np

from paretoserve import quant
from paretoserve.errors import InputError
from paretoserve.hardware import system_names
from paretoserve.interpolation import EXTRAPOLATED, SUBSTITUTED, GridTable, Latency, Trend
from paretoserve.models.dimensions import MoEFFN
from paretoserve.operators.grids import Rows, ShapeTables, select, token_grid
from paretoserve.perfdb.tables import PerfTables
from paretoserve.settings import ExchangeTable, Experts

SHAPE = ("topk", "experts", "hidden")
PHASES = {"dispatch": ("prepare", "dispatch"), "combine": ("combine",)}
COMBINED_BYTES = 2


class Exchange:
    """Dispatch and combine of one engine."""

    def __init__(self, tables: PerfTables, settings: Experts):
        self._tables, self._settings = tables, settings
        self._phases = cache(self._load)

    def latency(
        self,
        way: str,
        tokens_are: str,
        dtype: str,
        spec: MoEFFN,
        hidden: int,
        gpus: np.ndarray,
        tokens: np.ndarray,
    ) -> Latency:
        """Latency of one `way` ("dispatch" or "combine") of `tokens` on each of `gpus`, both (N,).

        `tokens_are` "many" or "few" picks the engine's variant, `dtype` is the experts' precision.
        """
        shape = (spec.topk, spec.experts, hidden)
        measured, release, tables = self._phases(way, tokens_are, dtype)
        found = [table.latency(shape, gpus, tokens) for table in tables]
        both = Latency(
            np.sum([phase.ms for phase in found], axis=0),
            np.max([phase.provenance for phase in found], axis=0),
        )
        if measured.name != self._tables.name:
            note = f"{measured.name} {measured.backend} {release} exchange of tokens stands in"
            return replace(both.scaled(1.0, SUBSTITUTED), notes=(f"{note} for {self._tables}",))
        return both if release == self._tables.version else both.scaled(1.0, EXTRAPOLATED)

    def _load(
        self, way: str, tokens_are: str, dtype: str
    ) -> tuple[PerfTables, str, list[ShapeTables]]:
        """Whose tables, the nearest release that was measured, and one table per phase."""
        rate = quant.mode("weights", dtype).flops
        measured, source = self._source(tokens_are, rate)
        width = COMBINED_BYTES if way == "combine" else self._settings.dispatched_bytes[rate]
        tables = []
        for phase in PHASES[way]:
            rows = self._rows(measured, source, phase)
            if not len(rows["tokens"]):
                continue  # only some exchanges have to be prepared
            if "dtype" in rows:
                rows = select(rows, rows["dtype"] == self._message(rows["dtype"], way, rate))
            neighbours, trend = self._settings.shape_neighbours, self._trend_of(width)
            tables.append(ShapeTables(rows, SHAPE, (1, 1, 1), neighbours, self._grid, trend))
        return measured, measured.releases(source.table)[0], tables

    def _message(self, measured: np.ndarray, way: str, rate: str) -> str:
        """The measured data type that stands for the message of experts with this rate."""
        names = np.unique(measured).tolist()
        wanted = self._settings.dispatched_dtypes[rate]
        for name in wanted:
            if name in names:
                return name
        raise InputError(
            f"{self._tables}: no {way} of {' or '.join(wanted)} was measured; "
            f"measured: {', '.join(names)}"
        )

    def _source(self, tokens_are: str, rate: str) -> tuple[PerfTables, ExchangeTable]:
        listed = self._settings.exchange[self._tables.backend][tokens_are]
        sources = [source for source in listed if not source.rates or rate in source.rates]
        for source in sources:
            for tables in (self._tables, *self._with_same_links):
                if tables.releases(source.table):
                    return tables, source
        names = " or ".join(source.table for source in sources)
        raise InputError(f"perf_db has no {names} table of {self._tables} or another release of it")

    @cached_property
    def _with_same_links(self) -> list[PerfTables]:
        """This engine's tables of other systems whose GPUs reach each other alike."""
        own = self._tables.system
        others = [
            PerfTables(name, self._tables.backend, self._tables.version)
            for name in system_names()
            if name != own.name
        ]
        return [
            tables
            for tables in others
            if tables.system.nvlink_domain == own.nvlink_domain > own.gpus_per_node
            and tables.system.inter_node_bandwidth == own.inter_node_bandwidth
        ]

    def _rows(self, measured: PerfTables, source: ExchangeTable, phase: str) -> Rows:
        """Rows of one phase; group sizes that the nearest release lacks come from farther ones."""
        parts = []
        for release in measured.releases(source.table):
            rows = measured.rows(source.table, release=release, **source.where)
            rows = select(rows, rows["phase"] == phase)
            # The tables of DeepEP count nodes.
            nodes = rows.pop("nodes") * self._tables.system.gpus_per_node if "nodes" in rows else 0
            rows["gpus"] = rows.pop("moe_ep") if "moe_ep" in rows else nodes
            new = np.ones(len(rows["gpus"]), bool)
            for part in parts:
                new &= ~np.isin(_keys(rows), _keys(part))
            parts.append(select(rows, new))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _grid(self, rows: Rows, trend: Trend) -> GridTable:
        return token_grid(rows, ("gpus", "tokens"), trend, self._settings.beyond)

    def _trend_of(self, width: float):
        """trend(*shape) -> trend(gpus, tokens) in ms."""
        system = self._tables.system
        domain = system.nvlink_domain
        inside, between = system.link_bandwidth(domain), system.link_bandwidth(domain + 1)

        def others(groups: np.ndarray, topk: int) -> np.ndarray:
            return (groups - 1) * (1 - (1 - 1 / groups) ** topk)

        def of_shape(topk: int, experts: int, hidden: int) -> Trend:
            def trend(gpus, tokens):
                gpus = np.asarray(gpus, float)
                copies = others(gpus, topk) / inside
                copies = copies + others(np.ceil(gpus / domain), topk) / between
                return (tokens * hidden * width * copies + system.kernel_launch_s) * 1e3

            return trend

        return of_shape


def _keys(rows: Rows) -> np.ndarray:
    """One number for each shape and group size."""
    key = np.zeros(len(rows["gpus"]), np.int64)
    for name in (*SHAPE, "gpus"):
        key = key * 100_000 + rows[name]
    return key
