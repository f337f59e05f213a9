"""What a closed-loop benchmark measures: C clients, each with one request at a time.

All clients start at once. Lengths are drawn evenly from a range around the nominal ones; a client
sends its next request when its last one is done, until all requests are sent. The engine runs step
after step:

    mixed          every decoding request gets its tokens, prompts fill the rest of the token budget
    prefill_first  while prompts wait and have room, steps hold prompts alone and decoding waits

A prompt is admitted in order of arrival when a slot is free and the KV cache has room for it and
for the share of all unwritten answers that the engine reserves. Where that is not all and the cache
runs full, the request that came last is preempted: it waits at the head of the queue, and what it
had cached is computed again. What a step costs is the GPU's time from `Surface` and the host's from
`Host`: the larger, or their sum where they do not overlap.

Ranks of attention data parallelism run in lockstep: one step of all, as dear as the fullest rank.
Requests go round, so prompts and decoding requests are spread evenly over the ranks; a prompt is
computed by one rank. Pipeline stages hold one batch each; all batches are alike, one is simulated.

Steps of decoding alone differ only in the length of the caches, which grows evenly: up to the next
completion or arrival they are summed in one go, from the integral of the step over cache length.

Of a load of very many requests fewer waves are simulated, a wave being one request of each client:
after some, one is like the other. The last but one, which sees neither the burst at the start nor
the drain at the end, is counted again for those left out.
"""

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from math import ceil, inf

import numpy as np

from paretoserve.errors import InputError
from paretoserve.serving.surfaces import Surface

SOON = 1e-9  # steps: progress is counted in floats
NEVER = -1.0  # no step count
# Against all ten, replicas of gb200 with 5,568 to 15,808 clients have tpot, rates, p90 and p99 of
# ttft within 2 % so; where the burst still lasts, ttft's mean is 15 % larger, its p50 2.5 times.
LEAST_WAVES = 5


@dataclass(frozen=True)
class Host:
    """Time outside the GPU, in ms.

    decode_step, prefill_step : scheduler, launch and sampling of a step without and with prompts
    per_request : more of these, for every request in the batch of a rank
    per_prompt : the same for every prompt in the step
    overlapped : a step takes the larger of host and GPU time, else their sum
    request : HTTP, tokeniser, router: before a request reaches the scheduler, part of its ttft
    per_prompt_token : the same, per token of the prompt
    """

    decode_step_ms: float = 0.0
    prefill_step_ms: float = 0.0
    per_request_ms: float = 0.0
    per_prompt_ms: float = 0.0
    overlapped: bool = True
    request_ms: float = 0.0
    per_prompt_token_ms: float = 0.0

    def step_ms(self, gpu_ms: float, requests: float, prompts: float) -> float:
        """Cost of a step in which a rank holds so many decoding requests and prompts."""
        host_ms = (
            (self.prefill_step_ms if prompts else self.decode_step_ms)
            + self.per_request_ms * requests
            + self.per_prompt_ms * prompts
        )
        return max(gpu_ms, host_ms) if self.overlapped else gpu_ms + host_ms


@dataclass(frozen=True)
class Load:
    """Closed loop of `clients`; lengths are drawn from `range` x nominal, both ends included.

    `requests` None means ten for each client. Of more than `most_requests`, whole waves are left
    out in simulation, down to LEAST_WAVES.
    """

    clients: int
    isl: int
    osl: int
    requests: int | None = None
    isl_range: tuple[float, float] = (0.8, 1.0)
    osl_range: tuple[float, float] = (0.8, 1.0)
    seed: int = 0
    most_requests: int | None = None

    @property
    def total(self) -> int:
        """Requests of all clients."""
        return self.requests or 10 * self.clients

    def lengths(self, parts: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of each prompt and answer, of one of `parts` equal parts of the load."""
        count = ceil(self.total / parts)
        drawn = np.random.default_rng(self.seed)
        return tuple(
            drawn.integers(
                max(round(low * nominal), 1), max(round(high * nominal), 1), count, endpoint=True
            )
            for nominal, (low, high) in ((self.isl, self.isl_range), (self.osl, self.osl_range))
        )


@dataclass(frozen=True)
class Engine:
    """One aggregated worker; `max_batch`, `kv_capacity_tokens`, `token_budget` are of one rank.

    policy : "mixed" or "prefill_first"
    chunked : whether a prompt may be split over steps; if not, one beyond the budget runs alone
    kv_reserved : share of the unwritten tokens of all answers, its own included, that must be free
        when a prompt is admitted: 1 where the engine never preempts, 0 where it takes what is free
    tokens_per_step : of a decoding request, above 1 with MTP
    poll_steps : steps from one look for new requests to the next, while anything runs
    """

    surface: Surface
    max_batch: int
    kv_capacity_tokens: float
    token_budget: int
    policy: str = "mixed"
    chunked: bool = True
    kv_reserved: float = 1.0
    tokens_per_step: float = 1.0
    poll_steps: int = 1
    dp: int = 1
    pp: int = 1
    host: Host = field(default_factory=Host)


@dataclass(frozen=True)
class Disagg:
    """A replica of `prefill_workers` x `prefill` and `decode_workers` x `decode`.

    A prefill worker computes its batch of prompts in passes of up to its token budget. Meanwhile
    it sends the caches of those before, one after the other, each for `transfer_ms_per_token` x
    isl; `transfer_ms` later a decode worker with the fewest requests takes it. `first_token` is
    seen by the client when it is computed ("prefill"), when the cache has arrived ("transfer"), or
    when the decode worker has admitted the request ("admission").
    """

    prefill: Engine
    decode: Engine
    prefill_workers: int
    decode_workers: int
    transfer_ms: float = 0.0
    transfer_ms_per_token: float = 0.0
    first_token: str = "admission"


@dataclass(frozen=True)
class Tallies:
    """What explains the figures; shares are of the time until the last request is done."""

    decode_steps: int
    mixed_steps: int
    prefill_steps: int
    mean_decode_batch: float
    preemptions: int
    kv_wait_share: float
    slot_wait_share: float
    idle_share: float


@dataclass(frozen=True)
class Simulated:
    """Per request, in order of sending: ttft_ms, tpot_ms (NaN for one token), isl and osl (N,).

    Requests that are counted again come last. `duration_ms` from the start to the last answer;
    rates count all pipeline batches.
    """

    ttft_ms: np.ndarray
    tpot_ms: np.ndarray
    isl: np.ndarray
    osl: np.ndarray
    duration_ms: float
    batches: int
    tallies: Tallies

    @property
    def requests_per_s(self) -> float:
        return 1e3 * self.batches * len(self.ttft_ms) / self.duration_ms

    @property
    def tokens_per_s(self) -> float:
        return 1e3 * self.batches * float(self.osl.sum()) / self.duration_ms

    def summary(self) -> dict[str, float]:
        """Mean, p50, p90 and p99 of ttft and tpot, and the rates."""
        found = {}
        for name in ("ttft", "tpot"):
            ms = getattr(self, f"{name}_ms")
            ms = ms[np.isfinite(ms)]
            found[f"{name}_ms"] = float(ms.mean()) if len(ms) else np.nan
            values = np.percentile(ms, (50, 90, 99)) if len(ms) else [np.nan] * 3
            for share, value in zip((50, 90, 99), values, strict=True):
                found[f"{name}_p{share}_ms"] = float(value)
        return found | {"tokens_per_s": self.tokens_per_s, "requests_per_s": self.requests_per_s}


def simulate(load: Load, system: Engine | Disagg) -> Simulated:
    """Run the load to its end; InputError where a request can never be admitted.

    Tallies are those of the waves that are simulated.
    """
    most = max((load.most_requests or load.total) // load.clients, LEAST_WAVES)
    left_out = load.total // load.clients - most
    if left_out <= 0:
        return _run(load, system)
    found = _run(replace(load, requests=load.total - left_out * load.clients), system)
    return _longer(found, ceil(load.clients / found.batches), left_out)


def _run(load: Load, system: Engine | Disagg) -> Simulated:
    if isinstance(system, Disagg):
        return _disaggregated(load, system)
    return _aggregated(load, system)


def _longer(found: Simulated, clients: int, waves: int) -> Simulated:
    """With the last but one wave of so many clients counted so many times more.

    In a closed loop a wave takes as long as its requests do on the mean (Little's law).
    """
    again = slice(-2 * clients, -clients)
    ttft_ms, tpot_ms, isl, osl = (
        np.concatenate([values, np.tile(values[again], waves)])
        for values in (found.ttft_ms, found.tpot_ms, found.isl, found.osl)
    )
    answer_ms = np.nan_to_num(found.tpot_ms[again]) * (found.osl[again] - 1)
    wave_ms = float(np.mean(found.ttft_ms[again] + answer_ms))
    return replace(
        found,
        ttft_ms=ttft_ms,
        tpot_ms=tpot_ms,
        isl=isl,
        osl=osl,
        duration_ms=found.duration_ms + waves * wave_ms,
    )


class _DecodeCost:
    """Steps of decoding alone and their sums, from the integral of a step over cache length."""

    def __init__(self, engine: Engine):
        self.gpu = engine.surface.by_request(engine.surface.decode_ms)
        self.kv_len = engine.surface.kv_len.tolist()
        self.host, self.dp, self.pace = engine.host, engine.dp, engine.tokens_per_step
        self.curves: dict[int, tuple[list[float], ...]] = {}

    def _curve(self, batch: int) -> tuple[list[float], ...]:
        """Of `batch` requests over all ranks: cache lengths; ms, slope and area from there on.

        Where the host begins or ceases to be the longer is a point of its own.
        """
        b = min(-(-batch // self.dp), len(self.gpu) - 1)
        if b not in self.curves:
            gpu, host_ms = self.gpu[b].tolist(), self.host.step_ms(0.0, b, 0)
            at, ms = [float(x) for x in self.kv_len], gpu
            if self.host.overlapped:
                at, ms = _larger(at, gpu, host_ms)
            else:
                ms = [x + host_ms for x in gpu]
            slope, area = [], [0.0]
            for i in range(len(at) - 1):
                width = at[i + 1] - at[i]
                slope.append((ms[i + 1] - ms[i]) / width)
                area.append(area[-1] + (ms[i + 1] + ms[i]) / 2 * width)
            slope.append(slope[-1])
            self.curves[b] = at, ms, slope, area
        return self.curves[b]

    def step(self, batch: int, kv_len: float) -> float:
        """One step of `batch` requests."""
        at, ms, slope, _ = self._curve(batch)
        i = max(bisect_right(at, kv_len) - 1, 0)
        return ms[i] + slope[i] * (kv_len - at[i])

    def steps(self, batch: int, kv_len: float, count: int) -> float:
        """`count` steps, the first at `kv_len`, each longer by the tokens of a step."""
        if count == 1:
            return self.step(batch, kv_len)
        curve, start = self._curve(batch), kv_len - self.pace / 2
        return (_area(curve, start + count * self.pace) - _area(curve, start)) / self.pace

    def count_until(self, batch: int, kv_len: float, gap_ms: float, most: int) -> int:
        """Steps until at least `gap_ms` have passed, at least 1 and at most `most`."""
        if most <= 1:
            return 1
        first = self.step(batch, kv_len)
        if first >= gap_ms:
            return 1
        curve, pace = self._curve(batch), self.pace
        start = kv_len - pace / 2
        before = _area(curve, start)
        end = before + gap_ms * pace
        # A step hardly changes: steps like the first are right or nearly so.
        low, high = 1, most  # low steps take less than the gap; high steps are enough
        guess = int(gap_ms / first) + 1
        while high - low > 1:
            guess = min(max(guess, low + 1), high - 1)
            area = _area(curve, start + guess * pace)
            if area >= end:
                high = guess
            else:
                low = guess
            # The mean so far; the far side of it is closed in steps of one.
            guess = int(gap_ms * pace * guess / (area - before)) + (area < end)
        return high


def _area(curve: tuple[list[float], ...], kv_len: float) -> float:
    at, ms, slope, area = curve
    i = max(bisect_right(at, kv_len) - 1, 0)
    beyond = kv_len - at[i]
    return area[i] + beyond * (ms[i] + slope[i] * beyond / 2)


def _larger(at: list[float], ms: list[float], floor: float) -> tuple[list[float], list[float]]:
    """The larger of a curve and a constant, with a point where they cross."""
    points, values = at[:1], [max(ms[0], floor)]
    for i in range(1, len(at)):
        if (ms[i - 1] - floor) * (ms[i] - floor) < 0:
            share = (floor - ms[i - 1]) / (ms[i] - ms[i - 1])
            points.append(at[i - 1] + share * (at[i] - at[i - 1]))
            values.append(floor)
        points.append(at[i])
        values.append(max(ms[i], floor))
    return points, values


class _PromptCost:
    """Steps that hold prompts, and decoding requests beside them."""

    def __init__(self, engine: Engine):
        surface = engine.surface
        self.local, self.pooled, self.prompt_tokens = surface.by_token
        self.rows = surface.by_row
        self.surface, self.host, self.dp = surface, engine.host, engine.dp
        self.queries = surface.queries
        self.budget = engine.token_budget
        self.grid, self.last_kv = surface.kv_len.tolist(), len(surface.kv_len) - 2
        self.decode = surface.by_request(surface.decode_only_ms).tolist()
        self.draft = surface.by_request(surface.draft_ms).tolist() if self.queries > 1 else None

    def __call__(self, chunks: list[tuple[int, int]], batch: int, kv_sum: float) -> float:
        """`chunks` are (from, to) positions of prompts; `batch` requests decode, 0 if none may."""
        count, dp = len(chunks), self.dp
        tokens = sum(q - p for p, q in chunks)
        # The fullest rank holds so many of the prompts, and so many decoding requests.
        full, beside = -(-count // dp), -(-batch // dp)
        prompt_tokens = tokens
        if dp > 1:
            longest, mean = max(q - p for p, q in chunks), tokens / count
            prompt_tokens = ceil(mean * (full - 1) + longest)
            prompt_tokens = min(prompt_tokens, tokens, max(self.budget, longest))
        rank_tokens = prompt_tokens + beside * self.queries
        pooled = -(-(tokens + batch * self.queries) // dp)
        whole = self.surface.by_prompt_length(full)
        attention = sum(whole[q] - whole[p] + (whole[1] if p else 0.0) for p, q in chunks)
        ms = self.local[rank_tokens] + self.pooled[pooled] + self.prompt_tokens[prompt_tokens]
        ms += attention * prompt_tokens / tokens
        if beside:
            ms += self._at(self.decode[min(beside, len(self.decode) - 1)], kv_sum / batch)
        ms += self.rows[full + beside * self.queries]
        if self.draft:
            length = kv_sum / batch if beside else tokens / count
            ms += self._at(self.draft[min(full + beside, len(self.draft) - 1)], length)
        return self.host.step_ms(ms, beside, full)

    def _at(self, row: list[float], kv_len: float) -> float:
        grid = self.grid
        j = bisect_right(grid, kv_len) - 1
        j = 0 if j < 0 else min(j, self.last_kv)
        return row[j] + (row[j + 1] - row[j]) * (kv_len - grid[j]) / (grid[j + 1] - grid[j])


def _aggregated(load: Load, engine: Engine) -> Simulated:
    isl_drawn, osl_drawn = load.lengths(engine.pp)
    total, dp, pace = len(isl_drawn), engine.dp, engine.tokens_per_step
    clients = min(ceil(load.clients / engine.pp), total)
    host, queries, reserved = engine.host, engine.surface.queries, engine.kv_reserved
    length = isl_drawn.tolist()  # tokens to compute before a request decodes
    whole = (isl_drawn + osl_drawn).tolist()
    left = np.ceil((osl_drawn - 1) / pace).tolist()  # decode steps
    before = (host.request_ms + host.per_prompt_token_ms * isl_drawn).tolist()
    slots, capacity = engine.max_batch * dp, engine.kv_capacity_tokens * dp
    longest = int(engine.surface.isl[-1])
    _check_fits(whole, engine)
    _check_reach(engine, max(length), -(-min(clients, slots) // dp))
    prompt_cost, decode_cost = _PromptCost(engine), _DecodeCost(engine)
    mixed, chunked, budget = engine.policy == "mixed", engine.chunked, engine.token_budget
    # Without drafts to verify, ranks that have no prompt of the step decode in it.
    others_decode = not mixed and dp > 1 and queries == 1

    sent, first, done = [0.0] * total, [0.0] * total, [0.0] * total
    arriving = [(before[i], i) for i in range(clients)]
    heapify(arriving)
    waiting, partial = deque(), []  # partial: [request, tokens computed]
    # What decodes: (step count at which it is done, request), void where `end` says otherwise.
    ends, end, admitted = [], [NEVER] * total, []
    batch, counter = 0, 0.0
    # Caches hold base + batch * pace * counter tokens, each own + pace * counter; and of prompts in
    # computation. promised: all that requests in the engine will hold.
    base, own, computing, promised = 0.0, [0.0] * total, 0, 0
    now, issued, finished = 0.0, clients, 0
    decode_steps = mixed_steps = prefill_steps = preemptions = 0
    poll, polled = engine.poll_steps, 0  # polled: steps at which the next look is due
    batch_steps, kv_wait, slot_wait, idle = 0.0, 0.0, 0.0, 0.0

    def finish(i: int) -> None:
        nonlocal finished, promised, issued
        done[i] = now
        finished += 1
        promised -= whole[i]
        if issued < total:
            sent[issued] = now
            heappush(arriving, (now + before[issued], issued))
            issued += 1

    def make_room(cached: float) -> tuple[float, str]:
        """Preempt until the next decode step fits; return what stays cached, and what blocks."""
        nonlocal base, batch, promised, preemptions
        blocked = ""
        while batch > 1 and cached + batch * pace > capacity:
            i = admitted.pop()
            if end[i] == NEVER:  # done, or preempted and not back
                continue
            cached -= own[i] + pace * counter
            base -= own[i]
            batch -= 1
            promised -= whole[i]
            length[i] = min(ceil(own[i] + pace * counter - 1), longest)
            left[i], end[i] = end[i] - counter, NEVER
            waiting.appendleft(i)
            preemptions += 1
            blocked = "kv"
        return cached, blocked

    while finished < total:
        steps = decode_steps + mixed_steps + prefill_steps
        if steps >= polled or not (batch or partial or waiting):
            while arriving and arriving[0][0] <= now:
                waiting.append(heappop(arriving)[1])
            polled = (steps // poll + 1) * poll
        cached = base + batch * pace * counter + computing
        blocked = ""
        if mixed and reserved < 1:
            cached, blocked = make_room(cached)
        chunks: list[tuple[int, int]] = []
        ending: list[int] = []
        if waiting or partial:
            decoded = batch * queries if mixed else 0
            free, most = budget * dp - decoded, budget - -(-decoded // dp)
            kept = []
            for entry in partial:
                i, p = entry
                take = min(length[i] - p, most, free)
                if take <= 0:
                    kept.append(entry)
                    continue
                chunks.append((p, p + take))
                free -= take
                if p + take == length[i]:
                    ending.append(i)
                else:
                    kept.append([i, p + take])
            in_engine = batch + len(partial)
            while waiting and not blocked:
                i = waiting[0]
                if in_engine >= slots:
                    blocked = "slot"
                    break
                tokens = length[i]
                holds = cached + tokens
                grows = reserved * (promised + whole[i] - holds)
                if reserved < 1:  # who is preempted does not come back at once
                    grows = max(grows, 2 * (in_engine + 1) * pace)
                if in_engine and holds + grows > capacity:
                    blocked = "kv"
                    break
                if chunked:
                    take = min(tokens, most, free)
                    if take <= 0:
                        break
                elif (tokens <= most and tokens <= free) or not chunks:
                    take = tokens
                else:
                    break
                waiting.popleft()
                cached = holds
                computing += tokens
                promised += whole[i]
                in_engine += 1
                chunks.append((0, take))
                free -= take
                if take == tokens:
                    ending.append(i)
                else:
                    kept.append([i, take])
            partial = kept
        if not (mixed or chunks) and reserved < 1:
            cached, full = make_room(cached)
            blocked = blocked or full

        before_step = now
        if chunks:
            decoding = batch if mixed else 0
            now += prompt_cost(chunks, decoding, base + batch * pace * counter)
            if decoding:
                mixed_steps += 1
                counter += 1.0
            else:
                prefill_steps += 1
                if others_decode and batch:
                    counter += max(1.0 - len(chunks) / dp, 0.0)
        elif batch:
            while end[ends[0][1]] != ends[0][0]:
                heappop(ends)
            count = ceil(ends[0][0] - counter - SOON)
            if reserved < 1 and batch > 1:
                count = max(min(count, int((capacity - cached) / (batch * pace))), 1)
            kv_len = base / batch + pace * counter
            if arriving and batch + len(partial) < slots and not blocked:
                seen = decode_cost.count_until(batch, kv_len, arriving[0][0] - now, count)
                seen = max(polled, -(-(steps + seen) // poll) * poll) - steps
                count = min(seen, count)
            now += decode_cost.steps(batch, kv_len, count)
            counter += count
            decode_steps += count
            batch_steps += batch * count
        else:
            idle += arriving[0][0] - now
            now = arriving[0][0]
            continue
        if blocked == "kv":
            kv_wait += now - before_step
        elif blocked:
            slot_wait += now - before_step

        while ends and ends[0][0] <= counter + SOON:
            at, i = heappop(ends)
            if at != end[i]:
                continue
            base -= own[i]
            batch -= 1
            end[i] = NEVER
            finish(i)
        for i in ending:
            computing -= length[i]
            first[i] = first[i] or now
            if left[i]:
                end[i], own[i] = counter + left[i], length[i] + 1 - pace * counter
                base += own[i]
                batch += 1
                heappush(ends, (end[i], i))
                if reserved < 1:
                    admitted.append(i)
            else:
                finish(i)

    tallies = Tallies(
        decode_steps,
        mixed_steps,
        prefill_steps,
        batch_steps / decode_steps if decode_steps else 0.0,
        preemptions,
        kv_wait / now,
        slot_wait / now,
        idle / now,
    )
    return _simulated(sent, first, done, isl_drawn, osl_drawn, now, engine.pp, tallies)


def _simulated(sent, first, done, isl, osl, duration_ms, batches, tallies) -> Simulated:
    first = np.array(first)
    after_first = np.where(osl > 1, (np.array(done) - first) / np.maximum(osl - 1, 1), np.nan)
    return Simulated(first - np.array(sent), after_first, isl, osl, duration_ms, batches, tallies)


def _check_fits(tokens: list[int], engine: Engine) -> None:
    if max(tokens) > engine.kv_capacity_tokens:
        raise InputError(
            f"a request takes {max(tokens)} tokens of KV cache, "
            f"more than the {engine.kv_capacity_tokens:.0f} that a rank holds"
        )


def _check_reach(engine: Engine, isl: int, requests: int) -> None:
    """ValueError unless the surface was made for steps as large as these."""
    surface = engine.surface
    tokens = max(engine.token_budget, isl) + requests * surface.queries
    if tokens > surface.tokens[-1] or isl > surface.isl[-1] or requests > surface.requests[-1]:
        raise ValueError(
            f"steps of {tokens} tokens, {requests} requests and prompts of {isl} are beyond the "
            f"surface ({surface.tokens[-1]}, {surface.requests[-1]}, {surface.isl[-1]})"
        )


class _DecodeWorker:
    """A decode worker between events: at a step's boundary, followed by a run of like steps."""

    def __init__(self, engine: Engine, cost: _DecodeCost):
        self.cost, self.pace, self.pp = cost, engine.tokens_per_step, engine.pp
        self.slots = engine.max_batch * engine.dp * engine.pp
        self.capacity = engine.kv_capacity_tokens * engine.dp * engine.pp
        # Caches hold base + len(running) * pace * counter tokens.
        self.time, self.counter, self.base, self.held = 0.0, 0.0, 0.0, 0.0
        self.running: list[tuple[float, int]] = []  # (step count at which it is done, request)
        self.queue: deque[int] = deque()
        # The run that is under way: its number (the end of an older one is void), steps and end.
        self.run, self.count, self.end = 0, 0, 0.0
        self.steps, self.batch_steps = 0, 0.0
        self.kv_wait_ms, self.slot_wait_ms = 0.0, 0.0

    def has_room(self, tokens: float) -> bool:
        return len(self.running) < self.slots and self.held + tokens <= self.capacity

    def start(self, moment: float) -> float:
        """An idle worker has a boundary now, which all that arrive now can join."""
        self.run, self.count, self.end = self.run + 1, 0, moment
        return moment

    def run_until(self, moment: float) -> float:
        """Plan a run up to the first boundary from `moment` on, or a completion; return its end."""
        count = len(self.running)
        batch, kv_len = -(-count // self.pp), self.base / count + self.pace * self.counter
        self.count = ceil(self.running[0][0] - self.counter - SOON)
        if moment < inf:
            self.count = self.cost.count_until(batch, kv_len, moment - self.time, self.count)
        self.run += 1
        self.end = self.time + self.cost.steps(batch, kv_len, self.count)
        return self.end

    def finish_run(self) -> None:
        if self.queue and self.running:
            if len(self.running) >= self.slots:
                self.slot_wait_ms += self.end - self.time
            else:
                self.kv_wait_ms += self.end - self.time
        self.time = self.end
        self.counter += self.count
        self.steps += self.count
        self.batch_steps += self.count * len(self.running)

    def completed(self) -> bool:
        return bool(self.running) and self.running[0][0] <= self.counter + SOON


ARRIVED, COMPUTED, MOVED, STEPPED = range(4)


def _disaggregated(load: Load, system: Disagg) -> Simulated:
    isl_drawn, osl_drawn = load.lengths()
    isl = isl_drawn.tolist()
    total, clients = len(isl), min(load.clients, len(isl))
    prefill, decode, host = system.prefill, system.decode, system.prefill.host
    pace = decode.tokens_per_step
    steps_of = np.ceil((osl_drawn - 1) / pace).astype(int).tolist()
    before = (host.request_ms + host.per_prompt_token_ms * isl_drawn).tolist()
    sending = (system.transfer_ms_per_token * isl_drawn).tolist()
    # Caches that come from afar are not computed again: what is admitted, on the mean, stays.
    reserved = (isl_drawn + max(decode.kv_reserved, 0.5) * osl_drawn).tolist()
    _check_fits((isl_drawn + osl_drawn).tolist(), decode)
    _check_reach(prefill, max(isl), 0)
    prompt_cost, decode_cost = _PromptCost(prefill), _DecodeCost(decode)
    workers = [_DecodeWorker(decode, decode_cost) for _ in range(system.decode_workers)]
    loads = [0] * len(workers)  # requests of each, running or queued

    sent, first, done, started = ([0.0] * total for _ in range(4))
    events = [(before[i], ARRIVED, i, 0) for i in range(clients)]
    heapify(events)
    waiting: deque[int] = deque()
    # A pipeline takes the next batch when its first stage is free: each stage counts as a worker.
    free, passes = sorted(list(range(system.prefill_workers)) * prefill.pp), 0
    sent_until = [0.0] * system.prefill_workers  # by each, one cache after the other
    issued, finished, now = clients, 0, 0.0

    def finish(i: int, moment: float) -> None:
        nonlocal issued, finished
        done[i] = moment
        finished += 1
        if issued < total:
            sent[issued] = moment
            heappush(events, (moment + before[issued], ARRIVED, issued, 0))
            issued += 1

    def step(index: int) -> None:
        """At a boundary requests leave and join; then the next run begins."""
        worker = workers[index]
        while worker.completed():
            i = heappop(worker.running)[1]
            worker.base -= isl[i] + 1 - pace * started[i]
            worker.held -= reserved[i]
            loads[index] -= 1
            finish(i, worker.time)
        while worker.queue and worker.has_room(reserved[worker.queue[0]]):
            i = worker.queue.popleft()
            if system.first_token == "admission":
                first[i] = worker.time
            if not steps_of[i]:
                loads[index] -= 1
                finish(i, max(worker.time, first[i]))
                continue
            worker.held += reserved[i]
            started[i] = worker.counter
            worker.base += isl[i] + 1 - pace * worker.counter
            heappush(worker.running, (worker.counter + steps_of[i], i))
        if worker.running:
            heappush(events, (worker.run_until(inf), STEPPED, index, worker.run))

    while finished < total:
        now, kind, what, run = heappop(events)
        if kind == ARRIVED:
            waiting.append(what)
        elif kind == COMPUTED:
            heappush(free, run)
            for i in what:
                if system.first_token == "prefill":
                    first[i] = now
                sent_until[run] = max(sent_until[run], now) + sending[i]
                heappush(events, (sent_until[run] + system.transfer_ms, MOVED, i, 0))
        elif kind == MOVED:
            index = loads.index(min(loads))
            loads[index] += 1
            if system.first_token == "transfer":
                first[what] = now
            worker = workers[index]
            worker.queue.append(what)
            if not worker.running:
                heappush(events, (worker.start(now), STEPPED, index, worker.run))
            elif len(worker.queue) == 1 and worker.has_room(reserved[what]):
                heappush(events, (worker.run_until(now), STEPPED, index, worker.run))
        elif run == workers[what].run:
            workers[what].finish_run()
            step(what)
        # Prompts that arrive together are taken together.
        if not (events and events[0][0] <= now and events[0][1] == ARRIVED):
            while free and waiting:
                prompts, took, count = _prefill_batch(waiting, isl, prefill, prompt_cost)
                passes += count
                heappush(events, (now + took, COMPUTED, prompts, heappop(free)))

    end, steps = max(done), sum(worker.steps for worker in workers)
    tallies = Tallies(
        decode_steps=steps,
        mixed_steps=0,
        prefill_steps=passes,
        mean_decode_batch=sum(w.batch_steps for w in workers) / steps if steps else 0.0,
        preemptions=0,
        kv_wait_share=sum(w.kv_wait_ms for w in workers) / (end * len(workers)),
        slot_wait_share=sum(w.slot_wait_ms for w in workers) / (end * len(workers)),
        idle_share=0.0,
    )
    return _simulated(sent, first, done, isl_drawn, osl_drawn, end, 1, tallies)


def _prefill_batch(
    waiting: deque[int], isl: list[int], engine: Engine, cost: _PromptCost
) -> tuple[tuple[int, ...], float, int]:
    """Take a worker's next prompts: which, how long they take, in how many passes.

    As many as fit the token budget; prompts beyond it are computed one per rank, in chunks if the
    engine splits prompts.
    """
    dp, budget = engine.dp, engine.token_budget
    taken = [waiting.popleft()]
    tokens = isl[taken[0]]
    if tokens > budget:
        while waiting and len(taken) < dp and isl[waiting[0]] > budget:
            taken.append(waiting.popleft())
        longest = max(isl[i] for i in taken)
        width = budget if engine.chunked else longest
        starts = range(0, longest, width)
        chunks = [[(p, min(p + width, isl[i])) for i in taken if isl[i] > p] for p in starts]
        return tuple(taken), sum(cost(each, 0, 0.0) for each in chunks), len(starts)
    while waiting and len(taken) < engine.max_batch * dp:
        tokens += isl[waiting[0]]
        if tokens > budget * dp or isl[waiting[0]] > budget:
            break
        taken.append(waiting.popleft())
    return tuple(taken), cost([(0, isl[i]) for i in taken], 0, 0.0), 1
