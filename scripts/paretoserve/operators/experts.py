"""Routed experts of one layer on one GPU: grouped gate, up and down projections, no communication.

`tokens` are those of all GPUs that share the experts: with x tokens on each of dp ranks, x dp. Each
takes k of E experts, so one GPU of moe_tp x moe_ep computes r = tokens k / moe_ep rows of experts
that are i / moe_tp wide. Arithmetic 6 r h i / moe_tp. Traffic: weights 3 w h i / moe_tp of each
expert that any token chose, E / moe_ep (1 - (1 - k / E)^tokens) of them if choices were even, and
r (4 h + 6 i / moe_tp) bytes of rows. The tables hold skewed choices, timed on the GPU with the most
work. The bound counts the arithmetic of an even share and the weights of the k / moe_ep experts
that even one token needs.
"""

import re
from collections.abc import Callable, Collection
from functools import cache

import numpy as np

from paretoserve import quant
from paretoserve.errors import InputError
from paretoserve.interpolation import EXTRAPOLATED, GridTable, Latency, Trend
from paretoserve.models.dimensions import MoEFFN
from paretoserve.operators.grids import Rows, ShapeTables, select, token_grid
from paretoserve.perfdb.tables import PerfTables
from paretoserve.settings import Experts as Settings

SHAPE = ("topk", "experts", "hidden", "inter", "moe_tp", "moe_ep")
NOT_GATED = "_nongated"  # kernels of experts without a gate projection end so
SPLIT_BASE = 2**20  # moe_tp * SPLIT_BASE + moe_ep is one number for each split


class Experts:
    """Routed experts of one engine version, from one of its tables."""

    def __init__(self, tables: PerfTables, settings: Settings, operator: str = "moe"):
        self._tables, self._settings, self._operator = tables, settings, operator
        self._release = next(iter(tables.releases(operator)), tables.version)
        self._shapes = cache(self._load)
        self.measures = cache(self._measures)

    def _measures(self, dtype: str, spec: MoEFFN, hidden: int) -> bool:
        """Whether these experts were measured, at any split over GPUs."""
        if not self._tables.releases(self._operator):
            return False
        rows = self._tables.rows(self._operator, release=self._release)
        wanted = {"dtype": dtype, "hidden": hidden, "inter": spec.inter}
        wanted |= {"topk": spec.topk, "experts": spec.experts}
        return bool(np.all([rows[name] == value for name, value in wanted.items()], axis=0).any())

    def latency(
        self,
        dtype: str,
        distribution: str,
        spec: MoEFFN,
        hidden: int,
        moe_tp: np.ndarray,
        moe_ep: np.ndarray,
        tokens: np.ndarray,
    ) -> Latency:
        """Latency for `tokens` of all GPUs; arrays (N,). `distribution` or the nearest measured."""
        shapes = self._shapes(dtype, distribution)
        ms, provenance = np.empty(len(tokens)), np.empty(len(tokens), np.int8)
        split = moe_tp * SPLIT_BASE + moe_ep
        for one in np.unique(split).tolist():
            mine, (mt, me) = split == one, divmod(one, SPLIT_BASE)
            shape = (spec.topk, spec.experts, hidden, spec.inter, mt, me)
            found = shapes.latency(shape, tokens[mine])
            found = found.at_least(self._bound(dtype, *shape)(tokens[mine]))
            ms[mine], provenance[mine] = found.ms, found.provenance
        found = Latency(ms, provenance)
        same = self._release == self._tables.version
        return found if same else found.scaled(1.0, EXTRAPOLATED)

    def bound_ms(self, dtype, distribution, spec, hidden, moe_tp, moe_ep, tokens) -> np.ndarray:
        """Speed of light, with the weights of the experts that even choices reach."""
        shape = (spec.topk, spec.experts, hidden, spec.inter, moe_tp, moe_ep)
        arithmetic, weights, rows = self._work(dtype, *shape)(tokens)
        return np.maximum(arithmetic, weights + rows)

    def tables(self, dtype: str, distribution: str) -> ShapeTables:
        """The curves of one precision, by SHAPE, for held-out checks."""
        return self._shapes(dtype, distribution)

    def _load(self, dtype: str, distribution: str) -> ShapeTables:
        rows = self._tables.rows(self._operator, release=self._release, dtype=dtype)
        gated = np.array([not kernel.endswith(NOT_GATED) for kernel in np.unique(rows["kernel"])])
        kept = gated[np.unique(rows["kernel"], return_inverse=True)[1]]
        if not kept.any():
            raise InputError(f"{self._tables}: no gated experts were measured in {dtype}")
        kept &= rows["distribution"] == nearest(distribution, np.unique(rows["distribution"][kept]))
        if "slots" in rows:  # replicas of experts cost memory that we do not plan
            kept &= rows["slots"] == rows["experts"]
        return ShapeTables(
            select(rows, kept),
            SHAPE,
            # The number of GPUs of an even split changes the curve less than another model does.
            (4, 4, 4, 4, 1, 1),
            self._settings.shape_neighbours,
            self._grid,
            lambda *shape: self._trend(dtype, *shape),
        )

    def _grid(self, rows: Rows, trend: Trend) -> GridTable:
        return token_grid(rows, ("tokens",), trend, self._settings.beyond)

    def _trend(self, dtype: str, *shape: int) -> Trend:
        work, launch_ms = self._work(dtype, *shape), self._tables.system.kernel_launch_s * 1e3
        return lambda tokens: sum(work(tokens)) + launch_ms

    def _work(self, dtype, topk, experts, hidden, inter, moe_tp, moe_ep) -> Callable:
        """Arithmetic, traffic of weights and of rows, in ms."""
        system, mode = self._tables.system, quant.mode("weights", dtype)
        flops, bandwidth = system.flops(mode.flops), system.memory_bandwidth
        width = inter / moe_tp
        weights = 3 * mode.bytes * hidden * width

        def work(tokens):
            rows = np.asarray(tokens, float) * topk / moe_ep
            chosen = experts / moe_ep * (1 - (1 - topk / experts) ** tokens)
            arithmetic = 6 * rows * hidden * width / flops
            moved = rows * (4 * hidden + 6 * width)
            return (
                arithmetic * 1e3,
                chosen * weights / bandwidth * 1e3,
                moved / bandwidth * 1e3,
            )

        return work

    def _bound(self, dtype: str, *shape: int) -> Trend:
        topk, _, hidden, inter, moe_tp, moe_ep = shape
        work, mode = self._work(dtype, *shape), quant.mode("weights", dtype)
        one = 3 * mode.bytes * hidden * inter / moe_tp / self._tables.system.memory_bandwidth * 1e3
        return lambda tokens: np.maximum(work(tokens)[0], one * -(-topk // moe_ep))


def nearest(wanted: str, measured: Collection[str]) -> str:
    """The distribution of `measured` that is closest to `wanted`.

    With a load balancer (_eplb) or without, as wanted, then by exponent. Where no load balancer was
    measured, an even spread is what it comes closest to.
    """
    balanced, exponent = _skew(wanted)
    if balanced and not any(_skew(name)[0] for name in measured):
        balanced, exponent = False, 0.0

    def distance(name: str) -> tuple[bool, float, str]:
        other = _skew(name)
        return other[0] != balanced, abs(other[1] - exponent), name

    return min(map(str, measured), key=distance)


def _skew(name: str) -> tuple[bool, float]:
    """Whether a load balancer moved experts, and the exponent of their popularity, 0 if even."""
    found = re.fullmatch(
        r"(?:balanced|uniform|power_law_(?P<exponent>[\d.]+))(?P<eplb>_eplb)?", name
    )
    if found is None:
        raise InputError(f"unknown distribution of tokens over experts '{name}'")
    return bool(found["eplb"]), float(found["exponent"] or 0)
