"""All operators of one engine version on one system, opened when first used."""

from functools import cached_property

from paretoserve.hardware import System
from paretoserve.operators.attention import ContextAttention, GenerationAttention
from paretoserve.operators.collectives import AllReduce
from paretoserve.operators.gemm import Gemm
from paretoserve.perfdb.tables import PerfTables
from paretoserve.settings import estimation


class Kernels:
    """The operators that a worker's layers are made of."""

    def __init__(self, tables: PerfTables):
        self.tables = tables

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
    def all_reduce(self) -> AllReduce:
        return AllReduce(self.tables)
