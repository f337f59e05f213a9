"""A transformer's architecture as data: layer groups, each of one attention and one FFN kind."""

import hashlib
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class GQA:
    """Grouped-query attention; kv_heads == heads is multi-head attention."""

    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    qk_norm: bool = False
    window: int = 0  # tokens that a token attends to; 0: all before it

    def params(self, hidden: int) -> int:
        """Parameters of one layer's attention."""
        projected = (self.heads + 2 * self.kv_heads) * self.head_dim
        weights = hidden * projected + self.heads * self.head_dim * hidden
        return weights + self.qkv_bias * projected + self.qk_norm * 2 * self.head_dim


@dataclass(frozen=True)
class MLA:
    """Multi-head latent attention: the cache holds `kv_rank + rope_dim` values of a token."""

    heads: int
    q_rank: int
    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int

    def params(self, hidden: int) -> int:
        """Parameters of one layer's attention."""
        query = hidden * self.q_rank + self.q_rank * self.heads * (self.nope_dim + self.rope_dim)
        key_value = hidden * (self.kv_rank + self.rope_dim)
        key_value += self.kv_rank * self.heads * (self.nope_dim + self.v_dim)
        norms = self.q_rank + self.kv_rank
        return query + key_value + norms + self.heads * self.v_dim * hidden


@dataclass(frozen=True)
class DenseFFN:
    """Gated feed-forward network: gate, up and down projections of width `inter`."""

    inter: int

    def params(self, hidden: int) -> int:
        """Parameters of one layer's FFN."""
        return 3 * hidden * self.inter


@dataclass(frozen=True)
class MoEFFN:
    """Routed gated experts of width `inter`, and shared ones of width `shared_inter` in all."""

    experts: int
    topk: int
    inter: int
    shared_inter: int = 0

    def params(self, hidden: int) -> int:
        """Parameters of one layer's router and experts, active or not."""
        router = hidden * self.experts
        return router + 3 * hidden * (self.experts * self.inter + self.shared_inter)


@dataclass(frozen=True)
class LayerSpec:
    """One layer: what it attends with, then what it transforms with; None: it leaves that out."""

    attention: GQA | MLA | None
    ffn: DenseFFN | MoEFFN | None

    @property
    def parts(self) -> tuple[GQA | MLA | DenseFFN | MoEFFN, ...]:
        """What the layer has, each behind a norm of its own."""
        return tuple(part for part in (self.attention, self.ffn) if part is not None)


@dataclass(frozen=True)
class Model:
    """A model: `layers` are (count, spec) groups in the order they run."""

    name: str
    architecture: str  # as in `architectures` of its config.json
    hidden: int
    vocab: int
    layers: tuple[tuple[int, LayerSpec], ...]
    tied_embeddings: bool
    max_position_embeddings: int
    mtp_layers: int = 0
    checkpoint_quant_mode: str | None = None  # None: the checkpoint is not quantised

    @property
    def num_layers(self) -> int:
        """Layers of all groups."""
        return sum(count for count, _ in self.layers)

    @property
    def is_moe(self) -> bool:
        """Whether any layer routes tokens to experts."""
        return any(isinstance(layer.ffn, MoEFFN) for _, layer in self.layers)

    @property
    def digest(self) -> str:
        """12 hex digits of the dimensions: equal for equal work, whatever the name."""
        dimensions = replace(self, name="", checkpoint_quant_mode=None)
        return hashlib.blake2b(repr(dimensions).encode(), digest_size=6).hexdigest()


def param_count(model: Model) -> int:
    """Parameters of `model`, without its MTP layers."""
    embeddings = model.hidden * model.vocab * (1 if model.tied_embeddings else 2)
    layers = sum(
        count * (part.params(model.hidden) + model.hidden)  # each part has a norm before it
        for count, layer in model.layers
        for part in layer.parts
    )
    return embeddings + layers + model.hidden
