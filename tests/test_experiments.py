"""Experiments: the guide's YAML, defaults and data become resolved questions, works and names."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import jsonschema
import pytest
import yaml

from paretoserve import paths
from paretoserve.errors import InputError
from paretoserve.experiments.experiment import Experiment
from paretoserve.experiments.loading import (
    COMMAND_LINE,
    Source,
    default_mode_experiments,
    load_files,
    read_mapping,
)
from paretoserve.experiments.plan import label, make_plan, works
from paretoserve.experiments.resolving import fields_of, resolve_all
from paretoserve.models.dimensions import MLA

SCHEMA = json.loads(paths.EXPERIMENT_SCHEMA.read_bytes())
DEFAULTS = yaml.safe_load(paths.DEFAULTS.read_bytes())

ASKED = {
    "serving_mode": "disagg",
    "model_name": "QWEN3_32B",
    "total_gpus": 32,
    "system_name": "h200_sxm",
}


GENERATIONS = {"a100_sxm": 80, "h200_sxm": 90, "b200_sxm": 100, "gb200": 100, "b60": 0}
GEMM_MODES = {
    ("a100_sxm", "trtllm"): {"1.0.0": "float16"},
    ("h200_sxm", "trtllm"): {
        "1.0.0rc3": "float16 fp8 fp8_block int8_wo",
        "1.3.0rc20": "float16 fp8 fp8_block",
    },
    ("h200_sxm", "vllm"): {"0.11.0": "float16 fp8"},
    ("b200_sxm", "trtllm"): {"1.0.0rc6": "float16 fp8 nvfp4"},
    ("gb200", "trtllm"): {"1.0.0rc6": "float16 fp8 nvfp4"},
    ("b60", "vllm"): {"0.26.0": "float16 fp8"},
}


class Catalogue:
    """A small performance database: systems, versions and precisions to choose among."""

    def system_name(self, name):
        system = name.lower().replace("gb200_sxm", "gb200")
        if system not in GENERATIONS:
            raise InputError(f"unknown system '{name}'")
        return system

    def sm_version(self, system):
        return GENERATIONS[system]

    def backends(self, system, model):
        return [backend for found, backend in GEMM_MODES if found == system]

    def versions(self, system, backend, model):
        return list(GEMM_MODES.get((system, backend), {}))

    def precisions(self, system, backend, version, model):
        gemm = GEMM_MODES[system, backend][version].split()
        attention = [mode for mode in gemm if mode in ("float16", "fp8")]
        latent = any(isinstance(layer.attention, MLA) for _, layer in model.layers)
        fmha = ["float16"] if backend == "vllm" or latent else attention
        return list(product(gemm, attention, fmha))

    def expert_modes(self, system, backend, version, model):
        gemm = GEMM_MODES[system, backend][version].split()
        return [mode for mode in gemm if mode != "fp8_block"], [*gemm, "w4afp8"]


def resolve(**fields) -> Experiment:
    raw = read_mapping({"exp": {**ASKED, **fields}}, Source("file.yaml"))
    return resolve_all(raw, Catalogue())[0]


def refusal(content) -> str:
    """Return what is said about experiments that must be refused."""
    with pytest.raises(InputError) as error:
        resolve_all(read_mapping(content, Source("file.yaml")), Catalogue())
    return str(error.value)


def precision(worker) -> tuple[str, ...]:
    return (worker.gemm_quant_mode, worker.kvcache_quant_mode, worker.fmha_quant_mode)


def load(file: str) -> tuple[Experiment, ...]:
    return resolve_all(load_files([paths.EXPERIMENTS / file]), Catalogue())


# ---------------------------------------------------------------------------------- the schema


def test_schema_is_a_json_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_schema_documents_every_field_and_the_defaults_in_use():
    def check(schema, defaults):
        for name, field in schema["properties"].items():
            target = SCHEMA["$defs"][field["$ref"].split("/")[-1]] if "$ref" in field else {}
            assert field.get("title") or target.get("title"), name
            if "default" in field and name in defaults:
                assert field["default"] == defaults[name], name
                checked.add(name)
            nested = {**target, **field}
            if "properties" in nested:
                check(nested, defaults.get(name, {}))

    checked: set[str] = set()
    check(SCHEMA["$defs"]["experiment"], {**DEFAULTS["experiment"], "config": DEFAULTS["config"]})
    assert checked >= {*DEFAULTS["experiment"], "nextn", "max_gpu_per_replica", "top_n"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"isll": 3}, "unknown key 'isll' (did you mean 'isl'?)"),
        ({"tp_list": [1]}, "unknown key 'tp_list'; known keys: mode, serving_mode"),
        ({"isl": 0}, "field 'isl': got 0, allowed 1..1048576"),
        ({"osl": "many"}, "field 'osl': got 'many', must be an integer"),
        ({"total_gpus": 0}, "field 'total_gpus': got 0, allowed 1..100000"),
        ({"total_gpus": True}, "field 'total_gpus': got true, must be an integer"),
        ({"ttft": 0}, "field 'ttft': got 0, allowed more than 0"),
        ({"tpot": float("nan")}, "field 'tpot': got nan, must be a finite number"),
        ({"tpot": float("inf")}, "field 'tpot': got inf, must be a finite number"),
        ({"serving_mode": "disag"}, "got 'disag', allowed agg, disagg (did you mean 'disagg'?)"),
        ({"profiles": ["fp8"]}, "field 'profiles[0]': got 'fp8', allowed fp8_default, float16"),
        ({"backend_version": 1.0}, "field 'backend_version': got 1.0, must be text"),
        ({"config": {"nextn": 9}}, "field 'config.nextn': got 9, allowed 0..5"),
        ({"config": {"nextn_accept_rates": [0.5, 2]}}, "nextn_accept_rates[1]': got 2, allowed 0"),
        ({"config": None}, "field 'config': got null, must be a mapping"),
        (
            {"config": {"decode_worker_config": {"tp_list": []}}},
            "field 'config.decode_worker_config.tp_list': must not be empty",
        ),
        (
            {"config": {"decode_worker_config": {"tp_list": [2, 2]}}},
            "tp_list': got [2, 2], where a value repeats",
        ),
        (
            # the later name of the guide's field, with another meaning
            {"config": {"advanced_tuning_config": {"prefill_latency_correction_scale": 1.1}}},
            "(did you mean 'prefill_correction_scale'?)",
        ),
    ],
)
def test_invalid_field_is_one_sentence(change, sentence):
    said = refusal({"exp": {**ASKED, **change}})
    assert said.startswith("file.yaml: experiment 'exp'")
    assert sentence in said
    assert "\n" not in said


def test_missing_fields_are_named():
    said = refusal({"exp": {"serving_mode": "agg", "total_gpus": 8}})
    assert said == "file.yaml: experiment 'exp': 'model_name', 'system_name' are missing"


def test_several_errors_are_said_at_once():
    said = refusal({"one": {**ASKED, "isl": 0}, "two": {**ASKED, "osl": 0, "ttft": -1}})
    assert [line.split(": got")[0] for line in said.splitlines()] == [
        "file.yaml: experiment 'one', field 'isl'",
        "file.yaml: experiment 'two', field 'osl'",
        "file.yaml: experiment 'two', field 'ttft'",
    ]


def test_names_of_experiments():
    assert "experiment name 'a/b' may hold only" in refusal({"a/b": ASKED})
    said = refusal({"exps": ["exp_agg", "b"], "exp-agg": ASKED})
    assert "field 'exps[0]': no experiment 'exp_agg' (did you mean 'exp-agg'?)" in said
    assert "experiment 'exp': got ['a'], must be a mapping (did you mean 'exps'?)" in refusal(
        {"exp": ["a"], "a": ASKED}
    )


# -------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("exp:\n  isl: [1, 2\n  osl: 3\n", "line 3, column 6: is not valid YAML"),
        ("exp:\n\tisl: 1\n", "line 2, column 1: is not valid YAML"),
        (
            "exp:\n  isl: 1\n  isl: 2\n",
            "line 3, column 3: is not valid YAML: key 'isl' stands twice",
        ),
        ("1: {}\n", "line 1, column 1: is not valid YAML: key 1 is not text"),
        ("- exp\n", "must hold named experiments"),
        ("", "must hold named experiments"),
        ("\x00", "is not valid YAML"),
    ],
)
def test_unreadable_yaml_is_one_sentence(tmp_path, text, sentence):
    file = tmp_path / "typo.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        load_files([file])
    assert str(error.value).startswith(str(file))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file():
    with pytest.raises(InputError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_files([Path("nowhere.yaml")])


def test_exps_choose_and_order(tmp_path):
    content = {"a": ASKED, "b": ASKED, "c": ASKED}
    assert [raw.name for raw in read_mapping(content, Source("f"))] == ["a", "b", "c"]
    chosen = read_mapping({"exps": ["c", "a"], **content}, Source("f"))
    assert [raw.name for raw in chosen] == ["c", "a"]


def test_several_files(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({name: ASKED}))
    raws = load_files([tmp_path / "one.yaml", tmp_path / "two.yaml"])
    assert [raw.name for raw in raws] == ["one", "two"]
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({"one": ASKED}))
    with pytest.raises(InputError, match=r"two.yaml: experiment 'one' is also in .*one.yaml"):
        load_files([tmp_path / "one.yaml", tmp_path / "two.yaml"])


# ------------------------------------------------------------------------------------ resolving


def test_defaults_are_the_guides():
    experiment = resolve()
    assert (experiment.isl, experiment.osl) == (4000, 1000)
    assert (experiment.ttft_ms, experiment.tpot_ms) == (1000.0, 40.0)
    assert (experiment.nextn, experiment.enable_wide_ep, experiment.top_n) == (0, False, 3)
    assert experiment.tuning.prefill_correction_scale == 0.9
    assert experiment.tuning.decode_correction_scale == 0.92
    prefill, decode = experiment.workers
    assert (prefill.role, prefill.max_batch_size) == ("prefill", 1)
    assert (decode.role, decode.max_batch_size) == ("decode", 512)
    assert prefill.tp_list == decode.num_gpu_per_worker == (1, 2, 4, 8)
    assert experiment.replica.max_prefill_worker == 32
    assert experiment.replica.num_gpu_per_replica == (1, 2, 4, *range(8, 129, 8))
    agg = resolve(serving_mode="agg")
    assert [worker.role for worker in agg.workers] == ["agg"]
    assert agg.workers[0].max_batch_size == 512
    assert agg.replica is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ("fp8_block", "fp8", "fp8")),
        ({"model_name": "LLAMA3.1_70B"}, ("fp8", "fp8", "fp8")),
        ({"model_name": "QWEN2.5_72B"}, ("fp8", "fp8", "fp8")),
        ({"system_name": "b200_sxm"}, ("nvfp4", "fp8", "fp8")),
        ({"system_name": "a100_sxm"}, ("float16", "float16", "float16")),
        ({"system_name": "b60", "backend_name": "vllm"}, ("float16", "float16", "float16")),
        # vllm has tables neither of fp8 by blocks here nor of fp8 attention anywhere
        ({"backend_name": "vllm"}, ("fp8", "fp8", "float16")),
        ({"profiles": ["fp8_default"]}, ("fp8", "fp8", "fp8")),
        ({"profiles": ["fp8_default", "float16_default"]}, ("float16", "float16", "float16")),
        ({"model_name": "Qwen/Qwen3-32B-FP8"}, ("fp8_block", "fp8", "fp8")),
    ],
)
def test_default_precision(fields, expected):
    for worker in resolve(**fields).workers:
        assert precision(worker) == expected
        assert worker.comm_quant_mode == "half"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # The stub has these experts measured in fp8 and float16, others in fp8_block too.
        ({"model_name": "QWEN3_235B"}, ("fp8_block", "fp8", "fp8", "fp8")),
        ({"model_name": "DEEPSEEK_V3"}, ("fp8_block", "fp8", "fp8", "float16")),
        ({"model_name": "deepseek-ai/DeepSeek-R1"}, ("fp8_block", "fp8_block", "fp8", "float16")),
        ({"model_name": "MOE_Mixtral8x7B"}, ("fp8", "fp8", "fp8", "fp8")),
        (
            {"model_name": "DEEPSEEK_V3", "system_name": "gb200"},
            ("nvfp4", "nvfp4", "fp8", "float16"),
        ),
    ],
)
def test_default_precision_of_experts_and_latent_attention(fields, expected):
    for worker in resolve(**fields).workers:
        gemm, kv_cache, attention = precision(worker)
        assert (gemm, worker.moe_quant_mode, kv_cache, attention) == expected


def test_default_search_of_a_model_with_experts():
    prefill, decode = resolve(model_name="QWEN3_235B").workers
    assert (prefill.dp_list, decode.dp_list) == ((1,), (1, 2, 4, 8))
    assert prefill.moe_ep_list == decode.moe_ep_list == (1, 2, 4, 8)
    assert prefill.moe_tp_list == decode.moe_tp_list == (1,)
    agg = resolve(model_name="QWEN3_235B", serving_mode="agg", system_name="gb200_sxm").workers[0]
    assert agg.dp_list == agg.moe_ep_list == agg.tp_list == agg.num_gpu_per_worker == (1, 2, 4, 8)


def test_default_search_with_wide_expert_parallelism():
    experiment = resolve(model_name="DEEPSEEK_V3", total_gpus=1024, enable_wide_ep=True)
    prefill, decode = experiment.workers
    assert prefill.num_gpu_per_worker == prefill.dp_list == prefill.moe_ep_list == (1, 2, 4, 8, 16)
    assert decode.num_gpu_per_worker == decode.dp_list == decode.moe_ep_list
    assert decode.moe_ep_list == (1, 2, 4, 8, 16, 32, 64)
    assert decode.tp_list == (1, 2, 4, 8)
    assert experiment.replica.num_gpu_per_replica is None
    assert experiment.replica.max_gpu_per_replica == 512
    given = resolve(
        model_name="DEEPSEEK_V3",
        enable_wide_ep=True,
        config={"decode_worker_config": {"moe_ep_list": [32]}},
    )
    assert given.worker("decode").moe_ep_list == (32,)


def test_drafts_where_the_model_has_a_layer_for_them():
    assert [resolve(model_name=name).nextn for name in ("DEEPSEEK_V3", "KIMI_K2")] == [1, 0]
    assert resolve(model_name="DEEPSEEK_V3").nextn_accept_rates == (0.85,)
    off = resolve(model_name="DEEPSEEK_V3", config={"nextn": 0})
    assert (off.nextn, off.nextn_accept_rates) == (0, ())


def test_config_patches_over_profiles_and_defaults():
    config = {
        "prefill_worker_config": {"gemm_quant_mode": "bfloat16", "tp_list": [4]},
        "advanced_tuning_config": {"decode_correction_scale": 1},
    }
    prefill, decode = (experiment := resolve(profiles=["fp8_default"], config=config)).workers
    assert precision(prefill) == ("float16", "fp8", "fp8")
    assert precision(decode) == ("fp8", "fp8", "fp8")
    assert (prefill.tp_list, decode.tp_list) == ((4,), (1, 2, 4, 8))
    assert experiment.tuning.decode_correction_scale == 1.0
    assert experiment.tuning.prefill_correction_scale == 0.9


def test_replace_takes_nothing_from_the_defaults():
    said = refusal({"exp": {**ASKED, "mode": "replace", "config": {"nextn": 0}}})
    assert "field 'config': with mode 'replace' it must also give nextn_accept_rates, " in said
    assert "prefill_worker_config, decode_worker_config, replica_config" in said
    agg = {"nextn": 0, "nextn_accept_rates": [], "worker_config": {"tp_list": [1]}}
    asked = {**ASKED, "serving_mode": "agg", "mode": "replace"}
    assert refusal({"exp": {**asked, "config": agg}}).endswith(
        "give worker_config.num_gpu_per_worker, worker_config.pp_list, worker_config.dp_list, "
        "worker_config.moe_tp_list, worker_config.moe_ep_list, advanced_tuning_config"
    )
    assert "field 'profiles': has no meaning with mode 'replace'" in refusal(
        {"exp": {**asked, "profiles": ["fp8_default"]}}
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"serving_mode": "agg", "top_n": 5, "config": {"worker_config": {"tp_list": [2, 4]}}},
        {"system_name": "b200_sxm", "decode_system_name": "h200_sxm", "ttft": 300.5},
        {"sla_probability": 0.9},
        {"config": {"replica_config": {"num_gpu_per_replica": None, "max_gpu_per_replica": 0}}},
        {"model_name": "DEEPSEEK_V3", "enable_wide_ep": True, "config": {"nextn": 2}},
    ],
)
def test_a_resolved_experiment_can_be_written_down_in_full(fields):
    experiment = resolve(**fields)
    text = yaml.safe_dump({"exp": fields_of(experiment)})
    raws = read_mapping(yaml.safe_load(text), Source("config.yaml"))
    assert resolve_all(raws, Catalogue()) == (experiment,)


def test_versions():
    assert {worker.version for worker in resolve().workers} == {"1.3.0rc20"}
    assert {w.version for w in resolve(backend_version="1.0.0rc3").workers} == {"1.0.0rc3"}
    two = {"system_name": "b200_sxm", "decode_system_name": "h200_sxm"}
    assert [worker.version for worker in resolve(**two).workers] == ["1.0.0rc6", "1.3.0rc20"]
    pinned = resolve(**two, backend_version="1.0.0rc6", decode_backend_version="1.0.0rc3")
    assert [worker.version for worker in pinned.workers] == ["1.0.0rc6", "1.0.0rc3"]
    assert refusal({"exp": {**ASKED, "backend_version": "1.0.0"}}).endswith(
        "'backend_version': got '1.0.0', measured for QWEN3_32B with trtllm on h200_sxm: "
        "1.0.0rc3, 1.3.0rc20"
    )
    assert refusal({"exp": {**ASKED, "backend_name": "sglang"}}).endswith(
        "no measured tables of sglang for QWEN3_32B on h200_sxm; "
        "backends that have them: trtllm, vllm"
    )


def test_alias_and_wider_search_of_a_rack_scale_system():
    workers = resolve(decode_system_name="gb200_sxm").workers
    assert [worker.system for worker in workers] == ["h200_sxm", "gb200"]
    assert [worker.tp_list[-1] for worker in workers] == [8, 16]


@pytest.mark.parametrize(
    ("config", "total_gpus", "sizes"),
    [
        ({"max_gpu_per_replica": 20}, 32, (1, 2, 4, 8, 16)),
        # 128 is where the default list ends: it goes on in steps of 8
        ({"max_gpu_per_replica": 150}, 512, (1, 2, 4, *range(8, 145, 8))),
        ({"max_gpu_per_replica": 0}, 160, (1, 2, 4, *range(8, 161, 8))),
        ({"num_gpu_per_replica": [6, 12], "max_gpu_per_replica": 0}, 512, (6, 12)),
        ({"num_gpu_per_replica": [6, 12], "max_gpu_per_replica": 8}, 512, (6,)),
        ({"num_gpu_per_replica": None}, 512, None),
    ],
)
def test_sizes_of_a_replica(config, total_gpus, sizes):
    experiment = resolve(total_gpus=total_gpus, config={"replica_config": config})
    assert experiment.replica.num_gpu_per_replica == sizes


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model_name": "QWEN_32B"}, "'model_name': unknown model 'QWEN_32B' (did you mean"),
        ({"system_name": "h300"}, "'system_name': unknown system 'h300'"),
        ({"decode_system_name": "h300"}, "'decode_system_name': unknown system 'h300'"),
        ({"enable_wide_ep": True}, "'enable_wide_ep': got true, but QWEN3_32B has no experts"),
        ({"config": {"nextn": 1}}, "'config.nextn': got 1, but QWEN3_32B has no layers for multi"),
        (
            {"model_name": "KIMI_K2", "config": {"nextn": 1}},
            "'config.nextn': got 1, but KIMI_K2 has no layers for multi",
        ),
        (
            {"model_name": "DEEPSEEK_V3", "config": {"nextn": 2, "nextn_accept_rates": [0.9]}},
            "'config.nextn_accept_rates': got 1 rates, nextn 2 needs 2",
        ),
        (
            {"model_name": "DEEPSEEK_V3", "profiles": ["fp8_default"]},
            "fmha_quant_mode': fp8 is not measured for trtllm 1.3.0rc20 on h200_sxm; "
            "measured: float16",
        ),
        (
            {"config": {"decode_worker_config": {"dp_list": [1, 2]}}},
            "'config.decode_worker_config.dp_list': got [1, 2], but QWEN3_32B is dense",
        ),
        ({"config": {"worker_config": {}}}, "'config.worker_config': has no meaning with serving"),
        (
            {"serving_mode": "agg", "decode_system_name": "h200_sxm"},
            "'decode_system_name': has no meaning with serving_mode 'agg'",
        ),
        (
            {"config": {"prefill_worker_config": {"gemm_quant_mode": "nvfp4"}}},
            "gemm_quant_mode': nvfp4 is not measured for trtllm 1.3.0rc20 on h200_sxm; "
            "measured: float16, fp8, fp8_block",
        ),
        (
            {"model_name": "Qwen/Qwen3-32B-FP8", "system_name": "b200_sxm"},
            "gemm_quant_mode': fp8_block is not measured for trtllm 1.0.0rc6 on b200_sxm",
        ),
        (
            {"config": {"replica_config": {"num_gpu_per_replica": [8], "max_gpu_per_replica": 4}}},
            "num_gpu_per_replica': got [8], all above max_gpu_per_replica 4",
        ),
    ],
)
def test_unanswerable_experiment_is_one_sentence(fields, sentence):
    said = refusal({"exp": {**ASKED, **fields}})
    assert sentence in said
    assert "\n" not in said


def test_default_mode_is_the_guides_example_file():
    asked = default_mode_experiments(
        "QWEN3_32B",
        32,
        "h200_sxm",
        backend_version="1.0.0rc3",
        isl=3000,
        osl=512,
        ttft=1000,
        tpot=10,
    )
    typed = resolve_all(read_mapping(asked, COMMAND_LINE), Catalogue())
    assert [experiment.name for experiment in typed] == ["disagg", "agg"]
    assert typed == load("qwen3_32b_h200.yaml")


def test_default_mode_names_the_flag():
    asked = default_mode_experiments("QWEN3_32B", 0, "h200_sxm", isl=-1)
    with pytest.raises(InputError) as error:
        read_mapping(asked, COMMAND_LINE)
    assert str(error.value).splitlines() == [
        "--isl: got -1, allowed 1..1048576",
        "--total_gpus: got 0, allowed 1..100000",
    ]
    raws = read_mapping(default_mode_experiments("QWEN3", 8, "h300"), COMMAND_LINE)
    with pytest.raises(InputError, match=r"^--model: unknown model 'QWEN3' [^\n]*$"):
        resolve_all(raws, Catalogue())


def test_the_guides_heterogeneous_example():
    same, mixed = load("hetero_disagg.yaml")
    assert [worker.system for worker in mixed.workers] == ["b200_sxm", "h200_sxm"]
    assert [precision(worker)[0] for worker in mixed.workers] == ["nvfp4", "fp8_block"]
    assert same.worker("decode") == mixed.worker("decode")


def test_the_guides_per_tensor_example():
    for experiment in load("qwen3_32b_disagg_pertensor.yaml"):
        assert (experiment.ttft_ms, experiment.tpot_ms) == (600.0, 16.0)
        assert {precision(worker) for worker in experiment.workers} == {("fp8", "fp8", "fp8")}


# ----------------------------------------------------------------------------------------- plan


def test_plan_shares_works_between_experiments():
    plan = make_plan(load("hetero_disagg.yaml"))
    # two prefill systems; one decode worker that both experiments ask about
    assert sorted((group.id.rsplit(".", 1)[0], len(group.works)) for group in plan.groups) == [
        ("QWEN3_32B.b200_sxm.trtllm.1.0.0rc6", 1),
        ("QWEN3_32B.h200_sxm.trtllm.1.3.0rc20", 2),
    ]
    for experiment in plan.ask.experiments:
        for work in works(experiment):
            group = plan.ask.group_of_work[work.id]
            assert work in next(one.works for one in plan.groups if one.id == group)


def test_the_sla_and_the_cluster_are_no_part_of_the_work():
    experiments = load("qwen3_32b_h200.yaml")
    plan = make_plan(experiments)
    asked = make_plan(
        [replace(one, ttft_ms=500.0, tpot_ms=20.0, total_gpus=64, top_n=5) for one in experiments]
    )
    assert asked.groups == plan.groups
    assert asked.run != plan.run
    assert asked.ask.digest != plan.ask.digest
    longer = make_plan([replace(one, isl=3001) for one in experiments])
    assert not {group.id for group in longer.groups} & {group.id for group in plan.groups}
    edited = make_plan([replace(one, model_digest="0" * 12) for one in experiments])
    assert not {group.id for group in edited.groups} & {group.id for group in plan.groups}


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "other"},
        {"ttft_ms": 999.0},
        {"top_n": 4},
        {"nextn_accept_rates": (0.5,)},
        {"left_out": ("vllm: no tables",)},
        {"generated_config_version": "1.0.0"},
        {"sla_probability": 0.9},
    ],
)
def test_a_digest_is_of_all_fields(changed):
    experiment = load("qwen3_32b_h200.yaml")[0]
    assert replace(experiment).digest == experiment.digest
    assert replace(experiment, **changed).digest != experiment.digest


def test_a_digest_is_of_the_parts_too():
    experiment = load("qwen3_32b_h200.yaml")[0]
    prefill, decode = experiment.workers
    others = [
        replace(experiment, workers=(replace(prefill, tp_list=(1,)), decode)),
        replace(experiment, workers=(prefill, replace(decode, max_batch_size=8))),
        replace(experiment, replica=replace(experiment.replica, max_prefill_worker=8)),
        replace(experiment, tuning=replace(experiment.tuning, prefill_correction_scale=0.8)),
    ]
    assert len({one.digest for one in [experiment, *others]}) == 5


def test_run_name():
    run = make_plan(load("qwen3_32b_h200.yaml")).run
    head, identity = run.rsplit("_", 1)
    assert head == "QWEN3_32B_isl3000_osl512_ttft1000_tpot10"
    assert len(identity) == 6
    assert set(identity) <= set("0123456789abcdef")


def test_names_do_not_depend_on_the_process():
    code = (
        "import test_experiments as t; p = t.make_plan(t.load('hetero_disagg.yaml'));"
        "print(p.run, *[g.id for g in p.groups])"
    )
    folder = Path(__file__).parent
    names = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(names) == 1


def test_a_local_models_folder_names_its_groups():
    assert label("/models/my model") == "my_model"
    assert label("LLAMA3.1_8B") == "LLAMA3.1_8B"
