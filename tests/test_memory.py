"""Memory of one GPU, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from paretoserve.hardware import load_system
from paretoserve.layout import Layout, Precision
from paretoserve.memory import kv_cache_bytes_per_token, weight_bytes, worker_memory
from paretoserve.models.catalog import find_model
from paretoserve.models.dimensions import GQA, DenseFFN, LayerSpec, Model
from paretoserve.precision import default_precision
from paretoserve.settings import Activations, BackendRules, estimation

SIXTEEN_BIT = Precision("float16", "float16", "float16", "float16")
ACTIVATIONS = Activations(coefficient={1: 11, 2: 6.5, 4: 5, 8: 5}, floor_bytes=70 * 2**20)


def layout(*tp_pp: tuple[int, int]) -> Layout:
    tp, pp = np.array(tp_pp).T
    ones = np.ones_like(tp)
    return Layout(tp, pp, ones, ones, ones)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("LLAMA3.1_8B", 8.03e9), ("QWEN3_32B", 32.8e9), ("LLAMA3.1_70B", 70.6e9)],
)
def test_weights_are_the_published_parameters(name, parameters):
    found = weight_bytes(find_model(name), SIXTEEN_BIT, layout((1, 1), (8, 1), (1, 2)))
    assert found[0] == pytest.approx(2 * parameters, rel=0.02)
    assert found[1] == pytest.approx(2 * parameters / 8, rel=0.02)
    # Two stages share the layers; the vocabulary's matrices are counted on each.
    assert parameters < found[2] < 1.2 * parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("MOE_Mixtral8x7B", 46.7e9),
        ("QWEN3_235B", 235.1e9),
        ("DEEPSEEK_V3", 671.0e9),
    ],
)
def test_weights_of_models_with_experts(name, parameters):
    one = Layout(*np.ones((5, 1), int))
    assert weight_bytes(find_model(name), SIXTEEN_BIT, one)[0] == pytest.approx(
        2 * parameters, rel=0.02
    )


def test_shards_of_a_model_with_latent_attention_and_experts():
    """DeepSeek-V3 in 8 bits on 8 GPUs, in parameters of each GPU, by hand."""
    tp8, dp8 = weight_bytes(
        find_model("DEEPSEEK_V3"),
        Precision("fp8_block", "fp8_block", "fp8", "float16"),
        Layout(*np.array([(8, 1, 1, 1, 8), (1, 1, 8, 1, 8)]).T),
    )
    experts = 58 * 256 // 8 * 3 * 7168 * 2048
    router = 58 * 7168 * 256
    shared, dense = 58 * 3 * 7168 * 2048, 3 * 3 * 7168 * 18432
    down = 61 * 7168 * (1536 + 512 + 64)  # on every GPU
    heads = 61 * 128 * (1536 * 192 + 512 * 256 + 128 * 7168)
    vocabulary = 2 * 129280 * 7168
    split = shared + dense + heads
    # Router and vocabulary are 16-bit.
    assert tp8 == experts + down + split / 8 + 2 * (router + vocabulary / 8)
    assert dp8 == experts + down + split + 2 * (router + vocabulary)


def test_kv_cache_of_latent_attention_is_on_every_gpu():
    # 61 layers x (512 + 64) values x 2 bytes = 70,272 bytes, whatever tp.
    model = find_model("DEEPSEEK_V3")
    found = kv_cache_bytes_per_token(model, SIXTEEN_BIT, layout((1, 1), (8, 1)))
    assert found.tolist() == [70272, 70272]


def test_layers_without_attention_hold_no_cache():
    attention, ffn = GQA(32, 8, 128), DenseFFN(14336)
    groups = ((3, LayerSpec(attention, ffn)), (5, LayerSpec(None, ffn)))
    model = Model("m", "m", 4096, 32000, groups, False, 4096)
    # 3 layers x 2 x 8 x 128 x 2 bytes
    assert kv_cache_bytes_per_token(model, SIXTEEN_BIT, layout((1, 1))).tolist() == [12288]
    layers = 3 * (4096 * 128 * (64 + 16) + 3 * 4096 * 14336) + 5 * 3 * 4096 * 14336
    vocabulary = 2 * 4096 * 32000
    assert weight_bytes(model, SIXTEEN_BIT, layout((1, 1)))[0] == 2 * (layers + vocabulary)


def test_kv_cache_of_a_token():
    # Llama-3.1-8B: 32 layers x (K and V) x 8 heads x 128 x 2 bytes = 131,072 bytes.
    model = find_model("LLAMA3.1_8B")
    found = kv_cache_bytes_per_token(model, SIXTEEN_BIT, layout((1, 1), (8, 1), (16, 1)))
    assert found.tolist() == [131072, 16384, 16384]  # 16 GPUs: one KV head on each of two
    fp8 = Precision("fp8", "fp8", "fp8", "fp8")
    assert kv_cache_bytes_per_token(model, fp8, layout((1, 1)))[0] == 65536


@pytest.mark.parametrize(
    ("rule", "fraction"), [("free", 0.9), ("total", 0.9)], ids=["trtllm", "vllm"]
)
def test_the_engines_own_rule_decides(rule, fraction):
    """Llama-3.1-8B on one H100 of 80 GiB: the largest batch of 4,096 tokens each, by hand."""
    system = load_system("h100_sxm")
    rules = BackendRules(rule, fraction, chunked_prefill=False, step_tokens=(8192,))
    batch = np.arange(1, 200)
    memory = worker_memory(
        find_model("LLAMA3.1_8B"),
        SIXTEEN_BIT,
        layout(*[(1, 1)] * len(batch)),
        system,
        rules,
        ACTIVATIONS,
        requests=batch,
        request_tokens=4096,
        step_tokens=np.full(len(batch), 1000),
    )
    # 2 x 1000 tokens x 32 heads x 128 x 11 = 90.1 MB of activations; 3.5 GiB runtime, no NCCL.
    weights = 2 * (8.030e9 - 65 * 4096)  # norms are not counted
    other = weights + 2 * 1000 * 4096 * 11 + 3.5 * 2**30
    cache = 131072 * 4096
    room = (80 * 2**30 - other) * 0.9 if rule == "free" else 0.9 * 80 * 2**30 - other
    assert (memory.total <= memory.limit).sum() == int(room // cache)


def test_weights_larger_than_the_gpu_never_fit():
    rules = BackendRules("free", 0.9, chunked_prefill=False, step_tokens=(8192,))
    memory = worker_memory(
        find_model("LLAMA3.1_405B"),
        SIXTEEN_BIT,
        layout((1, 1)),
        load_system("h100_sxm"),
        rules,
        ACTIVATIONS,
        requests=np.array([1]),
        request_tokens=1,
        step_tokens=np.array([1]),
    )
    assert memory.total[0] > memory.limit[0]


def test_v2_of_nvfp4_deepseek_quantises_the_projection_out_of_attention():
    """61 layers of 7168 x 128 heads x 128 values, from 16 to 4.5 bits each."""
    model = find_model("DEEPSEEK_V3")
    old, v2 = (
        default_precision(f"nvidia/DeepSeek-R1-0528-{name}", "b200_sxm", "trtllm")
        for name in ("NVFP4", "NVFP4-v2")
    )
    assert (old.output, v2.output) == ("", "nvfp4")
    assert old == replace(v2, output="")
    saved = weight_bytes(model, old, layout((1, 1))) - weight_bytes(model, v2, layout((1, 1)))
    assert saved == pytest.approx(61 * 7168 * 128 * 128 * (16 - 4.5) / 8)


def test_an_engine_s_own_bytes_of_routed_rows():
    """4,096 tokens to 8 of 128 experts on one GPU, 4,096 values each, at 2.5 instead of 8 bytes."""
    model = find_model("QWEN3_235B")

    def activations(routed_bytes):
        rules = BackendRules("total", 0.9, True, (8192,), routed_bytes=routed_bytes)
        one = np.array([1])
        return worker_memory(
            model,
            SIXTEEN_BIT,
            layout((1, 1)),
            load_system("h200_sxm"),
            rules,
            estimation().activations,
            requests=one,
            request_tokens=one,
            step_tokens=np.array([4096]),
        ).activations

    assert activations(None) - activations(2.5) == pytest.approx(4096 * 8 * 4096 * 5.5)
