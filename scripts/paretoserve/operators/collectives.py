"""Communication between GPUs: collectives of a group, and pipeline hand-over.

A collective over g GPUs of B bytes (of the gathered or scattered whole) moves B (g - 1) / g bytes
over each GPU's slowest link, an all-reduce twice that (ring). The tables hold sizes in 16-bit
elements. A group larger than any measured is scaled from the largest by the ring factor and by the
ratio of the slowest links.
"""

from functools import cache, cached_property, partial

import numpy as np

from paretoserve.errors import InputError
from paretoserve.hardware import System
from paretoserve.interpolation import EXTRAPOLATED, GridTable, Latency, gather
from paretoserve.operators.grids import grid_table
from paretoserve.perfdb.tables import PerfTables

BYTES_PER_ELEMENT = 2


class Collective:
    """One collective, from the rows of a table.

    Parameters
    ----------
    operator, where : the table, and which of its rows
    passes : how often the message goes around the ring: 2 for an all-reduce, else 1
    """

    def __init__(self, tables: PerfTables, operator: str, passes: int, **where: str):
        self._tables, self._operator = tables, operator
        self._passes, self._where = passes, where
        self.grid = cache(self._load)

    def latency(self, gpus: np.ndarray, elements: np.ndarray) -> Latency:
        """Latency for `elements` 16-bit numbers over `gpus` GPUs; nothing for one GPU."""
        gpus, elements = np.broadcast_arrays(gpus, np.asarray(elements, float))
        masks = [(int(count), gpus == count) for count in np.unique(gpus[gpus > 1])]
        return gather(
            gpus.shape,
            [(mask, partial(self._one, count, elements[mask])) for count, mask in masks],
        )

    def measures(self, gpus: int) -> bool:
        """Whether groups of so many GPUs were measured."""
        return gpus in self._measured_groups

    def bound_ms(self, gpus: np.ndarray, elements: np.ndarray) -> np.ndarray:
        """Speed of light."""
        return self._ring_ms(gpus, elements)

    def _one(self, gpus: int, elements: np.ndarray) -> Latency:
        groups = self._measured_groups
        if gpus in groups:
            return self.grid(gpus)(elements).at_least(self._ring_ms(gpus, elements))
        largest = max(groups)
        if gpus < largest:
            raise InputError(
                f"{self._tables}: no {self._name} was measured over {gpus} GPUs; measured: "
                + ", ".join(map(str, groups))
            )
        factor = self._ring_ms(gpus, elements) / self._ring_ms(largest, elements)
        return self.grid(largest)(elements).scaled(factor, EXTRAPOLATED)

    @property
    def _name(self) -> str:
        return self._where.get("op", "all_reduce").replace("_", "-")

    @cached_property
    def _measured_groups(self) -> list[int]:
        return np.unique(self._tables.rows(self._operator, **self._where)["num_gpus"]).tolist()

    def _load(self, gpus: int) -> GridTable:
        rows = self._tables.rows(self._operator, **self._where, num_gpus=gpus)
        launch_ms = self._tables.system.kernel_launch_s * 1e3
        return grid_table(rows, ("elements",), lambda size: self._ring_ms(gpus, size) + launch_ms)

    def _ring_ms(self, gpus: int, elements: np.ndarray) -> np.ndarray:
        moved = self._passes * BYTES_PER_ELEMENT * elements * (gpus - 1) / gpus
        return moved / self._tables.system.link_bandwidth(gpus) * 1e3


def all_reduce(tables: PerfTables) -> Collective:
    """Return the engine's own all-reduce kernel."""
    return Collective(tables, "custom_allreduce", passes=2)


def library_collective(tables: PerfTables, op: str) -> Collective:
    """Return all_gather or reduce_scatter of the system's collective library.

    Its size is that of the gathered, or not yet scattered, message.
    """
    library = tables.system.collectives_library
    return Collective(tables, library, passes=1, op=op, dtype="float16")


def hand_over_ms(
    system: System, tp: np.ndarray, pp: np.ndarray, elements: np.ndarray
) -> np.ndarray:
    """Latency of passing `elements` activations through all pp - 1 stage boundaries.

    Stages are packed: a boundary leaves the node when the stages up to it fill whole nodes.
    """
    tp, pp, elements = np.broadcast_arrays(tp, pp, np.asarray(elements, float))
    stages_per_node = np.maximum(system.gpus_per_node // tp, 1)
    crossings = (pp - 1) // stages_per_node
    inside = pp - 1 - crossings
    size = BYTES_PER_ELEMENT * elements
    return 1e3 * (
        crossings * (size / system.inter_node_bandwidth + system.p2p_latency_s)
        + inside * (size / system.intra_node_bandwidth + system.p2p_latency_s)
    )
