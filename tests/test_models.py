"""Models: dimensions against published parameter counts, and every way to name one."""

import json

import pytest
import yaml

from paretoserve import paths
from paretoserve.errors import InputError
from paretoserve.models.catalog import find_model, model_names
from paretoserve.models.dimensions import GQA, MLA, DenseFFN, LayerSpec, MoEFFN, param_count
from paretoserve.models.huggingface import parse_config

# Parameters as their publishers count them: the safetensors of each model's page on Hugging Face.
# Qwen3's three smallest share one matrix for input and output, which those files hold twice; their
# counts are those of the model cards (0.6B, 1.7B, 4.0B).
PUBLISHED = {
    "LLAMA2_7B": 6_738_415_616,
    "LLAMA2_13B": 13_015_864_320,
    "LLAMA2_70B": 68_976_648_192,
    "LLAMA3.1_8B": 8_030_261_248,
    "LLAMA3.1_70B": 70_553_706_496,
    "LLAMA3.1_405B": 405_853_388_800,
    "QWEN2.5_1.5B": 1_543_714_304,
    "QWEN2.5_7B": 7_615_616_512,
    "QWEN2.5_32B": 32_763_876_352,
    "QWEN2.5_72B": 72_706_203_648,
    "QWEN3_0.6B": 0.6e9,
    "QWEN3_1.7B": 1.7e9,
    "QWEN3_4B": 4.0e9,
    "QWEN3_8B": 8_190_735_360,
    "QWEN3_14B": 14_768_307_200,
    "QWEN3_32B": 32_762_123_264,
    "MOE_Mixtral8x7B": 46_702_792_704,
    "MOE_Mixtral8x22B": 140_620_634_112,
    "QWEN3_30B_A3B": 30_532_122_624,
    "QWEN3_235B": 235_093_634_560,
    "QWEN3_480B": 480_154_875_392,
    "DEEPSEEK_V3": 671e9,  # the paper's count, without the MTP layer
    "KIMI_K2": 1.03e12,  # its safetensors, 1.0 T in the report
    "Nemotron_super_v1.1": 49_867_145_216,
    "GPT_OSS_120B": 116.83e9,  # the model card's table
    "GPT_OSS_20B": 20.91e9,
    "MINIMAX_M2.5": 228.7e9,  # its safetensors
    "QWEN3.5_397B": 397e9,  # the name's count, which has a vision tower of 0.5 B too
    "DEEPSEEK_V3.2": 671.9e9,  # V3, and the indexer's 14 M in each layer
    "GLM_5": 744e9,  # the model card
    "KIMI_K2.5": 1.03e12,  # as Kimi-K2, without the vision tower
}

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 32,
    "max_position_embeddings": 64,
}
TINY_QWEN = TINY | {"architectures": ["Qwen2ForCausalLM"]}


def parse(**changes):
    return parse_config({**TINY, **changes}, "config.json", "tiny")


def folder_with(tmp_path, **files):
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / f"{name}.json").write_text(text)
    return str(tmp_path)


def test_every_model_has_a_published_count():
    assert set(model_names()) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_published(name):
    published = PUBLISHED[name]
    rounding = 0 if isinstance(published, int) else 0.0125
    assert param_count(find_model(name)) == pytest.approx(published, rel=rounding, abs=0)


def test_parameters_by_hand():
    # head_dim 8/4 = 2. Per layer: q 8*8, k and v 8*4 each, o 8*8; FFN 3*8*16; two norms of 8.
    layer = 64 + 2 * 32 + 64 + 384 + 16
    assert param_count(parse()) == 2 * layer + 2 * 32 * 8 + 8
    assert param_count(parse(tie_word_embeddings=True)) == 2 * layer + 32 * 8 + 8
    # Qwen2 adds a bias to q, k and v: 8 + 4 + 4; Qwen3 a norm to each head of q and k: 2 + 2.
    assert param_count(parse(architectures=["Qwen2ForCausalLM"])) == param_count(parse()) + 2 * 16
    assert param_count(parse(architectures=["Qwen3ForCausalLM"])) == param_count(parse()) + 2 * 4


def test_dimensions_of_a_dense_model():
    model = find_model("QWEN3_32B")
    attention = GQA(heads=64, kv_heads=8, head_dim=128, qk_norm=True)
    assert model.layers == ((64, LayerSpec(attention, DenseFFN(25600))),)
    assert (model.hidden, model.vocab, model.max_position_embeddings) == (5120, 151936, 40960)
    assert not model.is_moe


def test_layer_groups_of_a_model_that_starts_dense():
    model = find_model("DEEPSEEK_V3")
    attention = MLA(heads=128, q_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, v_dim=128)
    assert model.layers == (
        (3, LayerSpec(attention, DenseFFN(18432))),
        (58, LayerSpec(attention, MoEFFN(experts=256, topk=8, inter=2048, shared_inter=2048))),
    )
    assert model.is_moe
    assert model.mtp_layers == 1


def test_blocks_of_a_pruned_model_may_lack_attention():
    model = find_model("nvidia/Llama-3_3-Nemotron-Super-49B-v1")
    assert model.num_layers == 80
    attention = GQA(heads=64, kv_heads=8, head_dim=128)
    # 2.625 x 8192 x 2 / 3 = 14336 is a multiple of 256, 8192 x 2 / 3 = 5461 is rounded up to 5632.
    assert model.layers[0] == (1, LayerSpec(attention, DenseFFN(14336)))
    kinds = {(layer.attention, layer.ffn.inter) for _, layer in model.layers}
    assert (None, 5632) in kinds
    assert sum(count for count, layer in model.layers if layer.attention) == 49


@pytest.mark.parametrize(
    ("blocks", "sentence"),
    [
        ([], "0 blocks, not one for each hidden layer"),
        ([{}, {}], "is missing"),
        ([{"attention": {"no_op": True}, "ffn": {"ffn_mult": None}}] * 2, "a positive number"),
        ([{"attention": {"n_heads_in_group": 3}, "ffn": {"no_op": True}}] * 2, "3 does not divide"),
    ],
)
def test_wrong_block_is_one_sentence(blocks, sentence):
    with pytest.raises(InputError, match=sentence):
        parse(architectures=["DeciLMForCausalLM"], block_configs=blocks)


def test_layer_groups_follow_the_order_of_layers():
    moe = parse(
        architectures=["Qwen3MoeForCausalLM"],
        num_hidden_layers=5,
        mlp_only_layers=[2],
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=3,
    )
    kinds = [(count, type(layer.ffn)) for count, layer in moe.layers]
    assert kinds == [(2, MoEFFN), (1, DenseFFN), (2, MoEFFN)]
    assert moe.num_layers == 5


def test_qwen_uses_its_window_from_a_layer_on():
    windowed = TINY_QWEN | {"sliding_window": 4, "max_window_layers": 1}
    off = parse_config(windowed, "config.json", "tiny")
    assert [(count, layer.attention.window) for count, layer in off.layers] == [(2, 0)]
    on = parse_config(windowed | {"use_sliding_window": True}, "config.json", "tiny")
    assert [(count, layer.attention.window) for count, layer in on.layers] == [(1, 0), (1, 4)]


def test_names_of_a_model(tmp_path):
    model = find_model("QWEN3_8B")
    assert find_model("qwen3_8b") == find_model("Qwen/Qwen3-8B") == model
    config = TINY | {
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 12288,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "torch_dtype": "bfloat16",
    }
    local = find_model(folder_with(tmp_path, config=config))
    assert local.name == str(tmp_path)
    assert local.layers == model.layers
    assert local.digest == model.digest
    assert find_model("QWEN3_14B").digest != model.digest


def test_no_checkpoint_belongs_to_two_models():
    files = [yaml.safe_load(paths.model_file(name).read_bytes()) for name in model_names()]
    ids = [
        id.lower()
        for file in files
        for key in ("huggingface", "quantised")
        for id in file.get(key, [])
    ]
    assert len(ids) > len(files)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("quantization", "mode"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block"),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "awq", "bits": 4}, "int4_wo"),
        ({"quant_method": "gptq", "bits": 8}, "int8_wo"),
        (None, None),
    ],
)
def test_precision_of_the_checkpoint(quantization, mode):
    assert parse(quantization_config=quantization).checkpoint_quant_mode == mode


def test_precision_of_a_named_checkpoint(tmp_path):
    assert find_model("QWEN3_32B").checkpoint_quant_mode is None
    assert find_model("Qwen/Qwen3-32B-FP8").checkpoint_quant_mode == "fp8_block"
    modelopt = {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    folder = folder_with(tmp_path, config=TINY, hf_quant_config=modelopt)
    assert find_model(folder).checkpoint_quant_mode == "fp8"


def test_a_name_too_long_for_a_file_is_an_unknown_model():
    with pytest.raises(InputError, match="unknown model 'aaa"):
        find_model("a" * 300)


def test_unknown_name_gets_the_nearest():
    with pytest.raises(
        InputError, match=r"unknown model 'QWEN_32B' \(did you mean 'QWEN3_32B'\?\)"
    ):
        find_model("QWEN_32B")
    with pytest.raises(InputError, match=r"did you mean 'meta-llama/Llama-3\.1-8B'"):
        find_model("meta-lama/Llama-3.1-8B")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not JSON"),
        ([], "must hold a JSON object"),
        ({}, "field 'architectures' is missing"),
        (TINY | {"architectures": ["BertModel"]}, "BertModel is not supported; supported: Llama"),
        (TINY | {"architectures": ["Qwen4ForCausalLM"]}, "did you mean 'Qwen3ForCausalLM'"),
        ({k: v for k, v in TINY.items() if k != "vocab_size"}, "field 'vocab_size' is missing"),
        (TINY | {"hidden_size": "8"}, "field 'hidden_size': got '8', must be an integer"),
        (TINY | {"num_hidden_layers": 0}, "field 'num_hidden_layers': got 0"),
        (TINY | {"num_key_value_heads": 3}, "field 'num_key_value_heads': 3 does not divide 4"),
        (TINY | {"tie_word_embeddings": "no"}, "field 'tie_word_embeddings': got 'no'"),
        (TINY | {"quantization_config": {"quant_method": "exl9"}}, "method exl9 is not supported"),
    ],
)
def test_unusable_config_is_one_sentence(tmp_path, content, sentence):
    with pytest.raises(InputError) as error:
        find_model(folder_with(tmp_path, config=content))
    assert str(error.value).startswith(f"{tmp_path}/config.json")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_folder_without_config(tmp_path):
    with pytest.raises(InputError, match=r"config\.json: cannot be read: No such file"):
        find_model(str(tmp_path))
