"""What the performance database can answer, from the manifest and few table columns."""

from collections.abc import Collection, Sequence
from functools import cache

from paretoserve import hardware
from paretoserve.errors import InputError
from paretoserve.models.dimensions import DSA, GDN, GQA, MLA, DenseFFN, Model, MoEFFN
from paretoserve.perfdb import manifest
from paretoserve.perfdb.tables import PerfTables

ENGINES = ("trtllm", "sglang", "vllm")  # the other backends of perf_db are collective libraries
# Tables that each kind of layer is priced from, as alternatives. Without tables of collectives an
# engine still answers for workers of one GPU.
MODULES = ("mla_context_module", "mla_generation_module")
NEEDED: dict[type, tuple[tuple[str, ...], ...]] = {
    GQA: (("context_attention", "generation_attention"),),
    MLA: (("context_mla", "generation_mla", "mla_bmm"), MODULES),
    DSA: (("dsa_context_module", "dsa_generation_module"),),
    GDN: (("gdn",),),
    DenseFFN: ((),),
    MoEFFN: (("moe",),),
}


class Catalogue:
    """Systems, backends, versions and precisions with measured tables."""

    def __init__(self) -> None:
        self._tables = cache(PerfTables)

    def system_name(self, name: str) -> str:
        """Return the canonical name of a system or alias; InputError for an unknown one."""
        return hardware.canonical_name(name)

    def sm_version(self, system: str) -> int:
        """CUDA compute capability times ten; 0 for other makers' GPUs."""
        return hardware.load_system(system).sm_version or 0

    def backends(self, system: str, model: Model) -> Collection[str]:
        """Serving engines with at least one version that can answer for the model."""
        return tuple(engine for engine in ENGINES if self.versions(system, engine, model))

    def versions(self, system: str, backend: str, model: Model) -> Sequence[str]:
        """Versions that hold every table that the model needs, oldest first."""
        loaded = manifest.load()
        try:
            known = loaded.versions(system, backend)
        except InputError:
            return ()
        kinds = {type(part) for _, layer in model.layers for part in layer.parts}
        answering = []
        for version in known:
            held = set(loaded.operators(system, backend, version))
            if "gemm" in held and all(_choice(kind, held) is not None for kind in kinds):
                answering.append(version)
        return tuple(answering)

    def precisions(
        self, system: str, backend: str, version: str, model: Model
    ) -> Collection[tuple[str, str, str]]:
        """(GEMM, KV cache, prefill attention) precisions measured for all attention of a model."""
        gemm = manifest.load().table_entry(system, backend, version, "gemm")["dtypes"]["dtype"]
        found = [
            self._measured(system, backend, version, spec, model.architecture, tuple(gemm))
            for spec in {layer.attention for _, layer in model.layers} - {None}
            if not isinstance(spec, GDN)  # it has no cache, and one precision
        ]
        return set.intersection(*found)

    def expert_modes(
        self, system: str, backend: str, version: str, model: Model
    ) -> tuple[Collection[str], Collection[str]]:
        """Precisions measured for just these experts, and those measured for any."""
        rows = self._tables(system, backend, version).distinct(
            "moe", ("dtype", "topk", "experts", "hidden", "inter")
        )
        shapes = {
            (layer.ffn.topk, layer.ffn.experts, model.hidden, layer.ffn.inter)
            for _, layer in model.layers
            if isinstance(layer.ffn, MoEFFN)
        }
        return (
            {row[0] for row in rows if all((row[0], *shape) in rows for shape in shapes)},
            {row[0] for row in rows},
        )

    def _measured(
        self,
        system: str,
        backend: str,
        version: str,
        spec: GQA | MLA | DSA,
        architecture: str,
        gemm: tuple[str, ...],
    ) -> set[tuple[str, str, str]]:
        """Precisions of one kind of attention: measured both in prefill and in decode."""
        tables = self._tables(system, backend, version)
        held = set(manifest.load().operators(system, backend, version))
        if isinstance(spec, GQA):
            keys = ("kv_dtype", "head_dim", "window")
            shape = (spec.head_dim, spec.window)
            decode = tables.distinct("generation_attention", keys)
            prefill = tables.distinct("context_attention", ("attn_dtype", *keys))
            pairs = {row[1::-1] for row in prefill if row[1:] in decode and row[2:] == shape}
        elif isinstance(spec, DSA):
            keys = ("architecture", "kv_dtype")
            decode = tables.distinct("dsa_generation_module", keys)
            prefill = tables.distinct("dsa_context_module", keys)
            pairs = {(row[1], "float16") for row in prefill & decode if row[0] == architecture}
        elif _choice(MLA, held) != MODULES:
            decode = tables.distinct("generation_mla", ("kv_dtype",))
            prefill = tables.distinct("context_mla", ("kv_dtype", "attn_dtype"))
            pairs = {row for row in prefill if row[:1] in decode}
        else:
            keys = ("architecture", "gemm_dtype", "kv_dtype")
            decode = tables.distinct("mla_generation_module", keys)
            prefill = tables.distinct("mla_context_module", (*keys, "attn_dtype"))
            return {row[1:] for row in prefill if row[:3] in decode and row[1] in gemm}
        return {(mode, *pair) for mode in gemm for pair in pairs}


def _choice(kind: type, held: Collection[str]) -> tuple[str, ...] | None:
    """The first alternative of NEEDED that is all there; None where none is."""
    return next((tables for tables in NEEDED[kind] if held >= {*tables}), None)
