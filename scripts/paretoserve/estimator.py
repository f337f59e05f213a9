"""Latency of one forward pass, operator by operator, for arrays of steps.

A pass may hold prompts, decoding requests, or both; prefill, decode and mixed steps are the same
computation with different contents. GEMMs, norms, experts and collectives see all tokens of the
pass; attention is priced apart for prompts and for decoding requests.

A layer is what it attends with, then what it transforms with; `_BLOCKS` has a function for each
kind of either. Each ends with the collective that makes its output whole: an all-reduce over tp,
or with experts under attention data parallelism a gather before and a scatter after them. Around
the layers: embedding, vocabulary projection and the hand-over between pipeline stages. A pass
visits all layers whatever the pipeline depth, so its latency is the plain sum.

With MTP, a pass verifies the drafts of the last one (nextn + 1 tokens of each decoding request),
then drafts anew: the model's extra layer runs over the tokens of the pass, and nextn - 1 times more
over one token of each request. Its operators are those of the layer, named `mtp_...`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import numpy as np

from paretoserve import quant
from paretoserve.errors import InputError
from paretoserve.interpolation import PROVENANCE, Latency, gather
from paretoserve.layout import Layout, Precision
from paretoserve.models.dimensions import (
    DSA,
    GDN,
    GQA,
    MLA,
    DenseFFN,
    LayerSpec,
    Model,
    MoEFFN,
)
from paretoserve.operators.collectives import BYTES_PER_ELEMENT
from paretoserve.operators.gdn import PARTS
from paretoserve.operators.kernels import Kernels
from paretoserve.operators.mla import MEASURED_IN, Block, check_measured
from paretoserve.settings import estimation
from paretoserve.tracing import Trace

Operators = Iterator[tuple[str, Latency]]
Counted = Iterator[tuple[str, int, Latency]]  # name, how often it runs, latency of one time

# How operators depend on a step's contents, where that cannot be seen from pure prefill and pure
# decode: these see the tokens of all attention-dp ranks ...
POOLED = frozenset({"moe", "moe_pre_dispatch", "moe_post_dispatch"})
# ... and these a row per request or token to verify, not the tokens of the pass.
ROWS = frozenset({"logits_gemm"})


@dataclass(frozen=True)
class Step:
    """What one pass holds on one attention-data-parallel rank.

    prefill_tokens (N,) prompt tokens computed; prompts (N,) how many prompts of length `isl` (N,)
    they make, a fraction when a prompt is split; decoding (N,) requests that each compute `queries`
    new tokens; kv_len (N, P) their cached tokens at P moments over which attention is averaged.
    all_tokens (N,) are the tokens of all attention-data-parallel ranks together, which share the
    experts; None: the other ranks hold what this one holds.
    """

    prefill_tokens: np.ndarray
    prompts: np.ndarray
    isl: np.ndarray
    decoding: np.ndarray
    kv_len: np.ndarray
    queries: int = 1
    all_tokens: np.ndarray | None = None

    @property
    def tokens(self) -> np.ndarray:
        return self.prefill_tokens + self.decoding * self.queries

    @property
    def requests(self) -> np.ndarray:
        """Requests that get a token: all that decode, and those whose prompt is computed."""
        return np.ceil(self.prompts) + self.decoding

    @property
    def logits_rows(self) -> np.ndarray:
        """Rows that reach the vocabulary projection: every token to verify."""
        return np.ceil(self.prompts) + self.decoding * self.queries


@dataclass(frozen=True)
class Mtp:
    """Multi-token prediction: `nextn` tokens of each request are drafted and verified a step."""

    nextn: int


@dataclass(frozen=True)
class StepLatency:
    """Latency of N steps: `operators` (O names), `ms` and `provenance` (N, O), `reasons` (N,).

    `notes` (O,) say what stood in for what where the provenance is `substituted`.
    """

    operators: tuple[str, ...]
    ms: np.ndarray
    provenance: np.ndarray
    reasons: np.ndarray
    notes: tuple[str, ...]

    @property
    def total_ms(self) -> np.ndarray:
        """(N,) NaN where an operator has no table; `reasons` says which."""
        return self.ms.sum(axis=1)

    def shares(self) -> dict[str, np.ndarray]:
        """Share of the time by provenance, each (N,)."""
        total = self.total_ms
        return {
            name: np.where(self.provenance == code, self.ms, 0).sum(axis=1) / total
            for code, name in enumerate(PROVENANCE)
        }


def step_latency(
    model: Model,
    precision: Precision,
    layout: Layout,
    step: Step,
    kernels: Kernels,
    *,
    mtp: Mtp | None = None,
    wide_ep: bool = False,
    trace: Trace | None = None,
) -> StepLatency:
    """Price N steps, each with its own layout and contents.

    `mtp` adds drafts and their verification; InputError where the model has no layer for it.
    `wide_ep` exchanges tokens between the GPUs of all experts where the layout splits requests and
    not experts (dp > 1, moe_tp = 1). `trace` is told of every operator.
    """
    if mtp and mtp.nextn:
        if not model.mtp_layers:
            raise InputError(f"nextn {mtp.nextn}: {model.name} has no multi-token prediction layer")
        step = replace(step, queries=mtp.nextn + 1)
    run = _Pass(model, precision, layout, step, kernels, wide_ep)
    drafts = range(mtp.nextn if mtp else 0)
    runs = [run if draft == 0 else replace(run, step=one_token(step)) for draft in drafts]
    named = ((f"mtp_{name}", 1, latency) for each in runs for name, latency in _draft(each))
    return _summed(chain(_operators(run), named), len(layout.tp), trace)


def draft_latency(
    model: Model,
    precision: Precision,
    layout: Layout,
    step: Step,
    kernels: Kernels,
    *,
    wide_ep: bool = False,
) -> StepLatency:
    """Price one draft over the tokens of N steps, for those who need it apart from the pass."""
    run = _Pass(model, precision, layout, step, kernels, wide_ep)
    return _summed(((name, 1, latency) for name, latency in _draft(run)), len(layout.tp))


def _summed(operators: Counted, count: int, trace: Trace | None = None) -> StepLatency:
    """Operators of one name are one column."""
    priced: dict[str, list[Latency]] = {}
    for name, times, latency in operators:
        if trace:
            latency = trace.operator(name, times, latency)
        priced.setdefault(name, []).append(latency.scaled(times))
    reasons = np.full(count, "", object)
    for name, latencies in priced.items():
        for latency in latencies:
            for mask, sentence in latency.reasons:
                reasons[mask] = sentence
            if not (known := np.isfinite(latency.ms)).all():
                reasons[~known & (reasons == "")] = f"{name} has no finite latency"
    return StepLatency(
        operators=tuple(priced),
        ms=np.stack([sum(x.ms for x in same) for same in priced.values()], axis=1),
        provenance=np.stack(
            [np.max([x.provenance for x in same], axis=0) for same in priced.values()], axis=1
        ),
        reasons=reasons,
        notes=tuple(
            "; ".join(dict.fromkeys(note for x in same for note in x.notes))
            for same in priced.values()
        ),
    )


@dataclass(frozen=True)
class _Pass:
    """What the price of an operator depends on, besides its own dimensions."""

    model: Model
    precision: Precision
    layout: Layout
    step: Step
    kernels: Kernels
    wide_ep: bool

    @property
    def hidden(self) -> int:
        return self.model.hidden

    @property
    def tokens(self) -> np.ndarray:
        return self.step.tokens

    def gemm(self, dtype: str, rows: np.ndarray, n: np.ndarray | int, k: np.ndarray | int):
        """A GEMM of `rows` (N,) where there are any."""
        on = rows > 0
        n, k = np.broadcast_to(n, on.shape), np.broadcast_to(k, on.shape)
        at = _where(on)
        return self.where(on, lambda: self.kernels.gemm.latency(dtype, rows[at], n[at], k[at]))

    def moved(self, moved_bytes: np.ndarray) -> Latency:
        return self.kernels.moved(moved_bytes)

    def norm(self) -> Latency:
        """Residual addition and norm: reads and writes two vectors per token, 16 bit each."""
        return self.moved(8 * self.tokens * self.hidden)

    def all_reduce(self, width: int | None = None) -> Latency:
        """Of a vector per token, as wide as the hidden state or `width`, 16 bit each."""
        return self.kernels.all_reduce.latency(self.layout.tp, self.tokens * (width or self.hidden))

    def prompts(self, whole: Callable[[np.ndarray], Latency]) -> Latency:
        """`whole(mask)` is the latency of whole prompts; a split one costs its even share."""
        on = self.step.prompts > 0
        return self.where(on, lambda: whole(_where(on))).scaled(np.minimum(self.step.prompts, 1))

    def decodes(self, each: Callable[..., Latency], *queries: np.ndarray) -> Latency:
        """Mean over the moments `kv_len` of each(*queries, decoding, kv_len), flattened to 2-D."""
        step, on = self.step, self.step.decoding > 0

        def mean() -> Latency:
            at = _where(on)
            every = each(*(q[at, None] for q in (*queries, step.decoding)), step.kv_len[at])
            reasons = tuple((mask.any(axis=1), sentence) for mask, sentence in every.reasons)
            ms, provenance = every.ms.mean(axis=1), every.provenance.max(axis=1)
            return Latency(ms, provenance, reasons, every.notes)

        return self.where(on, mean)

    def where(self, mask: np.ndarray, look_up: Callable[[], Latency]) -> Latency:
        return gather(mask.shape, [(mask, look_up)])


def _where(mask: np.ndarray) -> np.ndarray | slice:
    """The mask as an index; of all elements a slice, which copies nothing."""
    return slice(None) if mask.all() else mask


def _operators(run: _Pass) -> Counted:
    """The operators of a pass, with how often each runs."""
    yield "embedding", 1, run.moved(2 * run.tokens * run.hidden)
    for count, layer in run.model.distinct_layers:
        for name, latency in _layer(layer, run):
            yield name, count, latency
    yield "logits_gemm", 1, _logits(run, run.step.logits_rows)
    layout = run.layout
    yield "p2p", 1, run.kernels.hand_over(layout.tp, layout.pp, run.tokens * run.hidden)


def _layer(layer: LayerSpec, run: _Pass) -> Operators:
    for spec in layer.parts:
        yield from _BLOCKS[type(spec)](spec, run)


def _logits(run: _Pass, rows: np.ndarray) -> Latency:
    return run.gemm("float16", rows, -(-run.model.vocab // run.layout.tp), run.hidden)


def _draft(run: _Pass) -> Operators:
    """One token drafted for each request, from the last one's embedding and hidden state."""
    yield "embedding", run.moved(2 * run.tokens * run.hidden)
    yield "norm", run.norm()
    yield "projection_gemm", run.gemm("float16", run.tokens, run.hidden, 2 * run.hidden)
    yield from _layer(run.model.layers[-1][1], run)
    yield "logits_gemm", _logits(run, run.step.requests)


def one_token(step: Step) -> Step:
    """One token of every request of `step`, prompts included."""
    none = np.zeros_like(step.prefill_tokens)
    kv_len = np.where(step.decoding[:, None] > 0, step.kv_len, step.isl[:, None])
    return Step(none, none, step.isl, step.requests, kv_len)


def _gqa(spec: GQA, run: _Pass) -> Operators:
    precision, kernels, step = run.precision, run.kernels, run.step
    heads, kv_heads = -(-spec.heads // run.layout.tp), -(-spec.kv_heads // run.layout.tp)
    width = heads * spec.head_dim
    yield "add_norm_1", run.norm()
    query = width * spec.query_width // (spec.heads * spec.head_dim)
    qkv = query + 2 * kv_heads * spec.head_dim
    yield "qkv_gemm", run.gemm(precision.attention_gemm, run.tokens, qkv, run.hidden)
    if spec.qk_norm_of_layer:
        # Each GPU's sums of squares, of queries and keys in 32 bit, before any head can be normed.
        normed = run.tokens * (heads + kv_heads) * spec.head_dim
        yield "qk_norm_sums", run.moved(2 * normed)
        yield "qk_norm_ar", run.all_reduce(4)
        yield "qk_norm", run.moved(4 * normed)
    yield (
        "context_attention",
        run.prompts(
            lambda on: kernels.context_attention.latency(
                precision.attention,
                precision.kv_cache,
                spec.head_dim,
                spec.window,
                heads[on],
                kv_heads[on],
                step.isl[on],
                np.maximum(step.prompts[on], 1),
            )
        ),
    )
    yield (
        "generation_attention",
        run.decodes(
            lambda *query: kernels.generation_attention.latency(
                precision.kv_cache, spec.head_dim, spec.window, *query, step.queries
            ),
            heads,
            kv_heads,
        ),
    )
    if spec.output_gate:
        yield "attention_gate", run.moved(2 * run.tokens * 3 * width)
    yield "proj_gemm", run.gemm(precision.attention_gemm, run.tokens, run.hidden, width)
    yield "ar_1", run.all_reduce()


def _gdn(spec: GDN, run: _Pass) -> Operators:
    """Gated delta net. New tokens of one request pass the rule one after the other."""
    gemm, tokens, layout, step = run.precision.attention_gemm, run.tokens, run.layout, run.step
    k_heads, v_heads = -(-spec.k_heads // layout.tp), -(-spec.v_heads // layout.tp)
    width = v_heads * spec.v_dim
    yield "add_norm_1", run.norm()
    channels = 2 * k_heads * spec.k_dim + width
    yield "gdn_in_gemm", run.gemm(gemm, tokens, channels + width, run.hidden)
    yield "gdn_gates_gemm", run.gemm("float16", tokens, 2 * v_heads, run.hidden)
    decoded = step.decoding * step.queries
    on = decoded > 0

    def context(part: str) -> Callable[[np.ndarray], Latency]:
        return lambda whole: run.kernels.delta_net.latency(
            part,
            "context",
            spec,
            k_heads[whole],
            v_heads[whole],
            np.maximum(step.prompts[whole], 1),
            step.isl[whole],
        )

    def generation(part: str) -> Callable[[], Latency]:
        return lambda: run.kernels.delta_net.latency(
            part, "generation", spec, k_heads[on], v_heads[on], decoded[on], np.ones(on.sum())
        )

    for part in PARTS:
        yield f"gdn_context_{part}", run.prompts(context(part))
        yield f"gdn_generation_{part}", run.where(on, generation(part))
    yield "gdn_gated_norm", run.moved(2 * tokens * 3 * width)
    yield "gdn_out_gemm", run.gemm(gemm, tokens, run.hidden, width)
    yield "ar_1", run.all_reduce()


def _mla(spec: MLA, run: _Pass) -> Operators:
    """Latent attention. Where an engine's was measured as one block, that stands for its parts."""
    check_measured(spec)
    heads = -(-spec.heads // run.layout.tp)
    yield "add_norm_1", run.norm()
    if run.kernels.latent_attention is None:
        yield from _mla_block(spec, heads, run)
    else:
        yield from _mla_parts(spec, heads, run)
    yield "ar_1", run.all_reduce()


def _mla_parts(spec: MLA, heads: np.ndarray, run: _Pass) -> Operators:
    """Keys and values are up-projected for prompts, absorbed into two products for decoding."""
    precision, kernels, step = run.precision, run.kernels.latent_attention, run.step
    gemm, decoded = precision.attention_gemm, step.decoding * step.queries
    down = spec.q_rank + spec.kv_rank + spec.rope_dim
    yield "downscale_gemm", run.gemm(gemm, run.tokens, down, run.hidden)
    query = heads * (spec.nope_dim + spec.rope_dim)
    yield "q_b_proj_gemm", run.gemm(gemm, run.tokens, query, spec.q_rank)
    key_value = heads * (spec.nope_dim + spec.v_dim)
    yield "kv_b_proj_gemm", run.gemm(gemm, step.prefill_tokens, key_value, spec.kv_rank)
    yield (
        "context_attention",
        run.prompts(
            lambda on: kernels.context(
                precision.attention,
                precision.kv_cache,
                heads[on],
                step.isl[on],
                np.maximum(step.prompts[on], 1),
            )
        ),
    )
    eight_bit = quant.mode("weights", gemm).flops in ("fp8", "fp4")
    on = decoded > 0
    for op in ("pre", "post"):
        yield (
            f"bmm_{op}",
            run.where(
                on,
                lambda op=op: kernels.product(
                    f"mla_gen_{op}", "fp8" if eight_bit else "float16", heads[on], decoded[on]
                ),
            ),
        )
    yield (
        "generation_attention",
        run.decodes(
            lambda *query: kernels.generation(precision.kv_cache, *query, step.queries), heads
        ),
    )
    yield "proj_gemm", run.gemm(precision.output_gemm, run.tokens, run.hidden, heads * spec.v_dim)


def _mla_block(spec: MLA, heads: np.ndarray, run: _Pass) -> Operators:
    precision, module, step = run.precision, run.kernels.latent_module, run.step
    block = Block(MEASURED_IN, spec, run.hidden, precision.attention_gemm)
    attention, kv_cache = precision.attention, precision.kv_cache
    yield (
        "context_mla_block",
        run.prompts(
            lambda on: module.context(
                block, attention, kv_cache, heads[on], step.isl[on], np.maximum(step.prompts[on], 1)
            )
        ),
    )
    yield (
        "generation_mla_block",
        run.decodes(lambda *query: module.generation(block, kv_cache, *query, step.queries), heads),
    )


def _dsa(spec: DSA, run: _Pass) -> Operators:
    """Sparse latent attention: measured as one block only, projections and indexer included."""
    kernels, step, kv_cache = run.kernels.sparse_attention, run.step, run.precision.kv_cache
    heads = -(-spec.heads // run.layout.tp)
    block = Block(run.model.architecture, spec, run.hidden, run.precision.attention_gemm)
    yield "add_norm_1", run.norm()
    yield (
        "context_dsa_block",
        run.prompts(
            lambda on: kernels.context(
                block, kv_cache, heads[on], step.isl[on], np.maximum(step.prompts[on], 1)
            )
        ),
    )
    yield (
        "generation_dsa_block",
        run.decodes(
            lambda of, batch, kv_len: kernels.generation(
                block, kv_cache, of, batch * step.queries, kv_len
            ),
            heads,
        ),
    )
    yield "ar_1", run.all_reduce()


def _dense_ffn(spec: DenseFFN, run: _Pass) -> Operators:
    inter = -(-spec.inter // run.layout.tp)
    yield "add_norm_2", run.norm()
    yield "gate_ffn1_gemm", run.gemm(run.precision.gemm, run.tokens, 2 * inter, run.hidden)
    yield "act_gate", run.moved(2 * run.tokens * 3 * inter)
    yield "ffn2_gemm", run.gemm(run.precision.gemm, run.tokens, run.hidden, inter)
    yield "ar_2", run.all_reduce()


def _moe_ffn(spec: MoEFFN, run: _Pass) -> Operators:
    """Shared experts are split over tp like a dense FFN; their output joins the routed ones'.

    In steps of few tokens they run beside the routed ones and cost what outlasts those.
    """
    layout, kernels = run.layout, run.kernels
    tokens, hidden = run.tokens, run.hidden
    yield "add_norm_2", run.norm()
    yield "router_gemm", run.gemm("float16", tokens, spec.experts, hidden)
    wide = (layout.dp > 1) & (layout.moe_tp == 1) & run.wide_ep
    gathers = (layout.dp > 1) & ~wide
    routed = _experts(spec, run, wide)
    shared = dict(_shared_experts(spec, run))
    alone = _outlasting(sum(part.ms for part in shared.values()), routed.ms, run)
    for name, latency in shared.items():
        yield name, latency.scaled(alone)
    yield from (
        ("moe_pre_dispatch", _gathered(run, gathers, kernels.all_gather, _gathered_bytes(run))),
        ("moe_pre_dispatch", _exchanged(spec, run, wide, "dispatch")),
        ("moe", routed),
        ("moe_post_dispatch", _gathered(run, gathers, kernels.reduce_scatter, BYTES_PER_ELEMENT)),
        ("moe_post_dispatch", _exchanged(spec, run, wide, "combine")),
    )
    # What comes back to one of the tp GPUs of a rank, all of them need.
    ranks_of_several = np.where(layout.dp > 1, layout.tp, 1)
    yield "moe_post_dispatch", kernels.all_gather.latency(ranks_of_several, tokens * hidden)
    one_rank = np.where(layout.dp > 1, 1, layout.tp)
    yield "ar_2", kernels.all_reduce.latency(one_rank, tokens * hidden)


def _shared_experts(spec: MoEFFN, run: _Pass) -> Operators:
    gemm, tokens, hidden = run.precision.gemm, run.tokens, run.hidden
    if spec.shared_inter:
        inter = -(-spec.shared_inter // run.layout.tp)
        yield "shared_gate_ffn1_gemm", run.gemm(gemm, tokens, 2 * inter, hidden)
        yield "shared_act_gate", run.moved(2 * tokens * 3 * inter)
        yield "shared_ffn2_gemm", run.gemm(gemm, tokens, hidden, inter)
    if spec.shared_gate:
        yield "shared_gate", run.moved(6 * tokens * hidden)


def _outlasting(shared_ms: np.ndarray, routed_ms: np.ndarray, run: _Pass) -> np.ndarray:
    """Share of the shared experts' time that costs: what outlasts the routed ones beside them."""
    most = estimation().experts.shared_beside_routed_tokens[run.kernels.tables.backend]
    outlasts = np.maximum(shared_ms - routed_ms, 0) / np.maximum(shared_ms, 1e-12)
    return np.where((run.tokens <= most) & np.isfinite(routed_ms), outlasts, 1.0)


def _gathered(run: _Pass, on: np.ndarray, collective, value_bytes: float) -> Latency:
    """The tokens of all ranks, to or from every GPU."""
    layout = run.layout
    elements = run.tokens * layout.dp * run.hidden * value_bytes / BYTES_PER_ELEMENT
    return collective.latency(np.where(on, layout.tp * layout.dp, 1), elements)


def _gathered_bytes(run: _Pass) -> float:
    rate = quant.mode("weights", run.precision.moe).flops
    by_rate = estimation().experts.gathered_bytes[run.kernels.tables.backend]
    return by_rate.get(rate, BYTES_PER_ELEMENT)


def _exchanged(spec: MoEFFN, run: _Pass, wide: np.ndarray, way: str) -> Latency:
    """Each GPU sends its share of its rank's tokens to the GPUs of their experts, or back."""
    gpus, tokens = run.layout.tp * run.layout.dp, run.tokens / run.layout.tp

    def look_up(tokens_are: str, mask: np.ndarray) -> Callable[[], Latency]:
        return lambda: run.kernels.exchange.latency(
            way, tokens_are, run.precision.moe, spec, run.hidden, gpus[mask], tokens[mask]
        )

    return gather(wide.shape, [(m, look_up(are, m)) for are, m in _variants(run, wide).items()])


def _experts(spec: MoEFFN, run: _Pass, wide: np.ndarray) -> Latency:
    settings, kernels, dtype = estimation().experts, run.kernels, run.precision.moe
    layout, tokens = run.layout, run.step.all_tokens
    if tokens is None:
        tokens = run.tokens * layout.dp

    def look_up(experts, distribution: str, mask: np.ndarray) -> Callable[[], Latency]:
        return lambda: experts().latency(
            dtype,
            distribution,
            spec,
            run.hidden,
            layout.moe_tp[mask],
            layout.moe_ep[mask],
            tokens[mask],
        )

    usual = settings.distribution[_attention_kind(run.model)]
    groups = [(~wide, look_up(kernels.experts, usual, ~wide))]
    balanced = settings.wide_ep_distribution[kernels.tables.backend]
    for are, mask in _variants(run, wide).items():
        of_variant = partial(kernels.wide_experts, are, dtype, spec, run.hidden)
        groups.append((mask, look_up(of_variant, balanced, mask)))
    return gather(wide.shape, groups)


def _variants(run: _Pass, wide: np.ndarray) -> dict[str, np.ndarray]:
    """Engines have one exchange for steps with prompts and another for pure decode."""
    prompts = run.step.prefill_tokens > 0
    return {"many": wide & prompts, "few": wide & ~prompts}


def _attention_kind(model: Model) -> str:
    """The kind that most layers attend with, as config/estimation.yaml spells it."""
    layers = [(count, one) for count, one in model.distinct_layers if one.attention is not None]
    return type(max(layers, key=lambda group: group[0])[1].attention).__name__


# A family is priced by the kinds of layers it is made of; a new kind is one more line here.
_BLOCKS: dict[type, Callable[..., Operators]] = {
    GQA: _gqa,
    MLA: _mla,
    DSA: _dsa,
    GDN: _gdn,
    DenseFFN: _dense_ffn,
    MoEFFN: _moe_ffn,
}
