"""Multi-token prediction: a step verifies the drafts and drafts anew, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from paretoserve.errors import InputError
from paretoserve.estimator import Mtp, Step, StepLatency, step_latency
from paretoserve.layout import Layout, Precision
from paretoserve.memory import kv_cache_bytes_per_token, weight_bytes
from paretoserve.models.catalog import find_model
from paretoserve.operators.kernels import Kernels
from paretoserve.perfdb.tables import PerfTables

EIGHT_BIT = Precision("fp8_block", "fp8_block", "fp8", "float16")
TP8 = Layout(*(np.array([x]) for x in (8, 1, 1, 1, 8)))


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels(PerfTables("h200_sxm", "trtllm", "1.0.0rc3"))


def decode(requests: int) -> Step:
    none = np.zeros(1)
    return Step(none, none, none, np.array([requests]), np.full((1, 1), 3000))


def by_name(latency: StepLatency) -> dict[str, float]:
    return dict(zip(latency.operators, latency.ms[0], strict=True))


def test_verification_sees_every_draft(kernels):
    """16 requests with 2 drafts each are 48 tokens; attention alone reads 16 caches."""
    model = find_model("DEEPSEEK_V3")
    found = by_name(step_latency(model, EIGHT_BIT, TP8, decode(16), kernels, mtp=Mtp(2)))
    tokens = by_name(step_latency(model, EIGHT_BIT, TP8, decode(48), kernels))
    for name in ("moe", "downscale_gemm", "ar_1", "bmm_pre", "logits_gemm", "add_norm_1"):
        assert found[name] == tokens[name]
    sixteen = by_name(step_latency(model, EIGHT_BIT, TP8, decode(16), kernels))
    assert sixteen["generation_attention"] <= found["generation_attention"]
    assert found["generation_attention"] < 1.3 * sixteen["generation_attention"]


def test_cost_of_the_drafts(kernels):
    """Of 3 drafts, the first passes 64 tokens through the extra layer, two more 16 tokens each."""
    model = find_model("DEEPSEEK_V3")
    found = by_name(step_latency(model, EIGHT_BIT, TP8, decode(16), kernels, mtp=Mtp(3)))

    # A model of the last layer group alone, once: the extra layer is one of its kind.
    layer = replace(model, layers=((1, model.layers[-1][1]),))
    first = by_name(step_latency(layer, EIGHT_BIT, TP8, decode(64), kernels))
    later = by_name(step_latency(layer, EIGHT_BIT, TP8, decode(16), kernels))
    for name in ("moe", "router_gemm", "proj_gemm", "ar_1", "add_norm_2"):
        assert found[f"mtp_{name}"] == pytest.approx(first[name] + 2 * later[name])

    def gemm(rows: int, n: int, k: int) -> float:
        return kernels.gemm.latency("float16", *(np.array([x]) for x in (rows, n, k))).ms[0]

    project = gemm(64, 7168, 14336) + 2 * gemm(16, 7168, 14336)
    assert found["mtp_projection_gemm"] == pytest.approx(project)
    # Each draft chooses one token per request.
    assert found["mtp_logits_gemm"] == pytest.approx(3 * gemm(16, 129280 // 8, 7168))


def test_no_drafts_cost_nothing(kernels):
    model = find_model("DEEPSEEK_V3")
    without = step_latency(model, EIGHT_BIT, TP8, decode(16), kernels)
    none = step_latency(model, EIGHT_BIT, TP8, decode(16), kernels, mtp=Mtp(0))
    assert by_name(without) == by_name(none)


def test_a_model_without_the_layer_is_refused(kernels):
    one = Layout(*np.ones((5, 1), int))
    with pytest.raises(InputError, match="QWEN3_32B has no multi-token prediction layer"):
        step_latency(find_model("QWEN3_32B"), EIGHT_BIT, one, decode(1), kernels, mtp=Mtp(1))


def test_memory_of_the_extra_layer():
    """DeepSeek-V3 is published with 671 B parameters, and 14 B more for this.

    Those are one more layer with its projection of 2 x 7168 x 7168 (11.6 B), and copies of the
    embedding and vocabulary projection (1.9 B), which engines share with the model's own.
    """
    model = find_model("DEEPSEEK_V3")
    sixteen_bit = Precision("float16", "float16", "float16", "float16")
    one = Layout(*np.ones((5, 1), int))
    extra = weight_bytes(model, sixteen_bit, one, nextn=2) - weight_bytes(model, sixteen_bit, one)
    assert extra[0] / 2 == pytest.approx(11.6e9, rel=0.01)
    cache = [kv_cache_bytes_per_token(model, EIGHT_BIT, one, nextn=n)[0] for n in (0, 1)]
    assert cache == [61 * 576, 62 * 576]
