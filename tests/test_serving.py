"""Serving arithmetic, on numbers small enough to do by hand."""

import itertools

import numpy as np
import pytest

from paretoserve.hardware import load_system
from paretoserve.models.catalog import find_model
from paretoserve.pareto import frontier
from paretoserve.search import batch_sizes, layouts, prompt_budgets
from paretoserve.serving import aggregated as agg
from paretoserve.serving import disaggregated as disagg
from paretoserve.serving.mtp import expected_tokens_per_step
from paretoserve.settings import BackendRules, backend_rules

ANY_ENGINE = BackendRules("free", 0.9, chunked_prefill=False, step_tokens=(8192,))


def served(
    batch,
    ctx_tokens,
    isl,
    osl,
    mixed_ms,
    decode_ms,
    prefill_scale=1.0,
    decode_scale=1.0,
    tokens_per_step=1.0,
):
    batch = np.array([batch])
    steps = agg.mixed_steps(batch, np.array([ctx_tokens]), isl, osl, tokens_per_step)
    times = np.array([mixed_ms]), np.array([decode_ms])
    found = agg.aggregated(steps, batch, osl, *times, prefill_scale, decode_scale)
    return steps, *(float(x[0]) for x in (found.ttft_ms, found.tpot_ms, found.seq_per_s))


def test_one_request_alone_never_waits():
    # 100 ms prompt, then 10 steps of 5 ms: 150 ms a request.
    _, ttft, tpot, rate = served(1, 1000, 1000, 11, 100.0, 5.0)
    assert (ttft, tpot) == (100.0, 5.0)
    assert rate == pytest.approx(1 / 0.150)


def test_others_prompts_interrupt_decoding():
    # 4 requests, one prompt per mixed step, 9 decode steps: a lifetime has 10 steps, 4 mixed.
    # 4 x 20 + 6 x 5 = 110 ms; without the own prompt 90 ms over 9 steps.
    steps, ttft, tpot, rate = served(4, 1000, 1000, 10, 20.0, 5.0)
    assert steps.decoding[0] == 3
    assert tpot == pytest.approx(10.0)
    assert rate == pytest.approx(4 / 0.110)
    # ttft: own 20, half a mean step of 11, and M/D/1 at 4/10: 20 x 0.4 / (2 x 0.6).
    assert ttft == pytest.approx(20 + 5.5 + 20 * 0.4 / 1.2)


def test_split_prompts_take_several_passes():
    # 2,000 tokens in passes of 500: four passes of 10 ms, alone.
    steps, ttft, tpot, _ = served(1, 500, 2000, 5, 10.0, 2.0)
    assert steps.chunks[0] == 4
    assert (ttft, tpot) == (40.0, 2.0)


def test_bound_by_prefill_obeys_littles_law():
    # 20 requests, lifetime 5 steps: 20 mixed steps of 10 ms serve them, tpot is a mixed step.
    scale = 0.9
    _, ttft, tpot, rate = served(20, 100, 100, 5, 10.0, 1.0, prefill_scale=scale)
    assert tpot == 10.0
    assert rate == pytest.approx(20 / 0.2 / 1.1, rel=1e-9)
    queue = 10 * scale / (2 * (1 - scale))
    # In line: 20 requests in 200 ms stay 200 ms, of which 40 decode; the rest precedes.
    assert ttft - queue - 5 == pytest.approx(200 - 4 * 10)


def test_expected_tokens_of_a_step_with_drafts():
    assert expected_tokens_per_step(0, []) == 1
    assert expected_tokens_per_step(1, [0.85]) == pytest.approx(1.85)
    # The second counts only when the first was accepted: 1 + 0.5 + 0.5 * 0.4.
    assert expected_tokens_per_step(2, [0.5, 0.4]) == pytest.approx(1.7)
    assert expected_tokens_per_step(3, [1, 1, 1]) == 4
    assert expected_tokens_per_step(3, [0, 1, 1]) == 1
    assert expected_tokens_per_step(1, [0.85, 0.3]) == pytest.approx(1.85)


def test_drafts_take_fewer_steps_for_the_same_tokens():
    # One request: 100 ms prompt, then 10 tokens in 5 steps of 8 ms.
    _, ttft, tpot, rate = served(1, 1000, 1000, 11, 100.0, 8.0, tokens_per_step=2.0)
    assert (ttft, tpot) == (100.0, 4.0)
    assert rate == pytest.approx(1 / 0.140)
    # Four requests, one prompt a step: during one lifetime of 1 + 40 / 2 steps 4 are mixed.
    steps, _, tpot, rate = served(4, 100, 100, 41, 20.0, 8.0, tokens_per_step=2.0)
    lifetime_ms = 4 * 20 + (21 - 4) * 8
    assert steps.lifetime[0] == 21
    assert tpot == pytest.approx((lifetime_ms - 20) / 40)
    assert rate == pytest.approx(4 / lifetime_ms * 1e3)
    # Bound by prefill: every step is mixed and gives two tokens.
    steps, _, tpot, _ = served(50, 100, 100, 41, 20.0, 8.0, tokens_per_step=2.0)
    assert (steps.mixed[0], steps.lifetime[0], tpot) == (50, 21, 10.0)


def test_waiting_in_queues_of_one_and_two_servers():
    one, two = np.array([1]), np.array([2])
    # M/D/1: rho / (2 (1 - rho)). Two servers: Erlang C = 2 rho^2 / (1 + rho), halved.
    for rho in (0.1, 0.5, 0.9):
        wait = disagg.waiting_factor(one, np.array([rho]))
        assert wait == pytest.approx([rho / (2 * (1 - rho))], rel=0.02)
        erlang_c = 2 * rho**2 / (1 + rho)
        wait = disagg.waiting_factor(two, np.array([rho]))
        assert wait == pytest.approx([erlang_c / (2 * (1 - rho)) / 2], rel=0.02)
    assert disagg.waiting_factor(one, np.array([0.0])) == 0
    assert disagg.waiting_factor(one, np.array([1.0])) == np.inf


def test_waiting_in_queues_of_more_servers_than_tabled():
    many, most = np.array([1000]), np.array([disagg.MOST_SERVERS])
    rho = np.array([0.9])
    assert disagg.waiting_factor(many, rho) == disagg.waiting_factor(most, rho)
    # Sakasegawa's approximation of M/M/c, rho^(sqrt(2 (c + 1)) - 1) / (c (1 - rho)), halved.
    c = disagg.MOST_SERVERS
    near = 0.9 ** (np.sqrt(2 * (c + 1)) - 1) / (c * 0.1) / 2
    assert disagg.waiting_factor(most, rho) == pytest.approx([near], rel=0.1)


RULES = disagg.ReplicaRules(None, 0, 32, 32)


def matched(total_gpus, prefill, decode, rules=RULES, ttft_limit_ms=np.inf, ranks=1):
    """One prefill worker kind (gpus, ms of a pass) and one decode kind (gpus, requests/s)."""
    shapes = disagg.replica_shapes(prefill[0], decode[0], total_gpus, rules)
    pairs = disagg.Pairs(
        shapes,
        np.array([prefill[1]]),
        np.array([ranks * 1e3 / prefill[1]]),
        np.array([ranks]),
        np.zeros((1, len(shapes.x))),
        np.array([decode[1]]),
        0.9,
        0.92,
    )
    return disagg.match(pairs, ttft_limit_ms)


def test_rate_match_by_hand():
    # Prefill 1 GPU at 5/s, decode 4 GPUs at 16/s, 8 GPUs: 4P1D gives min(0.9 x 20, 0.92 x 16).
    found = matched(8, (1, 200.0), (4, 16.0))
    assert (found.x[0], found.y[0], found.replicas[0]) == (4, 1, 1)
    assert found.seq_per_s[0] == pytest.approx(14.72)


def test_every_batch_in_flight_is_a_server():
    # A prefill worker of 4 GPUs with 4 attention-dp ranks waits like 4 workers of 1 GPU, in passes
    # of the same length. Decode takes 16 GPUs, and more than prefill can feed.
    wide = matched(20, (4, 200.0), (16, 99.0), ranks=4)
    narrow = matched(20, (1, 200.0), (16, 99.0))
    assert (wide.x[0], narrow.x[0]) == (1, 4)
    assert wide.ttft_ms[0] == pytest.approx(narrow.ttft_ms[0])
    # At 0.9 of capacity M/D/4 waits 0.98 passes, M/D/1 4.5.
    lone = matched(17, (1, 200.0), (16, 99.0))
    assert wide.ttft_ms[0] < 200 * 2 < lone.ttft_ms[0]


def test_xpyd_is_chosen_for_the_cluster():
    # 10 GPUs, all workers of 1 GPU, equal rates: 1P1D fits 5 times; the same rate as 5P5D, smaller.
    found = matched(10, (1, 100.0), (1, 10.0))
    assert (found.x[0], found.y[0], found.replicas[0]) == (1, 1, 5)
    # The peer's per-replica rule would leave 8 of 32 GPUs idle here; all 32 serve more.
    found = matched(32, (1, 223.0), (8, 15.416))
    assert found.gpus[0] * found.replicas[0] == 32


def test_replica_that_does_not_divide_the_cluster():
    # 10 GPUs, prefill of 2 and decode of 4 GPUs: xPyD of 6 fits once, of 10 (3P1D) once.
    found = matched(10, (2, 100.0), (4, 100.0))
    assert (found.x[0], found.y[0], found.gpus[0], found.replicas[0]) == (3, 1, 10, 1)
    assert found.seq_per_s[0] == pytest.approx(0.9 * 3 * 10)


def test_match_agrees_with_brute_force():
    random = np.random.default_rng(5)
    for _ in range(20):
        gpus_p, gpus_d = random.choice([1, 2, 4], 2)
        total = int(random.integers(2, 24))
        ms, rate = random.uniform(50, 500), random.uniform(1, 20)
        shapes = disagg.replica_shapes(int(gpus_p), int(gpus_d), total, RULES)
        best = max(
            (
                min(0.9 * x * 1e3 / ms, 0.92 * y * rate) * (total // (x * gpus_p + y * gpus_d))
                for x, y in itertools.product(range(1, 33), repeat=2)
                if x * gpus_p + y * gpus_d <= total
            ),
            default=None,
        )
        if best is None:
            assert len(shapes.x) == 0
            continue
        found = matched(total, (int(gpus_p), ms), (int(gpus_d), rate))
        assert found.seq_per_s[0] == pytest.approx(best, rel=1e-6)


def test_the_reported_ttft_is_the_one_that_was_filtered():
    free = matched(16, (1, 200.0), (4, 16.0))
    limit = free.ttft_ms[0] - 1
    found = matched(16, (1, 200.0), (4, 16.0), ttft_limit_ms=limit)
    # Twice 4P1D just misses the limit; one larger pool serves as much and waits less.
    assert (free.x[0], free.y[0], free.replicas[0]) == (4, 1, 2)
    assert (found.y[0], found.replicas[0]) == (2, 1)
    assert found.ttft_ms[0] <= limit
    assert found.seq_per_s[0] == pytest.approx(free.seq_per_s[0])
    assert matched(8, (1, 200.0), (4, 16.0), ttft_limit_ms=100.0).pair[0] == -1


def test_replica_rules():
    rules = disagg.ReplicaRules((2, 4), 3, 1, 1)
    shapes = disagg.replica_shapes(1, 1, 100, rules)
    assert (shapes.x.tolist(), shapes.y.tolist(), shapes.replicas.tolist()) == ([1], [1], [50])


def test_kv_cache_travels_over_the_slowest_link():
    h200, b200 = load_system("h200_sxm"), load_system("b200_sxm")
    kv_bytes, gpus = np.array([450e6]), np.array([8, 16])
    # 450 MB: 1 ms inside a node at 450 GB/s, 9 ms between nodes at 50 GB/s, after 10 us.
    same = disagg.transfer_ms(kv_bytes, gpus, h200, h200)
    assert same == pytest.approx(np.array([[1.01, 9.01]]))
    assert disagg.transfer_ms(kv_bytes, gpus, b200, h200) == pytest.approx(np.array([[9.01] * 2]))


def test_frontier_agrees_with_brute_force():
    random = np.random.default_rng(1)
    speed, throughput = random.integers(0, 30, (2, 200)).astype(float)
    points = list(zip(speed, throughput, strict=True))
    beaten = [any(a >= x and b >= y and (a, b) != (x, y) for a, b in points) for x, y in points]
    wanted = {point for point, is_beaten in zip(points, beaten, strict=True) if not is_beaten}
    kept = frontier(speed, throughput)
    assert {points[i] for i in kept} == wanted
    assert len(kept) == len(wanted)
    assert (np.diff(speed[kept]) > 0).all()
    assert (np.diff(throughput[kept]) < 0).all()


def sizes(layouts) -> list[tuple[int, ...]]:
    kept = layouts.kept
    columns = (kept.tp, kept.pp, kept.dp, kept.moe_tp, kept.moe_ep)
    return [tuple(map(int, layout)) for layout in zip(*columns, strict=True)]


def test_layouts_of_the_lists():
    model = find_model("QWEN2.5_7B")  # 28 heads, FFN width 18944
    found = layouts(model, [1, 2, 4, 8], [1, 2, 4, 8], [1, 2], [1], [1], [1], ANY_ENGINE)
    kept = [(tp, pp) for tp, pp, *_ in sizes(found)]
    assert kept == [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2)]
    assert [reason for _, reason in found.refused] == ["tp 8 does not divide 28 attention heads"]


def test_width_rule_by_hand():
    """The GPUs of attention (tp * dp) are those of the experts (moe_tp * moe_ep)."""
    model = find_model("DEEPSEEK_V3")
    lists = [1, 2, 4]
    # 4 GPUs: 3 ways to split attention (1x4, 2x2, 4x1) times 3 to split the experts.
    found = layouts(model, [4], lists, [1], lists, lists, lists, ANY_ENGINE)
    assert set(sizes(found)) == {
        (tp, 1, dp, moe_tp, moe_ep)
        for tp, dp in ((1, 4), (2, 2), (4, 1))
        for moe_tp, moe_ep in ((1, 4), (2, 2), (4, 1))
    }
    # Two stages of 2 GPUs each make 4 as well.
    found = layouts(model, [4], [2], [2], [1], [1], [2], ANY_ENGINE)
    assert sizes(found) == [(2, 2, 1, 1, 2)]


def test_engines_refuse_what_they_cannot_combine():
    model, lists = find_model("DEEPSEEK_V3"), [1, 2, 4]
    trtllm = layouts(model, [4], lists, [1], lists, [1], [4], backend_rules("trtllm"))
    assert sizes(trtllm) == [(1, 1, 4, 1, 4), (4, 1, 1, 1, 4)]
    refused = ((2, 1, 2, 1, 4), "the engine does not combine tp 2 with dp 2")
    assert trtllm.refused == (refused,)
    vllm = layouts(model, [4], [4], [1], [1], lists, lists, backend_rules("vllm"))
    assert sizes(vllm) == [(4, 1, 1, 1, 4), (4, 1, 1, 4, 1)]
    sglang = layouts(model, [4], lists, [1], lists, [1], [4], backend_rules("sglang"))
    assert sizes(sglang) == [(1, 1, 4, 1, 4), (2, 1, 2, 1, 4), (4, 1, 1, 1, 4)]


@pytest.mark.parametrize(
    ("name", "layout", "reason"),
    [
        ("MOE_Mixtral8x7B", (16, 1, 1, 1, 16), "moe_ep 16 does not divide 8 experts"),
        ("QWEN3_30B_A3B", (32, 1, 1, 32, 1), ""),  # 32 heads, experts 768 = 32 * 24 wide
        ("QWEN3_30B_A3B", (1, 1, 512, 512, 1), "moe_tp 512 does not divide the expert width 768"),
        ("Nemotron_super_v1.1", (128, 1, 1, 1, 1), "tp 128 does not divide 64 attention heads"),
    ],
)
def test_layouts_divide_the_model(name, layout, reason):
    tp, pp, dp, moe_tp, moe_ep = layout
    lists = ([tp * pp * dp], [tp], [pp], [dp], [moe_tp], [moe_ep])
    found = layouts(find_model(name), *lists, ANY_ENGINE)
    assert found.refused == (((layout, reason),) if reason else ())
    assert sizes(found) == ([] if reason else [layout])


def test_batch_sizes_are_dense_below_and_thin_above():
    sizes = batch_sizes(512, 16)
    assert sizes[:33].tolist() == [*range(1, 33), 34]
    assert sizes[-3:].tolist() == [480, 496, 512]
    assert batch_sizes(1, 16).tolist() == [1]
    assert batch_sizes(100, 16).tolist()[-2:] == [96, 100]


def test_prompt_budgets():
    whole = BackendRules("free", 0.9, chunked_prefill=False, step_tokens=(2048, 4096, 8192))
    batch = np.array([1, 2, 3, 9])
    # Prompts of 3,000 are never split: one or two of them, two only beside another request.
    assert prompt_budgets(3000, batch, whole).tolist() == [
        [3000, 0],
        [3000, 0],
        [3000, 6000],
        [3000, 6000],
    ]
    assert prompt_budgets(20_000, batch, whole).tolist() == [[20_000]] * 4
    split = BackendRules("total", 0.9, chunked_prefill=True, step_tokens=(2048, 8192))
    assert prompt_budgets(3000, batch, split).tolist() == [
        [2048, 3000],
        [2048, 3000],
        [2048, 6000],
        [2048, 8192],
    ]
