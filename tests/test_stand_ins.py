"""Stand-ins for missing tables, screened measurements, and layers that were added with them."""

import json

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from paretoserve import paths
from paretoserve.estimator import Step, step_latency
from paretoserve.hardware import load_system
from paretoserve.interpolation import EXTRAPOLATED, MEASURED, PROVENANCE, SUBSTITUTED
from paretoserve.layout import Layout, Precision
from paretoserve.memory import request_cache_bytes, weight_bytes
from paretoserve.models.catalog import find_model
from paretoserve.models.dimensions import DSA, GDN, GQA, MoEFFN
from paretoserve.models.huggingface import parse_config
from paretoserve.operators.kernels import Kernels
from paretoserve.operators.mla import Block
from paretoserve.perfdb import manifest, screening, screening_rule
from paretoserve.perfdb.elsewhere import tables_elsewhere
from paretoserve.perfdb.tables import PerfTables
from paretoserve.precision import default_precision

NEWEST = {"trtllm": "1.3.0rc20", "sglang": "0.5.14", "vllm": "0.24.0"}
ONE = Layout(*np.ones((5, 1), np.int64))


def kernels(system: str, backend: str, **how) -> Kernels:
    return Kernels(PerfTables(system, backend, NEWEST[backend]), **how)


def rows(system: str, backend: str, operator: str, **where) -> dict[str, np.ndarray]:
    """Rows of a table as stored, read without the library's look-ups."""
    table = pq.read_table(paths.table_file(system, backend, NEWEST[backend], operator))
    for name, value in where.items():
        table = table.filter(pc.equal(table[name], value))
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def layout(*sizes: int) -> Layout:
    return Layout(*np.array([sizes]).T)


def decode(requests: int = 8, kv_len: int = 2048) -> Step:
    none = np.zeros(1)
    return Step(none, none, none, np.array([requests]), np.array([[kv_len]]))


def prefill(isl: int) -> Step:
    one = np.array([float(isl)])
    return Step(one, np.ones(1), one, np.zeros(1), one[:, None])


# --- stand-ins


def test_another_engine_stands_in_on_the_same_system():
    """vLLM has no MXFP4 x MXFP8 experts of gpt-oss: TensorRT-LLM's, as they were measured."""
    spec = MoEFFN(experts=128, topk=4, inter=2880, bias=True)
    shape = {"topk": 4, "experts": 128, "hidden": 2880, "inter": 2880, "moe_tp": 1, "moe_ep": 4}
    stored = rows(
        "b200_sxm",
        "trtllm",
        "moe",
        dtype="w4a8_mxfp4_mxfp8",
        distribution="power_law_1.2",
        **shape,
    )
    found = kernels("b200_sxm", "vllm").experts()
    found = found.latency(
        "w4a8_mxfp4_mxfp8",
        "power_law_1.2",
        spec,
        2880,
        stored["moe_tp"],
        stored["moe_ep"],
        stored["tokens"],
    )
    np.testing.assert_allclose(found.ms, stored["latency_ms"], rtol=1e-6)
    assert (found.provenance == SUBSTITUTED).all()
    assert "b200_sxm trtllm 1.3.0rc20 experts (w4a8_mxfp4_mxfp8) stands in for" in found.notes[0]


def test_another_precision_is_scaled_by_the_ratio_of_the_bounds():
    """SGLang has no per-tensor FP8 experts; blocks have the same width and rate: ratio 1.

    INT4 weights come from an older SGLang; NVFP4 ones multiplied in 16 bit read 9/16 bytes per
    value and not 33/64.
    """
    h200 = kernels("h200_sxm", "sglang")
    spec, tokens = MoEFFN(experts=256, topk=8, inter=2048), np.array([64])
    one = np.ones(1, np.int64)
    of = ("power_law_1.01", spec, 7168, one, 8 * one, tokens)
    per_tensor, blocks = (h200.experts().latency(mode, *of) for mode in ("fp8", "fp8_block"))
    assert per_tensor.ms == pytest.approx(blocks.ms)
    assert (per_tensor.provenance == SUBSTITUTED).all()

    m, n, k = (np.array([x]) for x in (1, 4096, 4096))
    int4, nvfp4 = (h200.gemm.latency(mode, m, n, k) for mode in ("int4_wo", "w4a16_nvfp4"))
    engine = "h200_sxm", "sglang", "0.5.1.post1"
    stored = pq.read_table(paths.table_file(*engine, "gemm")).to_pylist()
    shape = {"dtype": "int4_wo", "m": 1, "n": 4096, "k": 4096}
    (row,) = (row for row in stored if shape.items() <= row.items())
    assert int4.ms == pytest.approx([row["latency_ms"]])
    assert nvfp4.ms == pytest.approx([row["latency_ms"] * (9 / 16) / (33 / 64)])
    assert nvfp4.provenance.tolist() == [SUBSTITUTED]
    assert "scaled by the speed-of-light ratio" in nvfp4.notes[0]


def test_another_system_stands_in_for_a_group_of_gpus():
    """gb200 was measured over 4 GPUs; gb300, with the same links, over 8."""
    stored = rows("gb300", "trtllm", "custom_allreduce", num_gpus=8)
    elements = np.unique(stored["elements"])
    fastest = [stored["latency_ms"][stored["elements"] == size].min() for size in elements]
    found = kernels("gb200", "trtllm").all_reduce.latency(np.full(len(elements), 8), elements)
    assert (found.provenance >= SUBSTITUTED).all()
    measured = found.provenance == SUBSTITUTED
    np.testing.assert_allclose(found.ms[measured], np.array(fastest)[measured], rtol=1e-6)
    assert found.notes == (
        "gb300 trtllm 1.3.0rc20 all-reduce (8) stands in for gb200 trtllm 1.3.0rc20 all-reduce (8)",
    )


def test_no_other_link_stands_in_for_many_nodes():
    """h200 leaves its node at 16 GPUs: its own 8 scaled by the ring, not a rack of gb300."""
    all_reduce = kernels("h200_sxm", "trtllm").all_reduce
    gpus, size = np.array([8, 16]), np.array([2**20] * 2)
    found = all_reduce.latency(gpus, size)
    assert found.provenance[1] == EXTRAPOLATED
    assert found.notes == ()
    ring = (15 / 16) / (7 / 8) * 4.5e11 / 5e10
    assert found.ms[1] == pytest.approx(found.ms[0] * ring)


def test_the_exchange_of_a_rack_stands_in_for_that_of_another():
    """TensorRT-LLM's NVLink all-to-all was measured on gb200 only; gb300 has the same links."""
    spec = MoEFFN(experts=256, topk=8, inter=2048)
    query = ("dispatch", "few", "nvfp4", spec, 7168, np.array([32, 8]), np.array([64.0, 64.0]))
    own, other = (kernels(system, "trtllm").exchange for system in ("gb200", "gb300"))
    measured, found = own.latency(*query), other.latency(*query)
    assert found.ms == pytest.approx(measured.ms)
    assert (found.provenance == SUBSTITUTED).all()
    assert found.notes[0].startswith("gb200 trtllm 1.3.0rc10 exchange of tokens stands in for")


def test_tables_that_stand_in_elsewhere_are_known_beforehand():
    """Those of the two tests above, what a screen names, and no GEMM that was measured here."""
    elsewhere = {
        system: {manifest.coordinate(entry) for entry in tables_elsewhere(system)}
        for system in ("gb200", "gb300", "h200_sxm", "b60")
    }
    assert ("gb300", "trtllm", "1.3.0rc20", "custom_allreduce") in elsewhere["gb200"]
    assert ("gb200", "trtllm", "1.3.0rc10", "trtllm_alltoall") in elsewhere["gb300"]
    screens = json.loads(paths.SCREENING.read_bytes())["screened"]
    named = {
        (*entry["stand_in"].values(), entry["operator"])
        for entry in screens
        if entry["system"] == "gb200" != entry["stand_in"]["system"]
    }
    assert named
    assert named <= elsewhere["gb200"]
    assert ("h100_sxm", "trtllm", "1.3.0rc20", "gemm") in manifest.load().tables
    assert ("h100_sxm", "trtllm", "1.3.0rc20", "gemm") not in elsewhere["h200_sxm"]
    assert elsewhere["b60"] == set()


def test_strict_kernels_have_no_stand_ins():
    experts = kernels("h200_sxm", "sglang", strict=True).experts()
    spec, one = MoEFFN(experts=256, topk=8, inter=2048), np.ones(1, np.int64)
    found = experts.latency("fp8", "power_law_1.01", spec, 7168, one, one, one)
    assert np.isnan(found.ms).all()
    assert "no moe was measured for dtype fp8" in found.reasons[0][1]


def test_a_step_says_what_stood_in():
    precision = default_precision("openai/gpt-oss-120b", "b200_sxm", "vllm")
    found = step_latency(
        find_model("openai/gpt-oss-120b"),
        precision,
        layout(1, 1, 1, 1, 1),
        decode(),
        kernels("b200_sxm", "vllm"),
    )
    shares = found.shares()
    assert 0.2 < shares["substituted"][0] < 0.9
    assert sum(share[0] for share in shares.values()) == pytest.approx(1)
    note = found.notes[found.operators.index("moe")]
    assert "b200_sxm trtllm 1.3.0rc20 experts (w4a8_mxfp4_mxfp8)" in note


# --- screening

KNOWN = [  # host time or odd kernels that are seen by eye
    ("b200_sxm", "vllm", "gemm", {"dtype": "fp8_block"}),
    ("h200_sxm", "vllm", "gemm", {"dtype": "fp8_block"}),
    ("gb300", "sglang", "custom_allreduce", {"num_gpus": 8}),
    ("b200_sxm", "vllm", "dsa_context_module", {"gemm_dtype": "nvfp4", "kv_dtype": "fp8"}),
    ("gb200", "sglang", "dsa_context_module", {"gemm_dtype": "fp8_block", "kv_dtype": "fp8"}),
    ("b200_sxm", "trtllm", "moe", {"dtype": "w4a16_mxfp4", "hidden": 2880, "experts": 128}),
    ("gb300", "trtllm", "moe", {"dtype": "nvfp4", "hidden": 7168, "experts": 256, "moe_tp": 8}),
    ("h200_sxm", "vllm", "moe", {"dtype": "fp8", "hidden": 4096, "experts": 128, "moe_tp": 8}),
    ("gb200", "vllm", "mla_generation_module", {"gemm_dtype": "float16", "kv_dtype": "fp8"}),
    # A third of what other engines reach at long prompts, on the same GPU.
    ("h200_sxm", "sglang", "context_mla", {"attn_dtype": "float16", "kv_dtype": "float16"}),
    ("h100_sxm", "sglang", "generation_mla", {"kv_dtype": "fp8"}),
]
BELIEVED = [
    ("b200_sxm", "sglang", "gemm", {"dtype": "fp8_block"}),
    ("h200_sxm", "trtllm", "gemm", {"dtype": "float16"}),
    ("b200_sxm", "sglang", "moe", {"dtype": "nvfp4", "hidden": 7168, "experts": 256}),
    ("h200_sxm", "trtllm", "custom_allreduce", {"num_gpus": 8}),
    ("h200_sxm", "trtllm", "generation_mla", {"kv_dtype": "fp8"}),
    ("b200_sxm", "sglang", "context_mla", {"attn_dtype": "float16", "kv_dtype": "float16"}),
]


def listed(system: str, backend: str, operator: str, where: dict) -> bool:
    entries = json.loads(paths.SCREENING.read_bytes())["screened"]
    engine = {"system": system, "backend": backend, "version": NEWEST[backend]}
    return any(
        entry["operator"] == operator
        and engine.items() <= entry.items()
        and where.items() <= entry["where"].items()
        for entry in entries
    )


def test_known_cases_are_found_and_good_tables_are_not():
    assert [case for case in KNOWN if not listed(*case)] == []
    assert [case for case in BELIEVED if listed(*case)] == []


@pytest.mark.parametrize("table", ["custom_allreduce", "mla_generation_module"])
def test_the_committed_list_is_what_the_rule_finds(table):
    entries = json.loads(paths.SCREENING.read_bytes())["screened"]
    committed = [entry for entry in entries if entry["operator"] == table]
    assert list(screening_rule.of_table(table)) == committed


def test_no_stand_in_is_screened_itself():
    entries = json.loads(paths.SCREENING.read_bytes())["screened"]
    assert len(entries) > 100
    for entry in entries:
        tables = PerfTables(*entry["stand_in"].values())
        assert screening.find(tables, entry["operator"], entry["where"]) is None


def test_a_screened_table_is_replaced_where_its_stand_in_is_faster():
    """vLLM's block-wise GEMM of b200: never below 159 us; SGLang's of the same size 5 to 10."""
    shape = {"n": 7168, "k": 2048, "dtype": "fp8_block"}
    own, other = (rows("b200_sxm", backend, "gemm", **shape) for backend in ("vllm", "sglang"))
    m = np.intersect1d(own["m"], other["m"])
    fastest = [
        min(table["latency_ms"][table["m"] == rows_].min() for table in (own, other)) for rows_ in m
    ]
    found = kernels("b200_sxm", "vllm").gemm.latency(
        "fp8_block", m, np.full(len(m), 7168), np.full(len(m), 2048)
    )
    few = m <= 64
    assert few.sum() > 10
    assert (found.provenance[few] == SUBSTITUTED).all()
    same = np.isclose(found.ms[few], np.array(fastest)[few], rtol=1e-6)
    # One of SGLang's points is 1.4 times both of its neighbours, and no measurement.
    assert same.sum() == few.sum() - 1
    assert (found.ms[few] <= np.array(fastest)[few] * (1 + 1e-6)).all()
    assert found.ms[few].max() < 0.02 < 0.15 < own["latency_ms"].min()
    (*_, note) = found.notes
    assert note.startswith("b200_sxm vllm 0.24.0 GEMM (fp8_block) is screened (constant overhead)")


# --- kinds of layers


def test_sparse_attention_returns_measured_points():
    model = find_model("zai-org/GLM-5-FP8")
    block = Block(model.architecture, model.layers[0][1].attention, model.hidden, "fp8_block")
    sparse = kernels("b200_sxm", "trtllm").sparse_attention
    of = {"architecture": "GlmMoeDsaForCausalLM", "gemm_dtype": "fp8_block", "kv_dtype": "fp8"}
    stored = rows("b200_sxm", "trtllm", "dsa_generation_module", **of)
    found = sparse.generation(block, "fp8", stored["heads"], stored["batch"], stored["kv_len"])
    np.testing.assert_allclose(found.ms, stored["latency_ms"], rtol=1e-6)
    assert (found.provenance == MEASURED).all()
    stored = rows("b200_sxm", "trtllm", "dsa_context_module", prefix=0, **of)
    found = sparse.context(block, "fp8", stored["heads"], stored["isl"], stored["batch"])
    np.testing.assert_allclose(found.ms, stored["latency_ms"], rtol=1e-6)


def test_gated_delta_nets_return_measured_points():
    spec = find_model("QWEN3.5_397B").layers[0][1].attention
    assert spec == GDN(k_heads=16, v_heads=64, k_dim=128, v_dim=128, conv=4)
    net = kernels("h200_sxm", "sglang").delta_net
    stored = rows("h200_sxm", "sglang", "gdn", phase="generation", d_model=4096, k_heads=2)
    mine = (stored["v_heads"] == 8) & (stored["kernel"] == "causal_conv1d_update")
    heads = np.full(mine.sum(), 2), np.full(mine.sum(), 8)
    found = net.latency("conv", "generation", spec, *heads, stored["batch"][mine], np.ones(1))
    np.testing.assert_allclose(found.ms, stored["latency_ms"][mine], rtol=1e-6)


def test_a_gated_delta_net_keeps_a_state_instead_of_a_cache():
    """15 of 60 layers cache 2 x 2 heads x 256 values; 45 keep 64 x 128 x 128 values of 32 bit and
    three inputs of 2 x 16 x 128 + 64 x 128 channels."""
    model = find_model("QWEN3.5_397B")
    precision = Precision("fp8_block", "fp8_block", "float16", "float16")
    held = request_cache_bytes(model, precision, ONE, np.array([1000]))
    cache = 15 * 2 * 2 * 256 * 2 * 1000
    state = 45 * (64 * 128 * 128 * 4 + (2 * 16 * 128 + 64 * 128) * 3 * 2)
    assert held.tolist() == [cache + state]


def test_a_window_caps_the_cache():
    """18 of 36 layers keep 128 tokens at most; 2 x 8 heads x 64 values of 8 bit each."""
    precision = Precision("float16", "w4a16_mxfp4", "fp8", "fp8")
    two = Layout(*np.ones((5, 2), np.int64))
    held = request_cache_bytes(find_model("GPT_OSS_120B"), precision, two, np.array([100, 5000]))
    assert held.tolist() == [36 * 1024 * 100, 18 * 1024 * (128 + 5000)]


def test_an_indexer_caches_a_key():
    """512 + 64 values of 16 bit, and 128 of 8 bit with a scale of 32."""
    precision = Precision("fp8_block", "fp8_block", "float16", "float16")
    held = request_cache_bytes(find_model("DEEPSEEK_V3.2"), precision, ONE, np.array([10]))
    assert held.tolist() == [61 * 10 * (576 * 2 + 128 + 4)]


def test_parts_of_a_checkpoint_weigh_their_own_precision():
    """DeepSeek NVFP4 leaves the attention in 16 bit: 61 layers of 187 M parameters, 1.4375 bytes
    more each."""
    model = find_model("DEEPSEEK_V3")
    parts = [Precision("nvfp4", "nvfp4", "fp8", "fp8", p) for p in ("float16", "")]
    whole, mixed = (weight_bytes(model, precision, ONE)[0] for precision in reversed(parts))
    attention = model.layers[0][1].attention.params(model.hidden) - 1536 - 512  # without norms
    assert mixed - whole == pytest.approx(61 * attention * (2 - 0.5625))


def test_an_output_gate_widens_the_query_projection():
    model = find_model("QWEN3.5_397B")
    (attention,) = {x.attention for _, x in model.layers if isinstance(x.attention, GQA)}
    h = 4096
    by_hand = h * (2 * 32 * 256 + 2 * 2 * 256) + 32 * 256 * h + 2 * 256
    assert attention.output_gate
    assert attention.params(h) == by_hand


def test_prompt_and_decoding_are_priced_apart_in_a_mixed_step():
    """A mixed step of sparse attention is one prompt's block and one decode block."""
    model = find_model("DEEPSEEK_V3.2")
    precision = default_precision("DEEPSEEK_V3.2", "b200_sxm", "trtllm", "fp8")
    eight, engine = layout(8, 1, 1, 8, 1), kernels("b200_sxm", "trtllm")
    alone = [step_latency(model, precision, eight, s, engine) for s in (prefill(1024), decode())]
    both = Step(*(getattr(prefill(1024), f) for f in ("prefill_tokens", "prompts", "isl")),
                np.array([8]), np.array([[2048]]))  # fmt: skip
    mixed = step_latency(model, precision, eight, both, engine)
    for name, source in (("context_dsa_block", alone[0]), ("generation_dsa_block", alone[1])):
        at = mixed.operators.index(name)
        assert mixed.ms[0, at] == pytest.approx(source.ms[0, at])
        assert mixed.ms[0, at] > 0


# --- precisions


@pytest.mark.parametrize(
    ("model", "system", "backend", "word", "expected"),
    [
        # NVIDIA leaves attention in 16 bit, but, from v2 on, for its last projection.
        (
            "deepseek-ai/DeepSeek-R1",
            "gb200",
            "trtllm",
            "fp4",
            Precision("nvfp4", "nvfp4", "fp8", "fp8", "float16", "nvfp4"),
        ),
        (
            "openai/gpt-oss-120b",
            "h100_sxm",
            "vllm",
            "fp4",
            Precision("float16", "w4a16_mxfp4", "float16", "float16", "float16"),
        ),
        (
            "openai/gpt-oss-120b",
            "b200_sxm",
            "trtllm",
            "fp8",
            Precision("float16", "w4a8_mxfp4_mxfp8", "fp8", "fp8", "float16"),
        ),
        (
            "moonshotai/Kimi-K2.5",
            "h200_sxm",
            "vllm",
            "",
            Precision("float16", "int4_wo", "float16", "float16", "float16"),
        ),
        (
            "Qwen/Qwen3-32B",
            "h100_sxm",
            "sglang",
            "",
            Precision("float16", "float16", "float16", "float16", "float16"),
        ),
    ],
)
def test_default_precision(model, system, backend, word, expected):
    assert default_precision(model, system, backend, word) == expected


def test_a_gpu_without_4_bit_units_multiplies_in_16_bit():
    found = default_precision("nvidia/Qwen3-32B-NVFP4", "h100_sxm", "vllm")
    assert (found.gemm, found.kv_cache) == ("w4a16_nvfp4", "fp8")


TINY_MOE = {
    "architectures": ["KimiK25ForConditionalGeneration"],
    "text_config": {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 32,
        "max_position_embeddings": 64,
        "moe_intermediate_size": 4,
        "num_experts_per_tok": 1,
        "q_lora_rank": 4,
        "kv_lora_rank": 4,
        "qk_nope_head_dim": 2,
        "qk_rope_head_dim": 2,
        "v_head_dim": 2,
        "n_routed_experts": 2,
    },
}


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        ({"quant_method": "mxfp4"}, ("float16", "w4a16_mxfp4", "float16")),
        (
            {"quant_algo": "NVFP4", "exclude_modules": ["lm_head", "model.layers.*.self_attn*"]},
            ("nvfp4", "nvfp4", "float16"),
        ),
        (
            {"quant_algo": "NVFP4", "exclude_modules": ["model.layers.0.self_attn*"]},
            ("nvfp4", "nvfp4", "float16"),
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
                "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*"],
            },
            ("float16", "int4_wo", "float16"),
        ),
        (
            {"quant_method": "fp8", "weight_block_size": [128, 128]},
            ("fp8_block", "fp8_block", "fp8_block"),
        ),
    ],
)
def test_parts_are_read_from_a_config(quantization, expected):
    config = TINY_MOE | {"quantization_config": quantization}
    checkpoint = parse_config(config, "config.json", "tiny").checkpoint
    assert (checkpoint.gemm, checkpoint.moe, checkpoint.attention) == expected


def test_every_measured_silicon_model_has_a_name():
    ids = "zai-org/GLM-5 zhipuai/GLM-5 deepseek-ai/DeepSeek-V3.2-Exp nvidia/DeepSeek-R1-0528-FP4-v2"
    ids += " meta-llama/Llama-3.3-70B-Instruct openai/gpt-oss-20b MiniMaxAI/MiniMax-M2.5"
    for id in ids.split():
        assert find_model(id).num_layers > 20
    assert isinstance(find_model("zai-org/GLM-5").layers[0][1].attention, DSA)
    assert load_system("gb300").nvlink_domain == 72
    assert PROVENANCE[SUBSTITUTED] == "substituted"
