"""Which GPUs of which node each worker gets.

Workers larger than a node come first and take nodes evenly; then whole replicas, where that needs
no more nodes (prefill and decode of a replica then share a node's links); then the largest workers
first. A worker that fits a node is never split, and lies at a multiple of its size.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from paretoserve.errors import InputError


@dataclass(frozen=True)
class Need:
    """One worker to place."""

    role: str
    system: str
    replica: int
    number: int  # within the replica and role
    gpus: int
    tp: int
    gpus_per_node: int

    @property
    def name(self) -> str:
        return f"{self.role}_{self.replica}_{self.number}"


@dataclass(frozen=True)
class Part:
    """The GPUs of one worker on one node."""

    need: Need
    node: int
    gpus: tuple[int, ...]
    rank: int = 0  # of this node among the worker's nodes
    nodes: tuple[int, ...] = ()  # of the worker

    @property
    def leader(self) -> int:
        return self.nodes[0]


@dataclass
class Node:
    """One machine: free GPUs, and what was placed there."""

    index: int
    system: str
    size: int
    free: list[bool]
    parts: list[Part] = field(default_factory=list)

    @property
    def idle(self) -> list[int]:
        return [gpu for gpu, free in enumerate(self.free) if free]


def nodes_of_worker(gpus: int, tp: int, gpus_per_node: int) -> int:
    """Fewest nodes that hold a worker in equal parts; tp groups that fit a node stay whole."""
    for nodes in range(-(-gpus // gpus_per_node), gpus + 1):
        part, rest = divmod(gpus, nodes)
        whole = part % tp == 0 if tp <= gpus_per_node else tp % part == 0
        if not rest and whole and part <= gpus_per_node:
            return nodes
    raise InputError(f"a worker of {gpus} GPUs (tp {tp}) does not fit nodes of {gpus_per_node}")


def place(needs: Sequence[Need]) -> list[Node]:
    """Place all workers; return the nodes in use, whose indices count from 0."""
    nodes: list[Node] = []
    for system in dict.fromkeys(need.system for need in needs):
        mine = [need for need in needs if need.system == system]
        by_replica = _place_system(mine, len(nodes), whole_replicas=True)
        by_worker = _place_system(mine, len(nodes), whole_replicas=False)
        nodes += by_replica if len(by_replica) <= len(by_worker) else by_worker
    return nodes


def _place_system(needs: Sequence[Need], first: int, whole_replicas: bool) -> list[Node]:
    nodes: list[Node] = []

    def open_node(need: Need) -> Node:
        size = need.gpus_per_node
        nodes.append(Node(first + len(nodes), need.system, size, [True] * size))
        return nodes[-1]

    small = []
    for need in sorted(needs, key=lambda need: -need.gpus):
        count = nodes_of_worker(need.gpus, need.tp, need.gpus_per_node)
        if count == 1:
            small.append(need)
            continue
        taken = [open_node(need) for _ in range(count)]
        gpus = tuple(range(need.gpus // count))
        indices = tuple(node.index for node in taken)
        for rank, node in enumerate(taken):
            _take(node, Part(need, node.index, gpus, rank, indices))
    for group in _groups(small, whole_replicas):
        partly = [node for node in nodes if any(node.free)]
        if not any(_fill(node, group) for node in partly) and not _fill(open_node(group[0]), group):
            partly.append(nodes[-1])
            for need in group:  # a replica larger than a node, worker by worker
                if not any(_fill(node, [need]) for node in partly):
                    partly.append(open_node(need))
                    _fill(nodes[-1], [need])
    return nodes


def _groups(needs: Sequence[Need], whole_replicas: bool) -> Iterable[list[Need]]:
    if not whole_replicas:
        return [[need] for need in needs]
    replicas: dict[int, list[Need]] = {}
    for need in needs:
        replicas.setdefault(need.replica, []).append(need)
    return [replicas[index] for index in sorted(replicas)]


def _fill(node: Node, group: Sequence[Need]) -> bool:
    """Place all of a group on a node, or nothing."""
    if len(node.idle) < sum(need.gpus for need in group):
        return False
    trial = replace(node, free=list(node.free), parts=list(node.parts))
    for need in group:
        start = next(
            (
                at
                for at in range(0, node.size - need.gpus + 1, need.gpus)
                if all(trial.free[at : at + need.gpus])
            ),
            None,
        )
        if start is None:
            return False
        gpus = tuple(range(start, start + need.gpus))
        _take(trial, Part(need, node.index, gpus, 0, (node.index,)))
    node.free, node.parts = trial.free, trial.parts
    return True


def _take(node: Node, part: Part) -> None:
    for gpu in part.gpus:
        node.free[gpu] = False
    node.parts.append(part)
