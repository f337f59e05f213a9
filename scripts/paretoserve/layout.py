"""What a worker is: how it splits the model over its GPUs, and in which precision."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Layout:
    """How workers split the model; each field (N,)."""

    tp: np.ndarray
    pp: np.ndarray
    dp: np.ndarray
    moe_tp: np.ndarray
    moe_ep: np.ndarray


@dataclass(frozen=True)
class Precision:
    """Precision modes of one worker (names of config/quant_modes.yaml).

    `gemm` of dense FFNs and shared experts, `moe` of routed experts, `attention` of the attention
    arithmetic, `projections` of the GEMMs around it, which some checkpoints leave in 16 bit
    ("": as `gemm`), `output` of the last of them in latent attention ("": as the others).
    """

    gemm: str
    moe: str
    kv_cache: str
    attention: str
    projections: str = ""
    output: str = ""

    @property
    def attention_gemm(self) -> str:
        """The mode of the projections around attention."""
        return self.projections or self.gemm

    @property
    def output_gemm(self) -> str:
        """The mode of the projection out of latent attention."""
        return self.output or self.attention_gemm
