"""Which precision an engine runs a checkpoint in where nobody says (config/precision.yaml)."""

from functools import cache
from typing import Any

import yaml

from paretoserve import paths
from paretoserve.errors import InputError
from paretoserve.hardware import System, load_system
from paretoserve.layout import Precision
from paretoserve.models.catalog import checkpoints, find_model
from paretoserve.models.dimensions import Checkpoint

UNQUANTISED = ("", "bf16", "bfloat16", "fp16", "float16")
SIXTEEN_BIT = Checkpoint(gemm="float16", moe="float16", attention="float16")


@cache
def default_precision(model_name: str, system: str, backend: str, word: str = "") -> Precision:
    """Return the precision of a model as an engine runs it on a system by default.

    Parameters
    ----------
    model_name
        As `find_model` takes it; the name of a quantised checkpoint says what it is quantised to.
    word
        What the checkpoint is called: fp8, fp4, int4 or bf16; "" follows the name.

    Raises
    ------
    InputError
        An unknown name or word, or no checkpoint of the model that the word may stand for.
    """
    own = _checkpoint(model_name, backend, word)
    gpu = load_system(system)
    quantised = own is not None
    parts = own or SIXTEEN_BIT
    kv_cache = _kv_cache(parts, gpu, backend, quantised)
    return Precision(
        gemm=replaced(parts.gemm, gpu),
        moe=replaced(parts.moe, gpu),
        kv_cache=kv_cache,
        attention=_settings()["attention"][backend] if kv_cache == "fp8" else "float16",
        projections=replaced(parts.attention, gpu),
        output=replaced(parts.output, gpu),
    )


def _checkpoint(model_name: str, backend: str, word: str) -> Checkpoint | None:
    model = find_model(model_name)
    words = _settings()["words"]
    if word == "":
        return model.checkpoint
    if word in UNQUANTISED:
        return None
    if word not in words:
        raise InputError(f"unknown precision '{word}'; known: {', '.join([*words, 'bf16'])}")
    wanted = words[word].get(backend) or words[word].get("any", ())
    published = [found for found in (model.checkpoint, *checkpoints(model.name).values()) if found]
    for mode in wanted:
        for found in published:
            if found.quant_mode == mode:
                return found
    if model.checkpoint:
        return model.checkpoint
    if published and not any(found is None for found in checkpoints(model.name).values()):
        return published[0]  # nothing but quantised: what the word stands for is one of those
    raise InputError(f"{model.name}: no published checkpoint is {word}")


def _kv_cache(parts: Checkpoint, gpu: System, backend: str, quantised: bool) -> str:
    for rule in _settings()["kv_cache"]:
        if (
            rule["backend"] == backend
            and rule["quantised"] == quantised
            and (gpu.sm_version or 0) >= rule.get("sm", 0)
            and rule.get("experts", parts.moe) == parts.moe
        ):
            return rule["kv_cache"]
    return parts.kv_cache or "float16"


def replaced(mode: str, gpu: System) -> str:
    """The mode that an engine runs on a GPU in place of a checkpoint's."""
    sm = gpu.sm_version or 0
    for rule in _settings()["replaced"]:
        if rule["mode"] == mode and rule.get("from_sm", 0) <= sm < rule.get("below_sm", 10**6):
            return rule["by"]
    return mode


def projections_modes(model_name: str, gemm: str, moe: str) -> tuple[str, str]:
    """The modes of the projections around attention and of the one out of it, "" where they are
    those of all GEMMs and of the others.

    Those of the published checkpoint whose other parts have these modes.
    """
    model = find_model(model_name)
    for found in (model.checkpoint, *checkpoints(model.name).values()):
        if found and (found.gemm, found.moe) == (gemm, moe):
            return found.attention if found.attention != gemm else "", found.output
    return "", ""


def published_modes(model_name: str, part: str, system: str) -> tuple[str, ...]:
    """What a part ("gemm" or "moe") of the published checkpoints runs in on a system.

    Empty where the model is published unquantised too: then it may be quantised to anything.
    """
    found = checkpoints(find_model(model_name).name).values()
    if not found or None in found:
        return ()
    gpu = load_system(system)
    return tuple(dict.fromkeys(replaced(getattr(one, part), gpu) for one in found if one))


@cache
def _settings() -> dict[str, Any]:
    return yaml.load(paths.PRECISION.read_bytes(), yaml.CSafeLoader)
