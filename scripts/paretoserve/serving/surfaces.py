"""Step latency of one worker configuration, as tables that a simulation reads step by step.

A pass is a sum of parts, each of which depends on one or two numbers:

    tokens        all tokens of the pass: GEMMs, norms, collectives of the rank; with prompts in it
    pooled        the same of operators that see the tokens of all attention-dp ranks (experts)
    prompt tokens operators that prompts alone pass, by tokens (up-projection of latent attention)
    prompts       attention of prompts: W(q) - W(p) for the chunk from position p to q of each, with
                  W of the batch of prompts that share the pass, plus a launch if p > 0
    decode        a whole step without prompts, over decoding requests and their mean cache length
    decode only   what decoding requests alone pass (their attention), beside prompts
    rows          vocabulary projection, by the rows that reach it
    drafts        what MTP runs once per request: projection and later drafts, over requests and
                  cache length

Which operator belongs where is seen from passes of prompts alone and of decoding alone; the few
that these cannot tell apart are named beside the operators (estimator.POOLED, estimator.ROWS). The
parts are priced by the estimator in a handful of calls and interpolated linearly between geometric
grids. Attention is that of the mean cache length: it is linear in it but for the shortest.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from paretoserve.errors import InputError
from paretoserve.estimator import POOLED, ROWS, Step, StepLatency, draft_latency, step_latency
from paretoserve.layout import Layout, Precision
from paretoserve.models.dimensions import Model
from paretoserve.operators.kernels import Kernels


@dataclass(frozen=True)
class Limits:
    """How far the tables reach: of one attention-dp rank and step, and of one request.

    `tokens` are prompt tokens, beside which all `requests` may decode. Longer caches go on with the
    last slope.
    """

    tokens: int
    requests: int
    isl: int
    kv_len: int


@dataclass(frozen=True)
class Surface:
    """Parts of a step in ms; `queries` tokens of each decoding request are verified in it.

    tokens (G,): with local_ms, pooled_ms, prompt_tokens_ms (G,)
    requests (B,), kv_len (K,): with decode_ms, decode_only_ms, draft_ms (B, K)
    rows (R,): with rows_ms (R,)
    prompts (P,), isl (I,): with prompt_ms (P, I), attention of one prompt of isl among so many
    """

    queries: int
    tokens: np.ndarray
    local_ms: np.ndarray
    pooled_ms: np.ndarray
    prompt_tokens_ms: np.ndarray
    requests: np.ndarray
    kv_len: np.ndarray
    decode_ms: np.ndarray
    decode_only_ms: np.ndarray
    draft_ms: np.ndarray
    rows: np.ndarray
    rows_ms: np.ndarray
    prompts: np.ndarray
    isl: np.ndarray
    prompt_ms: np.ndarray

    def decode_step_ms(self, requests: np.ndarray, kv_len: np.ndarray) -> np.ndarray:
        """A step of `requests` decoding requests with `kv_len` cached tokens on the mean, (N,)."""
        return _bilinear(self.requests, self.kv_len, self.decode_ms, requests, kv_len)

    def mixed_step_ms(
        self,
        prefill_tokens: np.ndarray,
        prompts: np.ndarray,
        isl: np.ndarray,
        requests: np.ndarray,
        kv_len: np.ndarray,
    ) -> np.ndarray:
        """A step of `prompts` (N,) prompts of `isl` tokens each beside decoding requests.

        As in estimator.Step, `prompts` below 1 is an even share of a split one.
        """
        tokens = prefill_tokens + requests * self.queries
        started = np.ceil(prompts)
        attention = prompts * _bilinear(
            self.prompts, self.isl, self.prompt_ms, np.maximum(prompts, 1), isl
        )
        mean_kv = np.where(requests > 0, kv_len, isl)
        decoding = _bilinear(self.requests, self.kv_len, self.decode_only_ms, requests, kv_len)
        drafts = _bilinear(self.requests, self.kv_len, self.draft_ms, started + requests, mean_kv)
        return (
            _linear(self.tokens, self.local_ms + self.pooled_ms, tokens)
            + _linear(self.tokens, self.prompt_tokens_ms, prefill_tokens)
            + attention
            + np.where(requests > 0, decoding, 0.0)
            + _linear(self.rows, self.rows_ms, started + requests * self.queries)
            + drafts
        )

    @cached_property
    def by_token(self) -> tuple[list[float], list[float], list[float]]:
        """local, pooled and prompt-token ms of 0, 1, 2, ... tokens up to the limit."""
        at = np.arange(int(self.tokens[-1]) + 1)
        parts = (self.local_ms, self.pooled_ms, self.prompt_tokens_ms)
        return tuple(_linear(self.tokens, part, at).tolist() for part in parts)

    @cached_property
    def by_row(self) -> list[float]:
        """Vocabulary projection of 0, 1, 2, ... rows up to the largest of the table."""
        at = np.arange(int(self.rows[-1]) + 1)
        return _linear(self.rows, self.rows_ms, at).tolist()

    def by_request(self, part: np.ndarray) -> np.ndarray:
        """Rows of a (B, K) part for 0, 1, 2, ... requests up to the largest of the table."""
        at = np.arange(int(self.requests[-1]) + 1)
        index, weight = _cell(self.requests, at)
        rows = part[index] * (1 - weight[:, None]) + part[index + 1] * weight[:, None]
        rows[0] = 0.0
        return rows

    @cached_property
    def _prompt_lists(self) -> dict[int, list[float]]:
        return {}

    def by_prompt_length(self, prompts: int) -> list[float]:
        """W of 0, 1, 2, ... tokens: attention of one prompt among `prompts` in the pass, in ms."""
        prompts = min(prompts, int(self.prompts[-1]))
        known = self._prompt_lists
        if prompts not in known:
            at = np.arange(int(self.isl[-1]) + 1)
            index, weight = _cell(self.prompts, np.array([prompts]))
            row = self.prompt_ms[index[0]] * (1 - weight[0]) + self.prompt_ms[index[0] + 1] * weight
            ms = np.interp(at, self.isl, row)
            ms[0] = 0.0
            known[prompts] = ms.tolist()
        return known[prompts]


def surface(
    model: Model,
    precision: Precision,
    layout: Layout,
    kernels: Kernels,
    limits: Limits,
    *,
    nextn: int = 0,
    wide_ep: bool = False,
) -> Surface:
    """Price the parts of the steps of one worker; `layout` has arrays of one element.

    InputError where an operator has no table.
    """
    queries = nextn + 1
    grids = _grids(limits, queries)
    b, k = _area(grids["requests"], grids["kv_len"])
    p, s = _area(grids["prompts"], grids["isl"])
    # prefill tokens, prompts, isl, decoding, cached; without prompts their tokens attend nothing
    # and reach no vocabulary
    passes = {
        "tokens": (grids["tokens"], 0, 1, 0, 1),
        "decoding": (0, 0, 1, b, k),
        "prompts": (1, p, s, 0, 1),
        "rows": (0, 0, 1, grids["rows"] / queries, 1),
    }

    def price(run, wanted: list[str], each: int) -> dict[str, dict[str, np.ndarray]]:
        """ms of each operator, by pass; `each` tokens of every decoding request."""
        parts = [np.stack(np.broadcast_arrays(*passes[name])).astype(float) for name in wanted]
        prefill_tokens, prompts, isl, decoding, kv_len = np.concatenate(parts, axis=1)
        step = Step(prefill_tokens, prompts, isl, decoding, kv_len[:, None], each)
        many = Layout(*(np.repeat(field, len(isl)) for field in vars(layout).values()))
        found = _checked(run(model, precision, many, step, kernels, wide_ep=wide_ep))
        ends = np.cumsum([part.shape[1] for part in parts])[:-1]
        split = {name: np.split(ms, ends) for name, ms in found.items()}
        return {part: {op: ms[i] for op, ms in split.items()} for i, part in enumerate(wanted)}

    ms = price(step_latency, list(passes), queries)
    later = np.zeros(len(b))
    if nextn:
        drafted = price(draft_latency, ["tokens", "decoding", "prompts"], queries)
        for part, operators in drafted.items():
            ms[part] |= {f"mtp_{name}": of_draft for name, of_draft in operators.items()}
    if nextn > 1:
        later = (nextn - 1) * _sum(price(draft_latency, ["decoding"], 1)["decoding"], None)
    return _assembled(ms, later, queries, grids)


def _grids(limits: Limits, queries: int) -> dict[str, np.ndarray]:
    # What prompts pass goes up to the token limit; what decodes, up to its own. A step has at most
    # as many prompts as tokens.
    tokens = limits.tokens + limits.requests * queries
    batches = [p for p in (1, 2, 3, 4, 6, 8, 16, 32, 64) if p <= max(limits.tokens // 16, 2)]
    return {
        "tokens": _with_edges(_grid(tokens, 16), 1),
        "requests": _with_edges(_grid(max(limits.requests, 2), 6), queries),
        "rows": _grid(tokens, 6),
        "kv_len": _grid(max(limits.kv_len, 2), 1, first=64),
        "prompts": np.array(batches),
        # A preempted request computes its answer so far like a prompt.
        "isl": _with_edges(_grid(max(limits.isl, limits.kv_len, 2), 4, first=16), 1),
    }


def _assembled(
    ms: dict[str, dict[str, np.ndarray]],
    later: np.ndarray,
    queries: int,
    grids: dict[str, np.ndarray],
) -> Surface:
    """Sort the operators: `ms` of each pass by operator, `later` drafts at the decoding passes."""
    tokens, decoding, prompts = ms["tokens"], ms["decoding"], ms["prompts"]
    projections = {name for name in decoding if name.removeprefix("mtp_") in ROWS}
    of_drafts = {name for name in projections if name.startswith("mtp_")}
    seen = {name for name, of_tokens in tokens.items() if of_tokens.any()} - projections
    decoded = {name for name, of_decoding in decoding.items() if of_decoding.any()} - projections
    pooled = {name for name in seen & decoded if name.removeprefix("mtp_") in POOLED}
    area = (len(grids["requests"]), len(grids["kv_len"]))
    of_prompts = _sum(prompts, set(prompts) - seen - projections)
    of_prompts = of_prompts.reshape(len(grids["prompts"]), -1) / grids["prompts"][:, None]
    return Surface(
        queries=queries,
        **grids,
        local_ms=_sum(tokens, (seen & decoded) - pooled),
        pooled_ms=_sum(tokens, pooled),
        prompt_tokens_ms=_sum(tokens, seen - decoded),
        decode_ms=(_sum(decoding, None) + later).reshape(area),
        decode_only_ms=_sum(decoding, decoded - seen).reshape(area),
        draft_ms=(_sum(decoding, of_drafts) + later).reshape(area),
        rows_ms=_sum(ms["rows"], projections - of_drafts),
        # A longer prompt never takes less: differences are the price of chunks.
        prompt_ms=np.maximum.accumulate(of_prompts, axis=1),
    )


def _checked(latency: StepLatency) -> dict[str, np.ndarray]:
    reason = next((reason for reason in latency.reasons if reason), "")
    if reason:
        raise InputError(reason)
    return dict(zip(latency.operators, latency.ms.T, strict=True))


def _sum(parts: dict[str, np.ndarray], names: set[str] | None) -> np.ndarray:
    """Sum over the operators of these names, over all for None."""
    size = len(next(iter(parts.values())))
    return sum((parts[n] for n in parts if names is None or n in names), np.zeros(size))


def _grid(last: int, per_octave: int, first: int = 1) -> np.ndarray:
    """Whole numbers from 1 to `last` at equal ratios; none but 1 below `first`."""
    octaves = np.log2(max(last / first, 1))
    steps = first * 2 ** (np.arange(int(octaves * per_octave) + 1) / per_octave)
    return np.unique(np.concatenate([[1], np.round(steps), [last]]).astype(int))


def _with_edges(grid: np.ndarray, each: int) -> np.ndarray:
    """Both sides of where kernels change: quarters of octaves from 16 on, `each` rows a point.

    Tiles are powers of two: most of their multiples are among these.
    """
    edges = np.outer(2 ** np.arange(2, 14), np.arange(4, 8)).ravel() // each
    edges = np.concatenate([edges, edges + 1])
    within = (edges > 0) & (edges < grid[-1])
    return np.unique(np.concatenate([grid, edges[within]]))


def _area(rows: np.ndarray, columns: np.ndarray) -> list[np.ndarray]:
    return [axis.ravel() for axis in np.meshgrid(rows, columns, indexing="ij")]


def _cell(grid: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the left end of each value's interval and its place in it, beyond 1 past the last.

    Below the first point its value is held.
    """
    if len(grid) == 1:
        raise ValueError("a grid needs two points")
    index = np.clip(np.searchsorted(grid, at, side="right") - 1, 0, len(grid) - 2)
    weight = (at - grid[index]) / (grid[index + 1] - grid[index])
    return index, np.maximum(weight, 0.0)


def _linear(grid: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Zero at zero."""
    index, weight = _cell(grid, at)
    found = values[index] * (1 - weight) + values[index + 1] * weight
    return np.where(np.asarray(at) > 0, found, 0.0)


def _bilinear(
    rows: np.ndarray, columns: np.ndarray, values: np.ndarray, row: np.ndarray, column: np.ndarray
) -> np.ndarray:
    i, u = _cell(rows, row)
    j, v = _cell(columns, column)
    near = values[i, j] * (1 - v) + values[i, j + 1] * v
    far = values[i + 1, j] * (1 - v) + values[i + 1, j + 1] * v
    return near * (1 - u) + far * u
