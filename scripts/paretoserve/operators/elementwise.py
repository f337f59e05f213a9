"""Kernels that only move memory: embedding, norms, activation functions.

They reach a fraction of the memory bandwidth and cost one launch (both empirical, in the system's
file): ms = bytes / (bandwidth * efficiency) + launch.
"""

import numpy as np

from paretoserve.hardware import System


def memory_ms(system: System, moved_bytes: np.ndarray) -> np.ndarray:
    """Latency of a kernel that reads and writes `moved_bytes` in all."""
    bandwidth = system.memory_bandwidth * system.memory_bandwidth_efficiency
    return (np.asarray(moved_bytes, float) / bandwidth + system.kernel_launch_s) * 1e3
