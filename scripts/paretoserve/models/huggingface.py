"""Read a model's dimensions from the fields of a Hugging Face config.json."""

import json
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from paretoserve import paths
from paretoserve.errors import InputError, did_you_mean
from paretoserve.models.dimensions import GQA, MLA, DenseFFN, LayerSpec, Model, MoEFFN

MOST_LAYERS = 10_000
LARGEST = 10**7  # of any dimension: no vocabulary, width or number of layers comes near


class Fields:
    """Fields of one configuration; a missing or wrong one is an InputError naming the file."""

    def __init__(self, source: str, values: Mapping[str, Any]):
        self.source = source
        self.values = values

    def integer(self, name: str, default: int | None = None, minimum: int = 1) -> int:
        """Return an integer; `default` stands in for an absent or null field."""
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if value is None:
            raise InputError(f"{self.source}: field '{name}' is missing")
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= LARGEST:
            raise self.error(name, f"got {value!r}, must be an integer from {minimum} to {LARGEST}")
        return value

    def typed(self, name: str, kind: type, default: Any) -> Any:
        """Return a field of this type; `default` stands in for an absent or null one."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, kind):
            raise self.error(name, f"got {value!r}, must be a {kind.__name__}")
        return value

    def error(self, name: str, problem: str) -> InputError:
        """Return the error that says what is wrong with a field."""
        return InputError(f"{self.source}, field '{name}': {problem}")


def read_config(folder: Path, name: str) -> Model:
    """Parse `folder`/config.json, and its hf_quant_config.json where ModelOpt left one."""
    file = paths.huggingface_config(folder)
    values = _read_json(file)
    quant_file = paths.huggingface_quant_config(folder)
    if quant_file.exists():
        values["quantization_config"] = _read_json(quant_file).get("quantization")
    return parse_config(values, str(file), name)


def parse_config(values: Mapping[str, Any], source: str, name: str) -> Model:
    """Return the model that the fields of a config.json describe.

    `source` is named in errors: an unsupported architecture, or a missing or wrong field.
    """
    fields = Fields(source, values)
    architecture = _architecture(fields)
    layer = LAYERS[architecture]
    count = fields.integer("num_hidden_layers")
    if count > MOST_LAYERS:
        raise fields.error("num_hidden_layers", f"got {count}, at most {MOST_LAYERS} are supported")
    specs = [layer(fields, index) for index in range(count)]
    return Model(
        name=name,
        architecture=architecture,
        hidden=fields.integer("hidden_size"),
        vocab=fields.integer("vocab_size"),
        layers=tuple((len(list(run)), spec) for spec, run in groupby(specs)),
        tied_embeddings=fields.typed("tie_word_embeddings", bool, False),
        max_position_embeddings=fields.integer("max_position_embeddings"),
        mtp_layers=fields.integer("num_nextn_predict_layers", default=0, minimum=0),
        checkpoint_quant_mode=_quant_mode(fields),
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file}: is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{file}: must hold a JSON object")
    return values


def _architecture(fields: Fields) -> str:
    listed = fields.typed("architectures", list, [])
    if not listed:
        raise InputError(f"{fields.source}: field 'architectures' is missing or empty")
    name = str(listed[0])
    if name not in LAYERS:
        known = f"{did_you_mean(name, LAYERS)}; supported: {', '.join(LAYERS)}"
        raise fields.error("architectures", f"{name} is not supported{known}")
    return name


def _gqa(fields: Fields, *, qkv_bias: bool, qk_norm: bool = False, window: int = 0) -> GQA:
    heads = fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise fields.error("num_key_value_heads", f"{kv_heads} does not divide {heads} heads")
    head_dim = fields.integer("head_dim", default=fields.integer("hidden_size") // heads)
    if not head_dim:
        raise fields.error("num_attention_heads", f"{heads} is more than hidden_size")
    return GQA(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        window=window,
    )


def _qwen_window(fields: Fields, index: int) -> int:
    """Qwen keeps full attention in the first `max_window_layers`, if it uses a window at all."""
    if not fields.typed("use_sliding_window", bool, False) or index < fields.integer(
        "max_window_layers"
    ):
        return 0
    return fields.integer("sliding_window")


def _dense(fields: Fields) -> DenseFFN:
    return DenseFFN(fields.integer("intermediate_size"))


def _llama(fields: Fields, index: int) -> LayerSpec:
    return LayerSpec(
        _gqa(fields, qkv_bias=fields.typed("attention_bias", bool, False)), _dense(fields)
    )


def _qwen2(fields: Fields, index: int) -> LayerSpec:
    attention = _gqa(fields, qkv_bias=True, window=_qwen_window(fields, index))
    return LayerSpec(attention, _dense(fields))


def _qwen3_attention(fields: Fields, index: int) -> GQA:
    return _gqa(
        fields,
        qkv_bias=fields.typed("attention_bias", bool, False),
        qk_norm=True,
        window=_qwen_window(fields, index),
    )


def _qwen3(fields: Fields, index: int) -> LayerSpec:
    return LayerSpec(_qwen3_attention(fields, index), _dense(fields))


def _qwen3_moe(fields: Fields, index: int) -> LayerSpec:
    sparse = (index + 1) % fields.integer("decoder_sparse_step", default=1) == 0
    if index in fields.typed("mlp_only_layers", list, []) or not sparse:
        return LayerSpec(_qwen3_attention(fields, index), _dense(fields))
    experts = MoEFFN(
        experts=fields.integer("num_experts"),
        topk=fields.integer("num_experts_per_tok"),
        inter=fields.integer("moe_intermediate_size"),
    )
    return LayerSpec(_qwen3_attention(fields, index), experts)


def _mixtral(fields: Fields, index: int) -> LayerSpec:
    window = fields.integer("sliding_window", default=0)
    experts = MoEFFN(
        experts=fields.integer("num_local_experts"),
        topk=fields.integer("num_experts_per_tok"),
        inter=fields.integer("intermediate_size"),
    )
    return LayerSpec(_gqa(fields, qkv_bias=False, window=window), experts)


def _deepseek_v3(fields: Fields, index: int) -> LayerSpec:
    attention = MLA(
        heads=fields.integer("num_attention_heads"),
        q_rank=fields.integer("q_lora_rank"),
        kv_rank=fields.integer("kv_lora_rank"),
        nope_dim=fields.integer("qk_nope_head_dim"),
        rope_dim=fields.integer("qk_rope_head_dim"),
        v_dim=fields.integer("v_head_dim"),
    )
    if index < fields.integer("first_k_dense_replace", default=0, minimum=0):
        return LayerSpec(attention, _dense(fields))
    inter = fields.integer("moe_intermediate_size")
    experts = MoEFFN(
        experts=fields.integer("n_routed_experts"),
        topk=fields.integer("num_experts_per_tok"),
        inter=inter,
        shared_inter=inter * fields.integer("n_shared_experts", default=0, minimum=0),
    )
    return LayerSpec(attention, experts)


def _nemotron_nas(fields: Fields, index: int) -> LayerSpec:
    """A pruned Llama: `block_configs` says of each block which part is left, and how much of it."""
    heads, hidden = fields.integer("num_attention_heads"), fields.integer("hidden_size")
    blocks = fields.typed("block_configs", list, [])
    if len(blocks) != fields.integer("num_hidden_layers"):
        raise fields.error("block_configs", f"{len(blocks)} blocks, not one for each hidden layer")
    parts = {}
    for part, size in (("attention", "n_heads_in_group"), ("ffn", "ffn_mult")):
        where = f"block_configs[{index}].{part}"
        block = blocks[index].get(part) if isinstance(blocks[index], dict) else None
        if not isinstance(block, dict):
            raise fields.error(where, "is missing")
        if block.get("replace_with_linear") or block.get("window_length"):
            raise fields.error(where, "linear and windowed parts are not supported")
        value = None if block.get("no_op") else block.get(size)
        if not block.get("no_op") and not (isinstance(value, int | float) and value > 0):
            raise fields.error(f"{where}.{size}", f"got {value!r}, must be a positive number")
        parts[part] = value
    group, multiple = parts["attention"], parts["ffn"]
    if group is not None and heads % group:
        raise fields.error(f"block_configs[{index}]", f"{group} does not divide {heads} heads")
    attention = group and GQA(heads=heads, kv_heads=int(heads // group), head_dim=hidden // heads)
    return LayerSpec(attention, multiple and DenseFFN(_nemotron_width(multiple, hidden)))


def _nemotron_width(multiple: float, hidden: int) -> int:
    """Two thirds of multiple x hidden, up to whole blocks of 256, as in NVIDIA's DeciLM code."""
    return -(-int(2 * multiple * hidden / 3) // 256) * 256


LAYERS: dict[str, Callable[[Fields, int], LayerSpec]] = {
    "LlamaForCausalLM": _llama,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
    "Qwen3MoeForCausalLM": _qwen3_moe,
    "MixtralForCausalLM": _mixtral,
    "DeepseekV3ForCausalLM": _deepseek_v3,
    "DeciLMForCausalLM": _nemotron_nas,
}

QUANT_METHODS = {
    "fp8": "fp8",
    "fbgemm_fp8": "fp8",
    "nvfp4": "nvfp4",
    "awq": "int4_wo",
    "gptq": "int4_wo",
}


def _quant_mode(fields: Fields) -> str | None:
    """Return the GEMM mode of the checkpoint's weights, None if they are not quantised.

    ModelOpt names its algorithm in `quant_algo`; others name theirs in `quant_method`.
    """
    config = fields.typed("quantization_config", dict, {})
    if not config:
        return None
    method = str(config.get("quant_algo") or config.get("quant_method"))
    if method.lower() not in QUANT_METHODS:
        problem = f"method {method} is not supported; supported: {', '.join(QUANT_METHODS)}"
        raise fields.error("quantization_config", problem)
    mode = QUANT_METHODS[method.lower()]
    if mode == "fp8" and config.get("weight_block_size"):
        return "fp8_block"
    if mode == "int4_wo" and config.get("bits") == 8:
        return "int8_wo"
    return mode
