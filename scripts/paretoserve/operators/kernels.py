"""All operators of one engine version on one system, opened when first used."""

from functools import cache, cached_property

from paretoserve.hardware import System
from paretoserve.models.dimensions import MoEFFN
from paretoserve.operators.attention import ContextAttention, GenerationAttention
from paretoserve.operators.collectives import Collective, all_reduce, library_collective
from paretoserve.operators.exchange import Exchange
from paretoserve.operators.experts import Experts
from paretoserve.operators.gemm import Gemm
from paretoserve.operators.mla import LatentAttention, LatentModule
from paretoserve.perfdb.tables import PerfTables
from paretoserve.settings import estimation


class Kernels:
    """The operators that a worker's layers are made of."""

    def __init__(self, tables: PerfTables):
        self.tables = tables
        self._experts = cache(lambda table: Experts(tables, estimation().experts, table))

    @property
    def system(self) -> System:
        return self.tables.system

    @cached_property
    def gemm(self) -> Gemm:
        return Gemm(self.tables, estimation().interpolation)

    @cached_property
    def context_attention(self) -> ContextAttention:
        return ContextAttention(self.tables, estimation().interpolation)

    @cached_property
    def generation_attention(self) -> GenerationAttention:
        return GenerationAttention(self.tables, estimation().interpolation)

    @cached_property
    def latent_attention(self) -> LatentAttention | None:
        """None where the engine's latent attention was measured as a whole block only."""
        if not self.tables.releases("context_mla") and self.tables.releases("mla_context_module"):
            return None
        return LatentAttention(self.tables, estimation().interpolation)

    @cached_property
    def latent_module(self) -> LatentModule:
        return LatentModule(self.tables, estimation().interpolation)

    def experts(self) -> Experts:
        return self._experts("moe")

    def wide_experts(self, tokens_are: str, dtype: str, spec: MoEFFN, hidden: int) -> Experts:
        """The kernels of wide expert parallelism where these experts were measured with them."""
        table = estimation().experts.wide_ep_tables[self.tables.backend].get(tokens_are)
        if table and self._experts(table).measures(dtype, spec, hidden):
            return self._experts(table)
        return self._experts("moe")

    @cached_property
    def exchange(self) -> Exchange:
        return Exchange(self.tables, estimation().experts)

    @cached_property
    def all_reduce(self) -> Collective:
        return all_reduce(self.tables)

    @cached_property
    def all_gather(self) -> Collective:
        return library_collective(self.tables, "all_gather")

    @cached_property
    def reduce_scatter(self) -> Collective:
        return library_collective(self.tables, "reduce_scatter")
