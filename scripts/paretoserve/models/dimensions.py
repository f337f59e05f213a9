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
    qk_norm_of_layer: bool = False  # over all heads at once, not each by itself
    window: int = 0  # tokens that a token attends to; 0: all before it
    output_gate: bool = False  # the query projection also makes a gate of the output
    sinks: bool = False  # one learned logit per head that takes attention from all tokens
    output_bias: bool = False

    @property
    def query_width(self) -> int:
        """Values that the query projection makes, its gate included."""
        return self.heads * self.head_dim * (2 if self.output_gate else 1)

    def params(self, hidden: int) -> int:
        """Parameters of one layer's attention."""
        projected = self.query_width + 2 * self.kv_heads * self.head_dim
        weights = hidden * projected + self.heads * self.head_dim * hidden
        biases = self.qkv_bias * projected + self.output_bias * hidden
        normed = self.heads + self.kv_heads if self.qk_norm_of_layer else 2
        return weights + biases + self.qk_norm * normed * self.head_dim + self.sinks * self.heads


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
class DSA(MLA):
    """Sparse latent attention: an indexer picks the `index_topk` cached tokens to attend to.

    Its `index_heads` queries of `index_dim` score one cached key of `index_dim` per token.
    """

    index_heads: int
    index_dim: int
    index_topk: int

    def params(self, hidden: int) -> int:
        """Parameters of one layer's attention, indexer and its norm included."""
        return super().params(hidden) + self.indexer_params(hidden) + 2 * self.index_dim

    def indexer_params(self, hidden: int) -> int:
        """Weights of the indexer's projections: queries, key, and a weight per head."""
        query = self.q_rank * self.index_heads * self.index_dim
        return query + hidden * (self.index_dim + self.index_heads)


@dataclass(frozen=True)
class GDN:
    """Gated delta net: linear attention whose state is (v_heads, k_dim, v_dim) per request."""

    k_heads: int
    v_heads: int
    k_dim: int
    v_dim: int
    conv: int  # width of the causal convolution over queries, keys and values

    @property
    def channels(self) -> int:
        """Values of a token that pass the convolution: queries, keys and values."""
        return 2 * self.k_heads * self.k_dim + self.v_heads * self.v_dim

    def params(self, hidden: int) -> int:
        """Parameters of one layer: projections, convolution, decay, step size and output norm."""
        value = self.v_heads * self.v_dim
        projections = hidden * (self.channels + value + 2 * self.v_heads) + value * hidden
        return projections + self.channels * self.conv + 2 * self.v_heads + self.v_dim


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
    shared_gate: bool = False  # a gate of one value decides how much of the shared expert counts
    bias: bool = False  # of the router and of every projection

    def params(self, hidden: int) -> int:
        """Parameters of one layer's router and experts, active or not."""
        router = hidden * self.experts + self.shared_gate * hidden
        biases = self.bias * self.experts * (1 + 2 * self.inter + hidden)
        return router + biases + 3 * hidden * (self.experts * self.inter + self.shared_inter)


Attention = GQA | MLA | DSA | GDN
FFN = DenseFFN | MoEFFN


@dataclass(frozen=True)
class LayerSpec:
    """One layer: what it attends with, then what it transforms with; None: it leaves that out."""

    attention: Attention | None
    ffn: FFN | None

    @property
    def parts(self) -> tuple[Attention | FFN, ...]:
        """What the layer has, each behind a norm of its own."""
        return tuple(part for part in (self.attention, self.ffn) if part is not None)


@dataclass(frozen=True)
class Checkpoint:
    """What the parts of a checkpoint are quantised to (names of config/quant_modes.yaml).

    `attention` are the projections around attention, `gemm` dense FFNs and shared experts, `moe`
    routed experts; `kv_cache` is "" where the checkpoint does not say.
    """

    gemm: str
    moe: str
    attention: str
    kv_cache: str = ""
    output: str = ""

    @property
    def quant_mode(self) -> str:
        """The mode of the part that weighs most: of the experts where they are quantised."""
        return self.gemm if self.moe == "float16" else self.moe


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
    checkpoint: Checkpoint | None = None  # None: not quantised

    @property
    def checkpoint_quant_mode(self) -> str | None:
        """What most of the checkpoint is quantised to, None if it is not."""
        return self.checkpoint and self.checkpoint.quant_mode

    @property
    def distinct_layers(self) -> tuple[tuple[int, LayerSpec], ...]:
        """(count, spec) of every kind of layer, where the order does not matter."""
        counts: dict[LayerSpec, int] = {}
        for count, spec in self.layers:
            counts[spec] = counts.get(spec, 0) + count
        return tuple((count, spec) for spec, count in counts.items())

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
        dimensions = replace(self, name="", checkpoint=None)
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
