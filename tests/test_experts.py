"""Experts, their exchange and latent attention against the measured tables, and by hand."""

import re

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from paretoserve import paths
from paretoserve.estimator import Step, step_latency
from paretoserve.interpolation import EXTRAPOLATED, MEASURED, SPEED_OF_LIGHT
from paretoserve.layout import Layout, Precision
from paretoserve.models.catalog import find_model
from paretoserve.models.dimensions import GQA, DenseFFN, LayerSpec, Model, MoEFFN
from paretoserve.operators.experts import nearest
from paretoserve.operators.kernels import Kernels
from paretoserve.perfdb.tables import PerfTables

H200 = ("h200_sxm", "trtllm", "1.0.0rc3")
B200 = ("b200_sxm", "trtllm", "1.3.0rc20")
GB200 = ("gb200", "trtllm", "1.0.0rc6")
DEEPSEEK = MoEFFN(experts=256, topk=8, inter=2048, shared_inter=2048)
EIGHT_BIT = Precision("fp8_block", "fp8_block", "fp8", "float16")


def rows(engine: tuple[str, str, str], operator: str, **where) -> dict[str, np.ndarray]:
    """Rows of a table as stored, read without the library's look-ups."""
    table = pq.read_table(paths.table_file(*engine, operator))
    for name, value in where.items():
        table = table.filter(pc.equal(table[name], value))
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def layouts(*each: tuple[int, int, int, int, int]) -> Layout:
    """Rows of (tp, pp, dp, moe_tp, moe_ep)."""
    return Layout(*np.array(each).T)


def decode(count: int, requests: int, kv_len: int = 3000) -> Step:
    none = np.zeros(count)
    return Step(none, none, none, np.full(count, requests), np.full((count, 1), kv_len))


def prefill(count: int, tokens: int) -> Step:
    full, none = np.full(count, tokens), np.zeros(count)
    return Step(full, np.ones(count), full, none, np.ones((count, 1)))


def milliseconds(latency, name: str) -> np.ndarray:
    return latency.ms[:, latency.operators.index(name)]


def test_norms_of_queries_and_keys():
    """62 layers of MiniMax-M2.5 on 4 GPUs, 12 + 2 heads of 128 each, one norm over all of them: by
    hand, 4 values per token all-reduced. Norms of each head are part of the attention kernel."""
    tables, layout = PerfTables("h200_sxm", "vllm", "0.24.0"), layouts((4, 1, 1, 4, 1))
    kernels, eight_bit = Kernels(tables), Precision("fp8_block", "fp8_block", "fp8", "float16")

    def decoded(model):
        return step_latency(find_model(model), eight_bit, layout, decode(1, 64), kernels)

    found = decoded("MINIMAX_M2.5")
    bandwidth = tables.system.memory_bandwidth * tables.system.memory_bandwidth_efficiency
    for name, passes in (("qk_norm", 4), ("qk_norm_sums", 2)):
        by_hand = passes * 64 * 14 * 128 / bandwidth * 1e3 + 0.003
        assert milliseconds(found, name) == pytest.approx(62 * by_hand)
    stored = rows(("h200_sxm", "vllm", "0.24.0"), "custom_allreduce", num_gpus=4, elements=256)
    assert milliseconds(found, "qk_norm_ar") == pytest.approx(62 * stored["latency_ms"].min())
    for other in ("QWEN3_235B", "MOE_Mixtral8x7B"):
        assert not {"qk_norm", "qk_norm_ar"} & set(decoded(other).operators)


def test_experts_return_measured_points():
    shape = {"topk": 8, "experts": 256, "hidden": 7168, "inter": 2048}
    stored = rows(H200, "moe", dtype="fp8_block", distribution="power_law_1.01", **shape)
    found = (
        Kernels(PerfTables(*H200), strict=True)
        .experts()
        .latency(
            "fp8_block",
            "power_law_1.01",
            DEEPSEEK,
            7168,
            stored["moe_tp"],
            stored["moe_ep"],
            stored["tokens"],
        )
    )
    assert len(found.ms) > 400
    np.testing.assert_allclose(found.ms, stored["latency_ms"], rtol=1e-6)
    assert (found.provenance == MEASURED).all()


def test_the_faster_of_two_kernels():
    """NVFP4 experts of B200 have two kernels at 8 GPUs and 128 tokens: 0.272 and 0.123 ms."""
    one = {"distribution": "power_law_1.01", "hidden": 7168, "experts": 256, "topk": 8}
    one |= {"dtype": "nvfp4", "moe_tp": 1, "moe_ep": 8, "tokens": 128}
    stored = rows(B200, "moe", **one)["latency_ms"]
    found = (
        Kernels(PerfTables(*B200))
        .experts()
        .latency("nvfp4", "power_law_1.01", DEEPSEEK, 7168, *(np.array([x]) for x in (1, 8, 128)))
    )
    assert len(stored) == 2
    assert found.ms == pytest.approx([stored.min()])


def test_experts_that_nobody_measured_are_marked():
    """Left out, a measured split is predicted within a few percent; a new one says so."""
    experts = Kernels(PerfTables(*H200)).experts()
    predicted, measured = experts.tables("fp8_block", "power_law_1.01").held_out(same=6)
    assert np.median(np.abs(predicted / measured - 1)) < 0.06
    between, tokens = np.array([24]), np.array([4096])
    found = experts.latency(
        "fp8_block", "power_law_1.01", DEEPSEEK, 7168, np.ones(1, int), between, tokens
    )
    neighbours = experts.latency(
        "fp8_block",
        "power_law_1.01",
        DEEPSEEK,
        7168,
        np.ones(2, int),
        np.array([16, 32]),
        np.repeat(tokens, 2),
    )
    assert found.provenance.tolist() == [EXTRAPOLATED]
    assert neighbours.ms[1] < found.ms[0] < neighbours.ms[0]


def test_experts_without_a_table_are_refused():
    experts = Kernels(PerfTables(*H200)).experts()
    found = experts.latency("nvfp4", "power_law_1.01", DEEPSEEK, 7168, *np.ones((3, 1), int))
    assert np.isnan(found.ms).all()
    ((_, reason),) = found.reasons
    assert re.search(r"no moe was measured for dtype nvfp4; measured: .*fp8", reason)


@pytest.mark.parametrize(
    ("wanted", "measured", "expected"),
    [
        ("power_law_1.01", ["power_law_1.2", "power_law_1.01", "balanced"], "power_law_1.01"),
        ("power_law_1.01", ["uniform"], "uniform"),
        ("power_law_0.6", ["uniform", "power_law_0.8"], "power_law_0.8"),
        ("power_law_1.01_eplb", ["power_law_1.01", "power_law_1.2_eplb"], "power_law_1.2_eplb"),
        ("power_law_1.01_eplb", ["power_law_1.01", "balanced"], "balanced"),
    ],
)
def test_nearest_distribution(wanted, measured, expected):
    assert nearest(wanted, measured) == expected


@pytest.mark.parametrize("op", ["all_gather", "reduce_scatter"])
def test_collectives_return_measured_points(op):
    stored = rows(("h200_sxm", "nccl", "2.26.2"), "nccl", op=op, dtype="float16")
    collective = getattr(Kernels(PerfTables(*H200)), op)
    found = collective.latency(stored["num_gpus"], stored["elements"])
    raised = found.provenance == SPEED_OF_LIGHT
    np.testing.assert_allclose(found.ms[~raised], stored["latency_ms"][~raised], rtol=1e-6)
    assert raised.mean() < 0.05


def test_latent_attention_returns_measured_points():
    kernel = Kernels(PerfTables(*H200)).latent_attention
    stored = rows(H200, "context_mla", attn_dtype="float16", kv_dtype="fp8")
    found = kernel.context("float16", "fp8", *(stored[k] for k in ("heads", "isl", "batch")))
    np.testing.assert_allclose(found.ms, stored["latency_ms"], rtol=1e-6)
    stored = rows(H200, "generation_mla", kv_dtype="fp8")
    found = kernel.generation("fp8", *(stored[k] for k in ("heads", "batch", "kv_len")))
    raised = found.provenance == SPEED_OF_LIGHT
    np.testing.assert_allclose(found.ms[~raised], stored["latency_ms"][~raised], rtol=1e-6)
    assert raised.mean() < 0.05
    stored = rows(H200, "mla_bmm", op="mla_gen_pre", dtype="fp8")
    found = kernel.product("mla_gen_pre", "fp8", stored["heads"], stored["tokens"])
    np.testing.assert_allclose(found.ms, stored["latency_ms"], rtol=1e-6)


def test_several_new_tokens_share_the_read_of_the_cache():
    """Three queries of 16 heads cost what one of 48 heads costs, not three times 16."""
    kernel = Kernels(PerfTables(*H200)).latent_attention
    query = [np.array([x]) for x in (16, 64, 8192)]
    three = kernel.generation("fp8", *query, queries=3).ms
    assert three == kernel.generation("fp8", np.array([48]), *query[1:]).ms
    assert three < 1.2 * kernel.generation("fp8", *query).ms
    # 128 heads are the most that was measured: three queries are three sequences.
    whole = kernel.generation("fp8", *(np.array([x]) for x in (128, 64, 8192)), queries=3)
    assert whole.ms == kernel.generation("fp8", *(np.array([x]) for x in (128, 192, 8192))).ms


def test_exchange_returns_measured_points():
    """Tokens of DeepSeek-V3 over NVLink: preparation and dispatch, or combination. With NVFP4
    experts the one-sided exchange, which needs no preparation.
    """

    def stored(kernel, dtype):
        shape = {"kernel": kernel, "dtype": dtype, "moe_ep": 32, "tokens": 1024}
        found = rows(("gb200", "trtllm", "1.3.0rc10"), "trtllm_alltoall", **shape)
        return dict(zip(found["phase"].tolist(), found["latency_ms"].tolist(), strict=True))

    def ways(dtype):
        query = "few", dtype, DEEPSEEK, 7168, np.array([32]), np.array([1024])
        return [exchange.latency(way, *query) for way in ("dispatch", "combine")]

    exchange = Kernels(PerfTables(*GB200)).exchange
    there, back = ways("fp8_block")
    ms = stored("NVLinkTwoSided", "fp8")
    assert there.ms == pytest.approx([ms["prepare"] + ms["dispatch"]])
    assert back.ms == pytest.approx([stored("NVLinkTwoSided", "float16")["combine"]], rel=0.02)
    assert there.provenance.tolist() == [EXTRAPOLATED]  # of another release
    there, back = ways("nvfp4")
    ms = stored("NVLinkOneSided", "nvfp4")
    assert there.ms == pytest.approx([ms["dispatch"]])
    assert back.ms == pytest.approx([ms["combine"]])


def test_deepep_over_nodes_that_an_older_release_measured():
    stored = rows(
        ("h200_sxm", "sglang", "0.5.6.post2"),
        "deepep_ll",
        phase="combine",
        nodes=4,
        experts=256,
        tokens=128,
    )
    exchange = Kernels(PerfTables("h200_sxm", "sglang", "0.5.14")).exchange
    found = exchange.latency(
        "combine", "few", "fp8_block", DEEPSEEK, 7168, np.array([32]), np.array([128])
    )
    assert found.ms == pytest.approx(stored["latency_ms"])


def test_one_pair_of_collectives_in_a_layer():
    """tp: two all-reduces a layer. Attention data parallelism: the experts gather and scatter."""
    kernels = Kernels(PerfTables(*H200))
    step, model = decode(2, requests=32), find_model("DEEPSEEK_V3")
    found = step_latency(model, EIGHT_BIT, layouts((8, 1, 1, 1, 8), (1, 1, 8, 1, 8)), step, kernels)
    one = kernels.all_reduce.latency(np.array([8]), np.array([32 * 7168])).ms[0]
    gather = kernels.all_gather.latency(np.array([8]), np.array([8 * 32 * 7168])).ms[0]
    scatter = kernels.reduce_scatter.latency(np.array([8]), np.array([8 * 32 * 7168])).ms[0]
    assert milliseconds(found, "ar_1") == pytest.approx([61 * one, 0])
    assert milliseconds(found, "ar_2") == pytest.approx([61 * one, 0])
    assert milliseconds(found, "moe_pre_dispatch") == pytest.approx([0, 58 * gather])
    assert milliseconds(found, "moe_post_dispatch") == pytest.approx([0, 58 * scatter])


def test_dense_layers_are_dense_and_the_output_projection_is_whole():
    kernels = Kernels(PerfTables(*H200))
    found = step_latency(
        find_model("DEEPSEEK_V3"),
        EIGHT_BIT,
        layouts((8, 1, 1, 1, 8)),
        decode(1, requests=32),
        kernels,
    )

    def gemm(dtype: str, n: int, k: int) -> float:
        return kernels.gemm.latency(dtype, np.array([32]), np.array([n]), np.array([k])).ms[0]

    expected = {
        "gate_ffn1_gemm": 3 * gemm("fp8_block", 2 * 18432 // 8, 7168),
        "ffn2_gemm": 3 * gemm("fp8_block", 7168, 18432 // 8),
        "router_gemm": 58 * gemm("float16", 256, 7168),
        "shared_gate_ffn1_gemm": 0,  # beside the routed experts
        "proj_gemm": 61 * gemm("fp8_block", 7168, 128 * 128 // 8),
    }
    for name, ms in expected.items():
        assert milliseconds(found, name) == pytest.approx([ms])


def test_a_mixed_step_pays_for_both_kinds_of_latent_attention():
    kernels, model, one = Kernels(PerfTables(*H200)), find_model("DEEPSEEK_V3"), (8, 1, 1, 1, 8)
    alone = step_latency(model, EIGHT_BIT, layouts(one), decode(1, requests=32), kernels)
    prompt = step_latency(model, EIGHT_BIT, layouts(one), prefill(1, tokens=2000), kernels)
    both = Step(
        np.array([2000]), np.ones(1), np.array([2000]), np.array([32]), np.full((1, 1), 3000)
    )
    mixed = step_latency(model, EIGHT_BIT, layouts(one), both, kernels)
    for name, of in (("generation_attention", alone), ("context_attention", prompt)):
        assert milliseconds(of, name)[0] > 0
        assert milliseconds(mixed, name) == milliseconds(of, name)


def test_wide_expert_parallelism_exchanges_instead_of_gathering():
    kernels, model = Kernels(PerfTables(*GB200)), find_model("DEEPSEEK_V3")
    precision = Precision("nvfp4", "nvfp4", "fp8", "float16")
    wide, tensor = (1, 1, 32, 1, 32), (8, 1, 1, 8, 1)
    step = decode(2, requests=64)
    found = step_latency(model, precision, layouts(wide, tensor), step, kernels, wide_ep=True)
    query = "few", "nvfp4", DEEPSEEK, 7168, np.array([32]), np.array([64])
    dispatch = kernels.exchange.latency("dispatch", *query).ms[0]
    # tp alone has nothing to exchange: it keeps its all-reduces.
    assert milliseconds(found, "moe_pre_dispatch") == pytest.approx([58 * dispatch, 0])
    assert (milliseconds(found, "ar_1") > 0).tolist() == [False, True]
    stored = rows(
        ("gb200", "trtllm", "1.3.0rc10"),
        "wideep_moe",
        distribution="power_law_1.01_eplb",
        hidden=7168,
        experts=256,
        slots=256,
        moe_ep=32,
        tokens=2048,
    )
    assert milliseconds(found, "moe")[0] == pytest.approx(58 * stored["latency_ms"][0])


def test_layers_without_attention_or_ffn():
    """As in Nemotron-NAS: half of the layers have no attention."""
    attention, ffn = GQA(32, 8, 128), DenseFFN(14336)
    kernels, none = Kernels(PerfTables(*H200)), ((1, 1, 1, 1, 1),)

    def ms(*layers: LayerSpec) -> dict[str, float]:
        groups = tuple((2, layer) for layer in layers)
        model = Model("m", "m", 4096, 32000, groups, False, 4096)
        precision = Precision("float16", "float16", "float16", "float16")
        found = step_latency(model, precision, layouts(*none), decode(1, 8), kernels)
        return dict(zip(found.operators, found.ms[0], strict=True))

    whole = ms(LayerSpec(attention, ffn))
    parts = ms(LayerSpec(attention, None), LayerSpec(None, ffn))
    assert parts == whole


@pytest.mark.parametrize(
    "engine",
    [
        ("h200_sxm", "vllm", "0.24.0"),
        ("h200_sxm", "sglang", "0.5.14"),
        ("b200_sxm", "trtllm", "1.3.0rc20"),
    ],
    ids=lambda engine: "-".join(engine),
)
def test_every_engine_prices_latent_attention(engine):
    """vLLM's tables hold the block as a whole; the others its parts."""
    found = step_latency(
        find_model("DEEPSEEK_V3"),
        EIGHT_BIT,
        layouts((8, 1, 1, 1, 8), (1, 1, 8, 1, 8)),
        decode(2, requests=16),
        Kernels(PerfTables(*engine)),
    )
    assert np.isfinite(found.total_ms).all()
    assert ("generation_mla_block" in found.operators) == (engine[1] == "vllm")


def test_shared_experts_cost_what_outlasts_the_routed_ones():
    """Beside them in small steps; after them in steps of more tokens than a rank overlaps."""
    kernels, model = Kernels(PerfTables(*H200)), find_model("DEEPSEEK_V3")
    step = prefill(1, 2048)
    found = step_latency(model, EIGHT_BIT, layouts((8, 1, 1, 1, 8)), step, kernels)
    one = kernels.gemm.latency("fp8_block", *(np.array([x]) for x in (2048, 512, 7168))).ms
    assert milliseconds(found, "shared_gate_ffn1_gemm") == pytest.approx(58 * one)
    few = step_latency(model, EIGHT_BIT, layouts((8, 1, 1, 1, 8)), prefill(1, 64), kernels)
    assert milliseconds(few, "shared_gate_ffn1_gemm") == 0
    assert milliseconds(few, "moe") > 0
