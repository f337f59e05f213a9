"""Models with experts and latent attention, from the question to the deployment, on real tables."""

import time
from functools import cache

import pytest

from paretoserve import paths
from paretoserve.cli import main
from paretoserve.experiments.loading import Source, read_mapping
from paretoserve.experiments.plan import make_plan
from paretoserve.experiments.resolving import resolve_all
from paretoserve.inprocess import run_in_process
from paretoserve.models.catalog import find_model
from paretoserve.perfdb.catalogue import Catalogue

DEEPSEEK = {
    "model_name": "DEEPSEEK_V3",
    "total_gpus": 32,
    "system_name": "h200_sxm",
    "isl": 4000,
    "osl": 1000,
    "ttft": 1000,
    "tpot": 40,
}
WIDE = DEEPSEEK | {"total_gpus": 512, "system_name": "gb200_sxm", "enable_wide_ep": True}
RATES = [0.85, 0.3, 0, 0, 0]
TOKENS_PER_STEP = {0: 1.0, 1: 1.85, 2: 2.105}  # 1, + 0.85, + 0.85 * 0.3


@cache
def catalogue() -> Catalogue:
    return Catalogue()


def answer(**asked):
    """Best row (None without an answer), status row and seconds of one experiment."""
    started = time.perf_counter()
    raw = read_mapping({"exp": asked}, Source("test.yaml"))
    found = run_in_process(make_plan(resolve_all(raw, catalogue())), None)
    seconds = time.perf_counter() - started
    (status,) = found.status.to_pylist()
    return next(iter(found.best.to_pylist()), None), status, seconds


def obeys_the_width_rule(row, role) -> bool:
    tp, pp, dp, moe_tp, moe_ep, gpus = (
        row[f"{role}_{name}"] for name in ("tp", "pp", "dp", "moe_tp", "moe_ep", "gpus_per_worker")
    )
    return tp * dp == moe_tp * moe_ep and tp * pp * dp == gpus


@pytest.mark.parametrize("nextn", [0, 1, 2])
def test_deepseek_aggregated(nextn):
    config = {"nextn": nextn, "nextn_accept_rates": RATES}
    row, status, seconds = answer(**DEEPSEEK, serving_mode="agg", config=config)
    assert row, status["reason"]
    assert seconds < 3
    assert obeys_the_width_rule(row, "agg")
    assert row["ttft_ms"] <= 1000
    assert row["tpot_ms"] <= 40
    # Mixed steps only lengthen what decode steps alone would take for a token.
    assert row["tpot_ms"] > row["agg_step_ms"] / TOKENS_PER_STEP[nextn]
    # Little's law, without waiting: requests in a worker / their time in it, at most.
    in_worker_s = (999 * row["tpot_ms"]) / 1e3
    assert row["agg_seq_per_s_per_worker"] <= row["concurrency_per_replica"] / in_worker_s


@pytest.mark.parametrize("nextn", [0, 1, 2])
def test_deepseek_disaggregated(nextn):
    config = {"nextn": nextn, "nextn_accept_rates": RATES}
    row, status, seconds = answer(**DEEPSEEK, serving_mode="disagg", config=config)
    assert row, status["reason"]
    assert seconds < 3
    assert obeys_the_width_rule(row, "prefill")
    assert obeys_the_width_rule(row, "decode")
    # A step takes 999 tokens / tokens per step times; ranks decode at once.
    assert row["tpot_ms"] == pytest.approx(row["decode_step_ms"] / TOKENS_PER_STEP[nextn])
    requests = row["decode_batch_size"] * row["decode_dp"]
    decode_rate = requests / (999 * row["tpot_ms"]) * 1e3
    assert row["decode_seq_per_s_per_worker"] == pytest.approx(decode_rate)
    prefill_rate = row["prefill_batch_size"] * row["prefill_dp"] / row["prefill_step_ms"] * 1e3
    replica = min(
        0.9 * row["prefill_workers"] * prefill_rate, 0.92 * row["decode_workers"] * decode_rate
    )
    tokens = replica * row["replicas"] * 1000 / 32
    assert row["tokens_per_s_per_gpu"] == pytest.approx(tokens)


def test_a_draft_that_is_never_accepted_only_costs():
    def served(**config):
        return answer(**DEEPSEEK, serving_mode="disagg", config=config)[0]["tokens_per_s_per_gpu"]

    without, accepted = served(nextn=0), served(nextn=1, nextn_accept_rates=[0.85])
    assert served(nextn=1, nextn_accept_rates=[0]) < without < accepted


@pytest.mark.parametrize("serving_mode", ["agg", "disagg"])
def test_wide_expert_parallelism_on_racks(serving_mode):
    config = {"nextn": 2, "nextn_accept_rates": RATES}
    row, status, seconds = answer(**WIDE, serving_mode=serving_mode, config=config)
    assert row, status["reason"]
    assert seconds < 3
    assert row["gpus_used"] <= 512


def test_a_worker_of_64_gpus_is_priced():
    """Over all of a rack, 64 GPUs share out 256 experts, four each."""
    decode = {"num_gpu_per_worker": [64], "tp_list": [1], "dp_list": [64], "moe_ep_list": [64]}
    config = {"nextn": 2, "nextn_accept_rates": RATES, "decode_worker_config": decode}
    row, status, _ = answer(**WIDE, serving_mode="disagg", config=config)
    assert row, status["reason"]
    assert (row["decode_dp"], row["decode_moe_ep"], row["decode_gpus_per_worker"]) == (64, 64, 64)
    prefill_gpus = row["prefill_workers"] * row["prefill_gpus_per_worker"]
    assert row["gpus_per_replica"] == prefill_gpus + row["decode_workers"] * 64


@pytest.mark.parametrize("serving_mode", ["agg", "disagg"])
def test_experts_with_grouped_query_attention(serving_mode):
    asked = DEEPSEEK | {"model_name": "QWEN3_235B", "total_gpus": 64}
    row, status, seconds = answer(**asked, serving_mode=serving_mode)
    assert row, status["reason"]
    assert seconds < 3


@pytest.mark.parametrize("backend", ["trtllm", "sglang", "vllm"])
@pytest.mark.parametrize(
    "model", ["MOE_Mixtral8x7B", "QWEN3_30B_A3B", "KIMI_K2", "Nemotron_super_v1.1", "DEEPSEEK_V3"]
)
def test_every_family_on_every_engine(model, backend):
    asked = DEEPSEEK | {"model_name": model, "system_name": "b200_sxm", "backend_name": backend}
    row, status, _ = answer(**asked, serving_mode="disagg")
    assert row, status["reason"]


def test_the_guides_example_file(capsys):
    file = paths.EXPERIMENTS / "example.yaml"
    assert main(["cli", "exp", "--yaml_path", str(file)]) == 0
    report, error = capsys.readouterr()
    assert error == ""
    for name in ("agg_full", "agg_simplified", "disagg_full", "disagg_simplified"):
        assert f"exp_{name} Top Configurations" in report
    assert "Model: DEEPSEEK_V3 (is_moe: True)" in report
    drafts = "nextn 2, accepted 0.85, 0.3: 2.105 tokens per step"
    assert drafts in " ".join(report.split())


def test_only_versions_with_the_models_tables_answer():
    dense, latent = find_model("QWEN3_32B"), find_model("DEEPSEEK_V3")
    # TensorRT-LLM 1.3.0rc20 has no latent attention on l40s, vllm none on b60.
    assert catalogue().versions("l40s", "trtllm", dense) == ("1.0.0", "1.3.0rc20")
    assert catalogue().versions("l40s", "trtllm", latent) == ("1.0.0",)
    assert catalogue().backends("b60", dense) == ("vllm",)
    assert catalogue().backends("b60", latent) == ()


def test_precisions_of_latent_attention():
    latent = find_model("DEEPSEEK_V3")
    parts = catalogue().precisions("h200_sxm", "trtllm", "1.3.0rc20", latent)
    assert {attention for _, _, attention in parts} == {"float16"}
    assert {gemm for gemm, _, _ in parts} >= {"float16", "fp8_block"}
    # vllm's was measured as a block, with its projections in two precisions.
    block = catalogue().precisions("h200_sxm", "vllm", "0.24.0", latent)
    assert {gemm for gemm, _, _ in block} == {"float16", "fp8_block"}


def test_precisions_of_experts():
    of_these, of_any = catalogue().expert_modes(
        "h200_sxm", "vllm", "0.24.0", find_model("DEEPSEEK_V3")
    )
    assert of_these == {"fp8_block"}
    assert of_any >= {"float16", "fp8", "fp8_block"}
