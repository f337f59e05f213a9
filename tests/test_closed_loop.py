"""The closed-loop simulation, against arithmetic by hand and a plain simulation of every step."""

from dataclasses import dataclass, replace
from math import ceil

import numpy as np
import pytest

from paretoserve.errors import InputError
from paretoserve.serving.closed_loop import Disagg, Engine, Host, Load, simulate
from paretoserve.serving.surfaces import Surface

EXACT = ((1.0, 1.0), (1.0, 1.0))


def linear(
    step=2.0, token=0.01, prompt_token=0.0, pair=0.0, request=0.05, cached=1e-4, row=0.0, queries=1
) -> Surface:
    """A surface of plain formulas; between grid points of linear parts interpolation is exact.

    A pass costs `step` + `token` per token + `row` per row; prompts `prompt_token` per token and
    `pair` x isl^2 of attention; decoding requests `request` each and `cached` per cached token.
    """
    tokens, requests, kv_len = np.array([1, 9000]), np.array([1, 9000]), np.array([1, 9000])
    isl = np.arange(1, 2001)
    b, kv = np.meshgrid(requests, kv_len, indexing="ij")
    alone = b * request + b * kv * cached
    return Surface(
        queries=queries,
        tokens=tokens,
        local_ms=step + token * tokens,
        pooled_ms=0.0 * tokens,
        prompt_tokens_ms=prompt_token * tokens,
        requests=requests,
        kv_len=kv_len,
        decode_ms=step + (token + row) * queries * b + alone,
        decode_only_ms=alone,
        draft_ms=0.0 * b,
        rows=requests,
        rows_ms=row * requests,
        prompts=np.array([1, 64]),
        isl=isl,
        prompt_ms=np.stack([pair * isl**2.0] * 2),
    )


CONSTANT = linear(step=10.0, token=0.0, request=0.0, cached=0.0)


def load(clients, isl, osl, requests=None, ranges=EXACT, seed=0) -> Load:
    return Load(clients, isl, osl, requests, *ranges, seed)


def engine(surface=CONSTANT, **fields) -> Engine:
    given = {"max_batch": 64, "kv_capacity_tokens": 1e9, "token_budget": 512} | fields
    return Engine(surface, **given)


def test_one_client():
    """100 tokens fit one step of 10 ms; the other 20 tokens take a step each."""
    found = simulate(load(1, 100, 21), engine())
    assert len(found.ttft_ms) == 10
    assert found.ttft_ms == pytest.approx(10)
    assert found.tpot_ms == pytest.approx(10)
    assert found.duration_ms == pytest.approx(10 * 21 * 10)
    assert found.tokens_per_s == pytest.approx(100)
    assert (found.tallies.decode_steps, found.tallies.prefill_steps) == (200, 10)


def test_a_long_prompt_takes_a_step_for_each_chunk():
    assert simulate(load(1, 1100, 5), engine()).ttft_ms == pytest.approx(30)
    whole = simulate(load(1, 1100, 5), engine(chunked=False))
    assert whole.ttft_ms == pytest.approx(10)


def test_two_clients_on_one_slot():
    """The second waits for the whole answer of the first, then they alternate."""
    found = simulate(load(2, 100, 6, requests=6), engine(max_batch=1))
    assert found.ttft_ms == pytest.approx([10, 70, 70, 70, 70, 70])
    assert found.tpot_ms == pytest.approx(10)
    assert found.tallies.slot_wait_share > 0.7


def test_no_cache_makes_requests_wait():
    """Room for two requests of 106 reserved tokens: the third starts when the first two end."""
    waits = simulate(load(3, 100, 6, requests=3), engine(kv_capacity_tokens=215))
    assert waits.ttft_ms == pytest.approx([10, 10, 70])
    assert waits.tallies.kv_wait_share == pytest.approx(60 / 120)
    roomy = simulate(load(3, 100, 6, requests=3), engine(kv_capacity_tokens=318))
    assert roomy.ttft_ms == pytest.approx(10)
    assert roomy.tallies.kv_wait_share == 0
    with pytest.raises(InputError, match="takes 106 tokens"):
        simulate(load(1, 100, 6), engine(kv_capacity_tokens=105))


@pytest.mark.parametrize(
    ("policy", "ttft", "tpot"),
    [("mixed", [10, 20], [10, 10]), ("prefill_first", [10, 20], [12.5, 10])],
)
def test_policies(policy, ttft, tpot):
    """Two whole prompts of 400 in steps of 512: one decodes beside the other, or waits for it."""
    found = simulate(load(2, 400, 5, requests=2), engine(policy=policy, chunked=False))
    assert found.ttft_ms == pytest.approx(ttft)
    assert found.tpot_ms == pytest.approx(tpot)


def test_a_full_cache_preempts_who_came_last():
    """Two of 100 + 100 tokens in a cache of 250, admitted for what they take at once.

    After the prompts' step each step adds two tokens: caches of 101 + n each, so the step that
    would hold 2 x 126 is not run; the second waits for the first's 99 - 24 further steps, computes
    its 124 tokens again in one step, and decodes the rest alone.
    """
    found = simulate(load(2, 100, 100, requests=2), engine(kv_capacity_tokens=250, kv_reserved=0.0))
    assert found.tallies.preemptions == 1
    assert found.ttft_ms == pytest.approx(10)
    assert found.tpot_ms * 99 == pytest.approx([990, 990 + 10 + (99 - 24) * 10])
    never = simulate(load(2, 100, 100, requests=2), engine(kv_capacity_tokens=250))
    assert never.tallies.preemptions == 0
    assert never.ttft_ms == pytest.approx([10, 1010])


def test_two_tokens_per_step():
    """10 tokens after the first take 5 steps; 11 take 6."""
    fast = engine(linear(10.0, 0, 0, 0, 0, 0, queries=2), tokens_per_step=2.0)
    assert simulate(load(1, 100, 11), fast).tpot_ms == pytest.approx(5)
    assert simulate(load(1, 100, 12), fast).tpot_ms == pytest.approx(60 / 11)


def test_host_time():
    """Beside the GPU the host hides behind it, in turn it adds; HTTP is part of ttft alone."""
    host = Host(
        decode_step_ms=4, prefill_step_ms=15, per_request_ms=1, per_prompt_ms=2, request_ms=3
    )
    found = simulate(load(1, 100, 11, requests=2), engine(host=host))
    assert found.ttft_ms == pytest.approx(3 + 17)
    assert found.tpot_ms == pytest.approx(10)
    turns = simulate(load(1, 100, 11, requests=2), engine(host=replace(host, overlapped=False)))
    assert turns.ttft_ms == pytest.approx(3 + 17 + 10)
    assert turns.tpot_ms == pytest.approx(15)
    assert turns.duration_ms == pytest.approx(2 * (30 + 150))


def test_ranks_share_their_steps():
    """4 ranks with a prompt each take one step; 5 prompts of nearly a whole budget take two."""
    four = engine(dp=4, token_budget=101, max_batch=8)
    assert simulate(load(4, 100, 6, requests=4), four).ttft_ms == pytest.approx(10)
    five = simulate(load(5, 100, 6, requests=5), four)
    assert sorted(five.ttft_ms) == pytest.approx([10, 10, 10, 10, 20])
    # A prompt is computed by one rank, whatever the others do.
    assert simulate(load(1, 300, 6, requests=1), four).ttft_ms == pytest.approx(30)


def test_stages_hold_a_batch_each():
    one = simulate(load(8, 100, 50), engine())
    two = simulate(load(16, 100, 50), engine(pp=2))
    assert two.ttft_ms == pytest.approx(one.ttft_ms)
    assert two.tokens_per_s == pytest.approx(2 * one.tokens_per_s)


def test_disagg_by_hand():
    """Two prompts in one pass (10 ms), sent one after the other in 100 x 0.01 ms, 5 ms on the way,
    then 10 ms a token: the second arrives at 17 and joins when the first step ends.
    """
    replica = Disagg(engine(), engine(), 1, 1, 5.0, 0.01)
    found = simulate(load(2, 100, 6, requests=2), replica)
    assert found.ttft_ms == pytest.approx([16, 26])
    assert found.tpot_ms == pytest.approx(10)
    early = simulate(load(2, 100, 6, requests=2), replace(replica, first_token="prefill"))
    assert early.ttft_ms == pytest.approx(10)
    assert early.tpot_ms == pytest.approx([(6 + 50) / 5, (16 + 50) / 5])
    # One prompt per pass and one worker: the second waits for a pass; two workers: it does not.
    alone = replace(replica, prefill=engine(max_batch=1))
    assert simulate(load(2, 100, 6, requests=2), alone).ttft_ms[1] >= 26
    both = replace(alone, prefill_workers=2)
    assert simulate(load(2, 100, 6, requests=2), both).ttft_ms == pytest.approx(16)


def test_little_s_law_and_throughput():
    """Clients = rate x mean time in the system, up to the ramps at both ends."""
    system = engine(linear(pair=1e-5), max_batch=32, token_budget=256)
    found = simulate(load(48, 300, 200, requests=4800, ranges=((0.8, 1), (0.8, 1))), system)
    in_system_ms = found.ttft_ms + found.tpot_ms * (found.osl - 1)
    assert found.requests_per_s / 1e3 * in_system_ms.mean() == pytest.approx(48, rel=0.01)
    assert found.tokens_per_s == pytest.approx(1e3 * found.osl.sum() / found.duration_ms)
    assert found.osl.min() >= 160
    assert found.osl.max() <= 200
    summary = found.summary()
    assert summary["ttft_p50_ms"] <= summary["ttft_p90_ms"] <= summary["ttft_p99_ms"]


@pytest.mark.parametrize("workers", [0, 3])
def test_a_load_cut_short_is_near_the_whole(workers):
    """Six of ten waves, the fifth counted five times. The 90th percentile of ttft falls between the
    burst's tenth of the requests and all others: any draw moves it."""
    system = engine(linear(pair=1e-5), max_batch=512, token_budget=2048)
    if workers:
        system = Disagg(system, system, prefill_workers=workers, decode_workers=1)
    whole = Load(300, 300, 200)
    cut = replace(whole, most_requests=1800)
    found, all_waves = simulate(cut, system), simulate(whole, system)
    assert found.tallies.decode_steps < 0.8 * all_waves.tallies.decode_steps
    for name in ("ttft_ms", "tpot_ms", "isl", "osl"):
        assert len(getattr(found, name)) == 3000
    summaries = found.summary(), all_waves.summary()
    for summary in summaries:
        del summary["ttft_p90_ms"]
    assert summaries[0] == pytest.approx(summaries[1], rel=0.05)
    assert summaries[0]["requests_per_s"] == pytest.approx(summaries[1]["requests_per_s"], rel=0.01)


def test_few_waves_are_all_simulated():
    system = engine(linear(), token_budget=256)
    whole = Load(20, 300, 60, requests=100)
    cut = replace(whole, most_requests=40)
    assert np.array_equal(simulate(cut, system).ttft_ms, simulate(whole, system).ttft_ms)


def test_same_seed_same_answer():
    system = engine(linear(), token_budget=256)
    ranges = ((0.8, 1.0), (0.5, 1.0))
    one, two = (simulate(load(20, 300, 60, ranges=ranges), system) for _ in range(2))
    assert np.array_equal(one.ttft_ms, two.ttft_ms)
    assert np.array_equal(one.tpot_ms, two.tpot_ms)
    other = simulate(load(20, 300, 60, ranges=ranges, seed=1), system)
    assert not np.array_equal(one.osl, other.osl)


def step_ms(surface: Surface, host: Host, chunks, caches) -> float:
    """Cost of one step from the surface's arrays; `caches` are those of the decoding requests."""
    tokens = sum(q - p for p, q in chunks) + len(caches) * surface.queries
    batch = len(caches)
    at = lambda values, x: values[0] + (values[1] - values[0]) * (x - 1) / 8999  # noqa: E731
    area = lambda part: at([at(row, sum(caches) / batch) for row in part], batch)  # noqa: E731
    if not chunks:
        return host.step_ms(area(surface.decode_ms), batch, 0)
    ms = at(surface.local_ms, tokens)
    ms += at(surface.prompt_tokens_ms, sum(q - p for p, q in chunks))
    whole = lambda s: surface.prompt_ms[0][s - 1] if s else 0.0  # noqa: E731
    ms += sum(whole(q) - whole(p) + (whole(1) if p else 0) for p, q in chunks)
    ms += area(surface.decode_only_ms) if batch else 0.0
    ms += at(surface.rows_ms, len(chunks) + batch * surface.queries)
    return host.step_ms(ms, batch, len(chunks))


@dataclass
class Request:
    """Of the plain simulation."""

    isl: int
    osl: int
    sent: float = 0.0
    needed: int = 0  # tokens to compute before it decodes
    computed: int = 0
    cache: float = 0.0  # tokens in the cache, once it decodes
    tokens: float = 0.0
    decodes: bool = False
    first: float | None = None
    done: float = 0.0

    @property
    def holds(self) -> float:
        return self.cache if self.decodes else self.needed


class Rank:
    """One attention-dp rank of the plain simulation: lists of requests, sums anew every step."""

    def __init__(self, it: Engine):
        self.it, self.waiting, self.active = it, [], []

    def preempt(self) -> bool:
        it, found = self.it, False
        while it.kv_reserved < 1:
            decoding = [r for r in self.active if r.decodes]
            grown = sum(r.holds for r in self.active) + len(decoding) * it.tokens_per_step
            if len(decoding) < 2 or grown <= it.kv_capacity_tokens:
                break
            last, found = decoding[-1], True
            self.active.remove(last)
            last.needed, last.computed, last.decodes = ceil(last.cache - 1), 0, False
            self.waiting.insert(0, last)
        return found

    def has_room(self, request) -> bool:
        it, together = self.it, [*self.active, request]
        if len(together) > it.max_batch:
            return False
        holds = sum(r.holds for r in together)
        grows = it.kv_reserved * (sum(r.isl + r.osl for r in together) - holds)
        if it.kv_reserved < 1:
            grows = max(grows, 2 * len(together) * it.tokens_per_step)
        return not self.active or holds + grows <= it.kv_capacity_tokens

    def plan(self):
        """Prompts with the tokens to compute, and who decodes."""
        it, mixed = self.it, self.it.policy == "mixed"
        full = mixed and self.preempt()
        left = it.token_budget
        if mixed:
            left -= sum(r.decodes for r in self.active) * it.surface.queries
        chunks = []
        for r in self.active:
            take = min(left, r.needed - r.computed)
            if not r.decodes and take > 0:
                chunks.append((r, take))
                left -= take
        while self.waiting and not full and self.has_room(self.waiting[0]):
            r = self.waiting[0]
            take = min(left, r.needed) if it.chunked else r.needed
            if take <= 0 or (take > left and chunks):
                break
            self.active.append(self.waiting.pop(0))
            chunks.append((r, take))
            left -= take
        if not mixed and not chunks:
            self.preempt()
        return chunks, [r for r in self.active if r.decodes and (mixed or not chunks)]

    def cost(self, chunks, decoding) -> float:
        spans = [(r.computed, r.computed + take) for r, take in chunks]
        return step_ms(self.it.surface, self.it.host, spans, [r.cache for r in decoding])

    def run(self, chunks, decoding, now):
        """Return who is done."""
        for r in decoding:
            r.tokens += self.it.tokens_per_step
            r.cache += self.it.tokens_per_step
        for r, take in chunks:
            r.computed += take
            if r.computed == r.needed:
                r.first = r.first or now
                r.decodes, r.cache = True, r.needed + 1
                # Who decoded last is preempted first.
                self.active.remove(r)
                self.active.append(r)
        done = [r for r in self.active if r.decodes and r.tokens >= r.osl - 1 - 1e-6]
        for r in done:
            r.done = now
            self.active.remove(r)
        return done


class EveryStep:
    """The same load one step at a time: ranks in lockstep, requests to one after the other."""

    def __init__(self, wanted: Load, it: Engine):
        isl, osl = wanted.lengths()
        self.it, self.now, self.ranks = it, 0.0, [Rank(it) for _ in range(it.dp)]
        self.requests = [
            Request(int(i), int(o), needed=int(i)) for i, o in zip(isl, osl, strict=True)
        ]
        self.unsent, self.arriving, self.next = list(self.requests), [], 0
        for _ in range(wanted.clients):
            self.send()
        while self.arriving or any(rank.waiting or rank.active for rank in self.ranks):
            self.step()

    def send(self):
        if self.unsent:
            request = self.unsent.pop(0)
            request.sent = self.now
            host = self.it.host
            before = host.request_ms + host.per_prompt_token_ms * request.isl
            self.arriving.append((self.now + before, request))

    def step(self):
        for _, r in [one for one in self.arriving if one[0] <= self.now]:
            self.ranks[self.next].waiting.append(r)
            self.next = (self.next + 1) % len(self.ranks)
        self.arriving = [(t, r) for t, r in self.arriving if t > self.now]
        plans = [rank.plan() for rank in self.ranks]
        costs = [
            rank.cost(*work) for rank, work in zip(self.ranks, plans, strict=True) if any(work)
        ]
        if not costs:
            self.now = min(t for t, _ in self.arriving)
            return
        self.now += max(costs)
        for rank, work in zip(self.ranks, plans, strict=True):
            for _ in rank.run(*work, self.now):
                self.send()

    @property
    def ttft_ms(self):
        return sorted(r.first - r.sent for r in self.requests)

    @property
    def tpot_ms(self):
        return sorted((r.done - r.first) / (r.osl - 1) for r in self.requests)


@pytest.mark.parametrize("case", range(40))
def test_equals_a_simulation_of_every_step(case):
    """Random small cases; order among requests that end in one step is of no consequence."""
    rng = np.random.default_rng(case)
    queries = int(rng.integers(1, 3))
    surface = linear(
        *rng.uniform([1, 0.001, 0, 0, 0, 0, 0], [9, 0.02, 0.01, 3e-5, 0.1, 3e-4, 0.02]), queries
    )
    slots = int(rng.integers(2, 12))
    it = engine(
        surface,
        max_batch=slots,
        kv_capacity_tokens=float(rng.uniform(500, 2500)),
        token_budget=int(rng.integers(60, 700)),
        policy=["mixed", "prefill_first"][case % 2],
        chunked=bool(rng.integers(2)),
        kv_reserved=float(rng.choice([0.0, 0.3, 1.0])),
        tokens_per_step=1.0 if queries == 1 else float(rng.uniform(1.1, 2)),
        host=Host(
            *rng.uniform(0, [6, 12, 0.3, 1]), bool(rng.integers(2)), *rng.uniform(0, [40, 0.01])
        ),
    )
    # Equal prompts, so that requests that end together are alike whatever their order.
    wanted = load(
        int(rng.integers(1, 16)), int(rng.integers(20, 400)), 60, ranges=((1, 1), (0.3, 1))
    )
    plain, found = EveryStep(wanted, it), simulate(wanted, it)
    assert np.sort(found.ttft_ms) == pytest.approx(plain.ttft_ms, rel=1e-6)
    assert np.sort(found.tpot_ms) == pytest.approx(plain.tpot_ms, rel=1e-6)
    assert found.duration_ms == pytest.approx(plain.now, rel=1e-6)


@pytest.mark.parametrize(
    ("policy", "dp", "clients", "isl"),
    [("mixed", 4, 64, 300), ("mixed", 8, 32, 900), ("prefill_first", 8, 128, 900)],
)
def test_ranks_that_are_spread_evenly_are_near_ranks_one_by_one(policy, dp, clients, isl):
    """The plain simulation keeps every rank's own requests; where slots do not bind, 4 % agree."""
    it = engine(
        linear(3, 0.01, 0.002, 1e-5, 0.05, 2e-5),
        dp=dp,
        policy=policy,
        host=Host(2, 4, 0.02, 0.1, request_ms=3),
    )
    wanted = load(clients, isl, 80, requests=6 * clients, ranges=((0.8, 1), (0.8, 1)))
    plain, found = EveryStep(wanted, it), simulate(wanted, it)
    assert found.tpot_ms.mean() == pytest.approx(np.mean(plain.tpot_ms), rel=0.04)
    assert found.ttft_ms.mean() == pytest.approx(np.mean(plain.ttft_ms), rel=0.08)
    assert found.duration_ms == pytest.approx(plain.now, rel=0.04)


def replica_step_by_step(wanted: Load, system: Disagg):
    """Disaggregated serving with a clock that ticks to the next event, every decode step one."""
    it, host = system.decode, system.prefill.host
    isl, osl = wanted.lengths()
    requests = [Request(int(i), int(o)) for i, o in zip(isl, osl, strict=True)]
    unsent, arriving, waiting = list(requests), [], []
    busy = [None] * system.prefill_workers  # (until, prompts)
    link = [0.0] * system.prefill_workers  # when each has sent its caches
    moving, queues = [], [[] for _ in range(system.decode_workers)]
    active, until = [[] for _ in queues], [None] * len(queues)
    now = 0.0

    def send():
        if unsent:
            request = unsent.pop(0)
            request.sent = now
            arriving.append((now + host.request_ms, request))

    def room(w):
        reserved = sum(r.isl + it.kv_reserved * r.osl for r in [*active[w], queues[w][0]])
        return len(active[w]) < it.max_batch and reserved <= it.kv_capacity_tokens

    for _ in range(wanted.clients):
        send()
    while not all(r.done for r in requests):
        moments = [t for t, _ in [*arriving, *moving, *filter(None, busy)]]
        now = min(moments + [t for t in until if t is not None])
        for w, end in enumerate(until):
            if end == now:
                until[w] = None
                for r in list(active[w]):
                    r.tokens += it.tokens_per_step
                    if r.tokens >= r.osl - 1 - 1e-6:
                        r.done = now
                        active[w].remove(r)
                        send()
        for i, work in enumerate(busy):
            if work and work[0] == now:
                for r in work[1]:
                    link[i] = max(link[i], now) + system.transfer_ms_per_token * r.isl
                    moving.append((link[i] + system.transfer_ms, r))
                busy[i] = None
        for arrived in [one for one in moving if one[0] == now]:
            moving.remove(arrived)
            fewest = min(range(len(queues)), key=lambda w: len(queues[w]) + len(active[w]))
            queues[fewest].append(arrived[1])
        waiting += [r for t, r in arriving if t == now]
        arriving[:] = [(t, r) for t, r in arriving if t > now]
        for i, work in enumerate(busy):
            if work is None and waiting:
                batch = [waiting.pop(0)]
                while waiting and len(batch) < system.prefill.max_batch:
                    if sum(r.isl for r in [*batch, waiting[0]]) > system.prefill.token_budget:
                        break
                    batch.append(waiting.pop(0))
                spans = [(0, r.isl) for r in batch]
                busy[i] = (now + step_ms(system.prefill.surface, host, spans, []), batch)
        for w, queue in enumerate(queues):
            if until[w] is None:
                while queue and room(w):
                    active[w].append(queue.pop(0))
                    active[w][-1].first = now
                if active[w]:
                    caches = [r.isl + 1 + r.tokens for r in active[w]]
                    until[w] = now + step_ms(it.surface, it.host, [], caches)
    return requests, now


@pytest.mark.parametrize("case", range(12))
def test_replica_equals_a_simulation_of_every_step(case):
    """Prompts differ, so that no two events of different requests fall on one moment."""
    rng = np.random.default_rng(case)
    surface = linear(
        *rng.uniform([1, 0.001, 0, 0, 0, 0, 0], [9, 0.02, 0.01, 3e-5, 0.1, 3e-4, 0.02])
    )
    prefill = engine(
        surface,
        max_batch=int(rng.integers(1, 4)),
        token_budget=int(rng.integers(450, 900)),
        host=Host(prefill_step_ms=rng.uniform(0, 9), request_ms=rng.uniform(0, 9)),
    )
    decode = engine(
        surface,
        max_batch=int(rng.integers(2, 9)),
        kv_capacity_tokens=float(rng.uniform(600, 3000)),
        kv_reserved=float(rng.choice([0.5, 1.0])),
        tokens_per_step=float(rng.choice([1.0, 1.7])),
        host=Host(decode_step_ms=rng.uniform(0, 9), per_request_ms=0.1),
    )
    system = Disagg(prefill, decode, *map(int, rng.integers(1, 4, 2)), *rng.uniform(0, [9, 0.01]))
    ranges = ((0.3, 1), (0.3, 1))
    wanted = load(int(rng.integers(1, 20)), int(rng.integers(100, 450)), 60, ranges=ranges)
    requests, end = replica_step_by_step(wanted, system)
    found = simulate(wanted, system)
    assert found.ttft_ms == pytest.approx([r.first - r.sent for r in requests], rel=1e-6)
    tpot = [(r.done - r.first) / (r.osl - 1) for r in requests]
    assert found.tpot_ms == pytest.approx(tpot, rel=1e-6)
    assert found.duration_ms == pytest.approx(end, rel=1e-6)
