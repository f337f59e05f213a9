"""The worker candidates of a search: every allowed layout, batch size and prompt budget.

Layouts: products of the lists that use an allowed number of GPUs (tp * pp * dp) and keep the width
rule tp * dp = moe_tp * moe_ep: the GPUs that share attention are those that share the experts. They
must divide the model's heads, experts and widths, and be such as the engine can run
(config/backends.yaml).
Batch sizes: all up to a limit, thinned to the same number per octave.
Prompt budgets of aggregated workers: the engine's step sizes (config/backends.yaml), cut to whole
prompts where prompts are not split, and never more prompts than there are other requests.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import product

import numpy as np

from paretoserve.layout import Layout
from paretoserve.models.dimensions import FFN, GDN, GQA, MLA, Attention, DenseFFN, Model, MoEFFN
from paretoserve.settings import BackendRules


@dataclass(frozen=True)
class Layouts:
    """Allowed layouts, and those refused with the reason."""

    kept: Layout
    refused: tuple[tuple[tuple[int, int, int, int, int], str], ...]


def layouts(
    model: Model,
    num_gpu_per_worker: Iterable[int],
    tp: Iterable[int],
    pp: Iterable[int],
    dp: Iterable[int],
    moe_tp: Iterable[int],
    moe_ep: Iterable[int],
    rules: BackendRules,
) -> Layouts:
    """Every layout of the lists, in their order, without repeats."""
    allowed = set(num_gpu_per_worker)
    kept, refused = [], []
    for layout in dict.fromkeys(product(tp, pp, dp, moe_tp, moe_ep)):
        t, p, d, mt, me = layout
        if t * p * d not in allowed or (model.is_moe and t * d != mt * me):
            continue
        sizes = dict(zip((field.name for field in fields(Layout)), layout, strict=True))
        if reason := next(_refusals(model, sizes, rules), ""):
            refused.append((layout, reason))
        else:
            kept.append(layout)
    columns = np.array(kept, np.int64).reshape(-1, 5).T
    return Layouts(Layout(*columns), tuple(refused))


def _refusals(model: Model, sizes: Mapping[str, int], rules: BackendRules) -> Iterator[str]:
    if sizes["pp"] > model.num_layers:
        yield f"pp {sizes['pp']} exceeds the {model.num_layers} layers"
    for one, other in rules.exclusive:
        if sizes[one] > 1 and sizes[other] > 1:
            yield f"the engine does not combine {one} {sizes[one]} with {other} {sizes[other]}"
    for _, layer in model.layers:
        for part in layer.parts:
            for name, count, what in _split(part):
                if count % sizes[name]:
                    yield f"{name} {sizes[name]} does not divide {what}"


def _split(part: Attention | FFN) -> Iterator[tuple[str, int, str]]:
    """What each kind of parallelism shares out: its name, how many there are, and of what."""
    match part:
        case GQA() | MLA():
            yield "tp", part.heads, f"{part.heads} attention heads"
        case GDN():
            yield "tp", part.k_heads, f"{part.k_heads} key heads of the gated delta net"
            yield "tp", part.v_heads, f"{part.v_heads} value heads of the gated delta net"
        case DenseFFN():
            yield "tp", part.inter, f"the FFN width {part.inter}"
        case MoEFFN():
            yield "tp", part.shared_inter, f"the width {part.shared_inter} of the shared experts"
            yield "moe_tp", part.inter, f"the expert width {part.inter}"
            yield "moe_ep", part.experts, f"{part.experts} experts"


def batch_sizes(largest: int, per_octave: int) -> np.ndarray:
    """1 .. largest, at most `per_octave` sizes from a power of two to the next, and `largest`."""
    sizes = np.arange(1, largest + 1)
    step = np.maximum(2 ** np.floor(np.log2(sizes)) // per_octave, 1).astype(int)
    return np.union1d(sizes[sizes % step == 0], largest)


def prompt_budgets(isl: int, batch: np.ndarray, rules: BackendRules) -> np.ndarray:
    """(B, C) prompt tokens per mixed step for each batch size; 0 where a budget repeats another."""
    budgets = np.array(rules.step_tokens)
    if not rules.chunked_prefill:
        budgets = np.union1d(np.maximum(budgets // isl, 1) * isl, isl)
    others = np.maximum(batch - 1, 1)[:, None]
    usable = np.minimum(budgets[None, :], others * isl)
    repeated = np.zeros(usable.shape, bool)
    repeated[:, 1:] = usable[:, 1:] == usable[:, :-1]
    return np.where(repeated, 0, usable)
