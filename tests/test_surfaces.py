"""Surfaces of real workers against the estimator's own price of random steps."""

import numpy as np
import pytest

from paretoserve.errors import InputError
from paretoserve.estimator import Mtp, Step, step_latency
from paretoserve.layout import Layout, Precision
from paretoserve.models.catalog import find_model
from paretoserve.operators.kernels import Kernels
from paretoserve.perfdb.tables import PerfTables
from paretoserve.serving.surfaces import Limits, surface

FP8 = Precision("fp8", "fp8", "fp8", "fp8")
SIXTEEN_BIT = Precision(*["float16"] * 4)
BLOCKS = Precision("fp8_block", "fp8_block", "fp8", "float16")
LIMITS = Limits(tokens=8192, requests=512, isl=8192, kv_len=10_000)

# model, backend, version, precision, tp pp dp moe_tp moe_ep, nextn, wide EP
WORKERS = {
    "dense": ("QWEN3_32B", "trtllm", "1.3.0rc20", FP8, (2, 1, 1, 1, 1), 0, False),
    "stages": ("QWEN3_32B", "vllm", "0.24.0", SIXTEEN_BIT, (4, 2, 1, 1, 1), 0, False),
    "experts": ("QWEN3_235B", "trtllm", "1.3.0rc20", FP8, (4, 1, 1, 1, 4), 0, False),
    "drafts": ("DEEPSEEK_V3", "trtllm", "1.3.0rc20", BLOCKS, (8, 1, 1, 1, 8), 3, False),
    "ranks": ("DEEPSEEK_V3", "trtllm", "1.3.0rc20", BLOCKS, (1, 1, 8, 1, 8), 1, False),
    "wide_ep": ("DEEPSEEK_V3", "sglang", "0.5.14", BLOCKS, (1, 1, 16, 1, 16), 0, True),
}


@pytest.mark.parametrize("name", WORKERS)
def test_surface_is_the_estimator_s_step(name):
    """Mixed steps and pure decode, drawn at random: within 1 % for most, 2 % for nearly all."""
    model_name, backend, version, precision, sizes, nextn, wide_ep = WORKERS[name]
    model, kernels = find_model(model_name), Kernels(PerfTables("h200_sxm", backend, version))
    layout = Layout(*(np.array([size]) for size in sizes))
    found = surface(model, precision, layout, kernels, LIMITS, nextn=nextn, wide_ep=wide_ep)

    rng, count = np.random.default_rng(0), 300
    isl = rng.integers(128, 4096, count)
    whole = np.minimum(rng.integers(1, 8, count), 8000 // isl)
    prompts = np.where(rng.random(count) < 0.5, whole, rng.uniform(0.1, 1, count))
    tokens = np.round(prompts * isl)
    requests = rng.integers(1, 512 // (nextn + 1), count)
    kv_len = rng.integers(100, 9000, count).astype(float)

    def priced(*contents):
        many = Layout(*(np.full(count, size) for size in sizes))
        step = Step(*contents, requests, kv_len[:, None])
        return step_latency(
            model, precision, many, step, kernels, mtp=Mtp(nextn), wide_ep=wide_ep
        ).total_ms

    mixed = found.mixed_step_ms(tokens, prompts, isl, requests, kv_len)
    none = np.zeros(count)
    decode = found.decode_step_ms(requests, kv_len)
    for ms, reference in (
        (mixed, priced(tokens, prompts, isl)),
        (decode, priced(none, none, none)),
    ):
        error = np.abs(ms / reference - 1)
        assert np.median(error) < 0.003
        assert np.percentile(error, 90) < 0.01
        assert np.percentile(error, 98) < 0.04
        assert abs(np.mean(ms / reference - 1)) < 0.005


def test_lists_are_the_arrays():
    """What a simulation reads by index is what the vectorised methods give."""
    model, kernels = find_model("QWEN3_32B"), Kernels(PerfTables("h200_sxm", "trtllm", "1.3.0rc20"))
    layout = Layout(*(np.array([1]) for _ in range(5)))
    found = surface(model, FP8, layout, kernels, Limits(2048, 64, 2048, 4096))
    local, pooled, prompt_tokens = found.by_token
    ones, tokens = np.ones(3), np.array([100, 777, 2000])
    by_hand = [
        local[n] + pooled[n] + prompt_tokens[n] + found.by_prompt_length(1)[n] + found.by_row[1]
        for n in tokens
    ]
    assert found.mixed_step_ms(tokens, ones, tokens, 0 * ones, ones) == pytest.approx(by_hand)
    rows = found.by_request(found.decode_ms)
    assert rows[37][3] == pytest.approx(found.decode_step_ms(np.array([37]), found.kv_len[3:4])[0])


def test_no_table_is_a_sentence():
    kernels = Kernels(PerfTables("a100_sxm", "trtllm", "1.0.0"))
    layout = Layout(*(np.array([1]) for _ in range(5)))
    with pytest.raises(InputError, match="fp8"):
        surface(find_model("QWEN3_32B"), FP8, layout, kernels, Limits(2048, 64, 2048, 4096))
