"""Read a model's dimensions from the fields of a Hugging Face config.json."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from paretoserve import paths
from paretoserve.errors import InputError, did_you_mean
from paretoserve.models.dimensions import (
    DSA,
    GDN,
    GQA,
    MLA,
    Checkpoint,
    DenseFFN,
    LayerSpec,
    Model,
    MoEFFN,
)

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
    fields = Fields(source, _language_part(values))
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
        mtp_layers=_mtp_layers(fields),
        checkpoint=_checkpoint(fields, architecture),
    )


def _language_part(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of the language model; models that also see hold them in `text_config`."""
    inner = values.get("text_config")
    if not isinstance(inner, Mapping):
        return values
    whole = {k: values[k] for k in ("architectures", "quantization_config") if k in values}
    return {"tie_word_embeddings": values.get("tie_word_embeddings"), **inner, **whole}


def _mtp_layers(fields: Fields) -> int:
    """Layers that draft; each family has its own name for their number."""
    names = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules")
    return max(fields.integer(name, default=0, minimum=0) for name in names)


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


def _gpt_oss(fields: Fields, index: int) -> LayerSpec:
    """Every other layer attends to a window; all projections have biases."""
    kinds = fields.typed("layer_types", list, [])
    kind = kinds[index] if index < len(kinds) else ("full", "sliding")[index % 2 == 0]
    window = fields.integer("sliding_window") if "sliding" in str(kind) else 0
    attention = _gqa(fields, qkv_bias=True, window=window)
    experts = MoEFFN(
        experts=fields.integer("num_local_experts"),
        topk=fields.integer("num_experts_per_tok"),
        inter=fields.integer("intermediate_size"),
        bias=True,
    )
    return LayerSpec(replace(attention, sinks=True, output_bias=True), experts)


def _minimax_m2(fields: Fields, index: int) -> LayerSpec:
    experts = MoEFFN(
        experts=fields.integer("num_local_experts"),
        topk=fields.integer("num_experts_per_tok"),
        inter=fields.integer("intermediate_size"),
    )
    qk_norm = fields.typed("use_qk_norm", bool, False)
    of_layer = qk_norm and fields.typed("qk_norm_type", str, "") == "per_layer"
    attention = _gqa(fields, qkv_bias=False, qk_norm=qk_norm)
    return LayerSpec(replace(attention, qk_norm_of_layer=of_layer), experts)


def _qwen3_next(fields: Fields, index: int) -> LayerSpec:
    """Gated delta nets, and every `full_attention_interval`-th layer attention with a gate."""
    kinds = fields.typed("layer_types", list, [])
    interval = fields.integer("full_attention_interval", default=4)
    kind = kinds[index] if index < len(kinds) else ""
    full = kind == "full_attention" if kind else (index + 1) % interval == 0
    if full:
        gate = fields.typed("attn_output_gate", bool, True)
        bias = fields.typed("attention_bias", bool, False)
        attention = replace(_gqa(fields, qkv_bias=bias, qk_norm=True), output_gate=gate)
    else:
        attention = GDN(
            k_heads=fields.integer("linear_num_key_heads"),
            v_heads=fields.integer("linear_num_value_heads"),
            k_dim=fields.integer("linear_key_head_dim"),
            v_dim=fields.integer("linear_value_head_dim"),
            conv=fields.integer("linear_conv_kernel_dim"),
        )
    if not fields.integer("num_experts", default=0, minimum=0):
        return LayerSpec(attention, _dense(fields))
    shared = fields.integer("shared_expert_intermediate_size", default=0, minimum=0)
    experts = MoEFFN(
        experts=fields.integer("num_experts"),
        topk=fields.integer("num_experts_per_tok"),
        inter=fields.integer("moe_intermediate_size"),
        shared_inter=shared,
        shared_gate=shared > 0,
    )
    return LayerSpec(attention, experts)


def _latent_dimensions(fields: Fields) -> dict[str, int]:
    return {
        "heads": fields.integer("num_attention_heads"),
        "q_rank": fields.integer("q_lora_rank"),
        "kv_rank": fields.integer("kv_lora_rank"),
        "nope_dim": fields.integer("qk_nope_head_dim"),
        "rope_dim": fields.integer("qk_rope_head_dim"),
        "v_dim": fields.integer("v_head_dim"),
    }


def _deepseek_v32(fields: Fields, index: int) -> LayerSpec:
    attention = DSA(
        **_latent_dimensions(fields),
        index_heads=fields.integer("index_n_heads"),
        index_dim=fields.integer("index_head_dim"),
        index_topk=fields.integer("index_topk"),
    )
    return replace(_deepseek_v3(fields, index), attention=attention)


def _deepseek_v3(fields: Fields, index: int) -> LayerSpec:
    attention = MLA(**_latent_dimensions(fields))
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
    "GptOssForCausalLM": _gpt_oss,
    "MiniMaxM2ForCausalLM": _minimax_m2,
    "DeepseekV32ForCausalLM": _deepseek_v32,
    "GlmMoeDsaForCausalLM": _deepseek_v32,
    "KimiK25ForConditionalGeneration": _deepseek_v3,
    "Qwen3NextForCausalLM": _qwen3_next,
    "Qwen3_5ForConditionalGeneration": _qwen3_next,
    "Qwen3_5MoeForConditionalGeneration": _qwen3_next,
}

QUANT_METHODS = {
    "fp8": "fp8",
    "fbgemm_fp8": "fp8",
    "nvfp4": "nvfp4",
    "mxfp4": "w4a16_mxfp4",
    "awq": "int4_wo",
    "gptq": "int4_wo",
}
# Names of layers of each part, as lists of what is not quantised spell them.
PARTS = {
    "attention": ("self_attn", "linear_attn", "attn", "q_proj", "o_proj"),
    "gemm": ("shared_expert", "mlp.gate_proj", "mlp.down_proj"),
    "moe": ("mlp.experts", "block_sparse_moe.experts"),
}


def uniform(mode: str) -> Checkpoint:
    """A checkpoint of which all parts are quantised to one mode; mxfp4 is of experts only."""
    others = "float16" if mode == "w4a16_mxfp4" else mode
    return Checkpoint(gemm=others, moe=mode, attention=others)


def _checkpoint(fields: Fields, architecture: str) -> Checkpoint | None:
    """What the parts of the checkpoint are quantised to, None if none is.

    ModelOpt names its algorithm in `quant_algo` and what it left out in `exclude_modules`,
    compressed-tensors has a scheme for a group of layers and what it left out in `ignore`, others
    name theirs in `quant_method` and `modules_to_not_convert`.
    """
    config = fields.typed("quantization_config", dict, {})
    if not config:
        return None
    mode = _scheme(fields, config) or _method(fields, config)
    kept = [
        str(name)
        for key in ("exclude_modules", "ignore", "modules_to_not_convert")
        for name in config.get(key) or ()
    ]
    parts = uniform(mode)
    layers = fields.integer("num_hidden_layers")
    unquantised = {
        part: "float16" for part, names in PARTS.items() if _covered(kept, names, layers)
    }
    kv_cache = config.get("kv_cache_quant_algo") or config.get("kv_cache_scheme")
    return replace(parts, **unquantised, kv_cache="fp8" if kv_cache else "")


def _covered(patterns: list[str], names: tuple[str, ...], layers: int) -> bool:
    """Whether patterns leave out these modules everywhere: in one go, or layer by layer.

    A single projection, or a few layers (the first, the one that drafts), is not everywhere.
    """
    of_layers = set()
    for pattern in patterns:
        word = re.sub(r"^re:", "", pattern).replace("\\", "")
        layer = re.search(r"layers\.(\d+)\.(.*)", word)
        stem = (layer[2] if layer else re.sub(r"^(model|language_model)\b", "", word)).strip(".*$^")
        stem = stem.removeprefix("model.").removeprefix("layers").lstrip(".*")
        if not any(stem in (name, f"{name}s") for name in names):
            continue
        if layer is None:
            return True
        of_layers.add(layer[1])
    return 2 * len(of_layers) > layers


def _scheme(fields: Fields, config: Mapping[str, Any]) -> str | None:
    """The mode of a compressed-tensors checkpoint's only group of layers; None if it is not one."""
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        return None
    weights = next(iter(groups.values())).get("weights") or {}
    bits, kind = weights.get("num_bits"), weights.get("type")
    if kind == "int" and bits in (4, 8):
        return f"int{bits}_wo"
    if kind == "float" and bits == 8:
        return "fp8_block" if weights.get("strategy") == "block" else "fp8"
    if kind == "float" and bits == 4:
        return "nvfp4" if weights.get("group_size") == 16 else "w4a16_mxfp4"
    raise fields.error("quantization_config", f"{bits} bit {kind} weights are not supported")


def _method(fields: Fields, config: Mapping[str, Any]) -> str:
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
