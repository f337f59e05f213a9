"""GPU systems: rates, memory and links, from perf_db/systems/*.yaml."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import yaml

from paretoserve import paths
from paretoserve.errors import InputError, did_you_mean


@dataclass(frozen=True)
class System:
    """One kind of GPU server. Bandwidths are bytes/s of one GPU in one direction."""

    name: str
    sm_version: int | None
    memory_bytes: int
    memory_bandwidth: float
    tensor_flops_per_s: dict[str, float]
    gpus_per_node: int
    gpus_per_rack: int | None
    intra_node_bandwidth: float
    inter_node_bandwidth: float
    inter_rack_bandwidth: float | None
    p2p_latency_s: float
    collectives_library: str
    collectives_version: str
    collectives_beside: dict[str, dict[str, str]]
    memory_bandwidth_efficiency: float
    kernel_launch_s: float
    collective_buffer_bytes: dict[int, int]
    runtime_bytes: int

    def flops(self, rate: str) -> float:
        """Tensor-core operations per second; InputError if the GPU lacks this precision."""
        if rate not in self.tensor_flops_per_s:
            raise InputError(
                f"{self.name} has no {rate} tensor cores; it has "
                + ", ".join(self.tensor_flops_per_s)
            )
        return self.tensor_flops_per_s[rate]

    def collectives(self, backend: str, version: str) -> tuple[str, str]:
        """Collective library and its version that an engine release was measured beside."""
        beside = self.collectives_beside.get(backend, {})
        return self.collectives_library, beside.get(version, self.collectives_version)

    def link_bandwidth(self, gpus: np.ndarray) -> np.ndarray:
        """Bandwidth (bytes/s) of the slowest link inside a group of `gpus` packed GPUs."""
        gpus = np.asarray(gpus)
        bandwidth = np.where(
            gpus <= self.gpus_per_node, self.intra_node_bandwidth, self.inter_node_bandwidth
        )
        if self.gpus_per_rack is None:
            return bandwidth
        return np.where(gpus <= self.gpus_per_rack, bandwidth, self.inter_rack_bandwidth)

    @property
    def nvlink_domain(self) -> int:
        """GPUs that reach each other at the bandwidth inside a node."""
        whole_rack = self.inter_node_bandwidth == self.intra_node_bandwidth
        return (self.gpus_per_rack if whole_rack else None) or self.gpus_per_node

    def collective_buffers(self, gpus: np.ndarray) -> np.ndarray:
        """Bytes that the collective library holds on a GPU in a group of `gpus`."""
        sizes = np.array(sorted(self.collective_buffer_bytes))
        held = np.array([self.collective_buffer_bytes[size] for size in sizes])
        index = np.searchsorted(sizes, np.asarray(gpus), side="right") - 1
        return held[np.clip(index, 0, len(sizes) - 1)]


@cache
def load_system(name: str) -> System:
    """Read one system by its name or an alias; InputError names the nearest known one."""
    spec = yaml.load(paths.system_file(canonical_name(name)).read_bytes(), yaml.CSafeLoader)
    gpu, node, empirical = spec["gpu"], spec["node"], spec["empirical"]
    return System(
        name=spec["name"],
        sm_version=gpu["sm_version"],
        memory_bytes=gpu["memory_bytes"],
        memory_bandwidth=gpu["memory_bandwidth_bytes_per_s"],
        tensor_flops_per_s=gpu["tensor_flops_per_s"],
        gpus_per_node=node["gpus_per_node"],
        gpus_per_rack=node.get("gpus_per_rack"),
        intra_node_bandwidth=node["intra_node_bandwidth_bytes_per_s"],
        inter_node_bandwidth=node["inter_node_bandwidth_bytes_per_s"],
        inter_rack_bandwidth=node.get("inter_rack_bandwidth_bytes_per_s"),
        p2p_latency_s=node["p2p_latency_s"],
        collectives_library=spec["collectives"]["library"],
        collectives_version=spec["collectives"]["version"],
        collectives_beside=spec["collectives"].get("with_backend", {}),
        memory_bandwidth_efficiency=empirical["memory_bandwidth_efficiency"],
        kernel_launch_s=empirical["kernel_launch_s"],
        collective_buffer_bytes=empirical["collective_buffer_bytes"],
        runtime_bytes=empirical["runtime_bytes"],
    )


def canonical_name(name: str) -> str:
    """Return the system's own name for a name or alias (`gb200_sxm` is gb200)."""
    names = _aliases()
    if name.lower() not in names:
        raise InputError(
            f"unknown system '{name}'{did_you_mean(name, names)}; known systems: "
            + ", ".join(system_names())
        )
    return names[name.lower()]


def system_names() -> tuple[str, ...]:
    """Return the own name of every system."""
    return tuple(sorted(set(_aliases().values())))


@cache
def _aliases() -> dict[str, str]:
    names = {}
    for file in sorted(paths.SYSTEMS.glob("*.yaml")):
        spec = yaml.load(file.read_bytes(), yaml.CSafeLoader)
        for alias in (spec["name"], *spec["aliases"]):
            names[alias.lower()] = spec["name"]
    return names
