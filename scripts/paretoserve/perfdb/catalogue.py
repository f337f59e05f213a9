"""What the performance database can answer, from the manifest and few table columns."""

from collections.abc import Collection, Mapping, Sequence
from functools import cache

from paretoserve import hardware
from paretoserve.errors import InputError
from paretoserve.perfdb import manifest
from paretoserve.perfdb.tables import PerfTables

ENGINES = ("trtllm", "sglang", "vllm")  # the other backends of perf_db are collective libraries
# Without all-reduce an engine still answers for workers of one GPU.
NEEDED = ("gemm", "context_attention", "generation_attention")
# Where each precision of an experiment has to be measured: operator and column.
_MEASURED_IN = {
    "gemm_quant_mode": ("gemm", "dtype"),
    "kvcache_quant_mode": ("generation_attention", "kv_dtype"),
    "fmha_quant_mode": ("context_attention", "attn_dtype"),
}
_ATTENTION_KEYS = ("kv_dtype", "head_dim", "window")


class Catalogue:
    """Systems, backends, versions and precisions with measured tables."""

    def __init__(self) -> None:
        self._attention = cache(self._measured_attention)

    def system_name(self, name: str) -> str:
        """Return the canonical name of a system or alias; InputError for an unknown one."""
        return hardware.canonical_name(name)

    def sm_version(self, system: str) -> int:
        """CUDA compute capability times ten; 0 for other makers' GPUs."""
        return hardware.load_system(system).sm_version or 0

    def backends(self, system: str) -> Collection[str]:
        """Serving engines with at least one complete version."""
        return tuple(engine for engine in ENGINES if self.versions(system, engine))

    def versions(self, system: str, backend: str) -> Sequence[str]:
        """Versions that hold every table a model needs, oldest first."""
        loaded = manifest.load()
        try:
            known = loaded.versions(system, backend)
        except InputError:
            return ()
        return tuple(
            version
            for version in known
            if all((system, backend, version, operator) in loaded.tables for operator in NEEDED)
        )

    def quant_modes(self, system: str, backend: str, version: str) -> Mapping[str, Collection[str]]:
        """Modes with measured tables, by field of a worker's configuration."""
        loaded = manifest.load()
        return {
            field: loaded.table_entry(system, backend, version, operator)["dtypes"][column]
            for field, (operator, column) in _MEASURED_IN.items()
        }

    def attention_modes(
        self, system: str, backend: str, version: str, head_dim: int, window: int
    ) -> Collection[tuple[str, str]]:
        """Pairs of KV cache and prefill precision that attention of this shape was measured in."""
        return {
            (kv_dtype, attn_dtype)
            for attn_dtype, kv_dtype, *shape in self._attention(system, backend, version)
            if shape == [head_dim, window]
        }

    def _measured_attention(
        self, system: str, backend: str, version: str
    ) -> set[tuple[str, str, int, int]]:
        """(attn_dtype, kv_dtype, head_dim, window) measured both in prefill and in decode."""
        tables = PerfTables(system, backend, version)
        decode = tables.distinct("generation_attention", _ATTENTION_KEYS)
        prefill = tables.distinct("context_attention", ("attn_dtype", *_ATTENTION_KEYS))
        return {row for row in prefill if row[1:] in decode}
