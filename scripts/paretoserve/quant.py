"""Precision modes: bytes per element and the tensor-core rate they run at."""

from dataclasses import dataclass
from functools import cache

import yaml

from paretoserve import paths
from paretoserve.errors import InputError, did_you_mean


@dataclass(frozen=True)
class QuantMode:
    """One precision: `bytes` per stored element, `flops` names a rate of the system file."""

    name: str
    bytes: float
    flops: str


@cache
def modes(kind: str) -> dict[str, QuantMode]:
    """Return the modes of `kind`: "weights", "kv_cache" or "attention"."""
    listed = yaml.load(paths.QUANT_MODES.read_bytes(), yaml.CSafeLoader)[kind]
    return {name: QuantMode(name, **mode) for name, mode in listed.items()}


def mode(kind: str, name: str) -> QuantMode:
    """Return one mode; InputError names the allowed ones."""
    known = modes(kind)
    if name not in known:
        raise InputError(
            f"unknown {kind} precision '{name}'{did_you_mean(name, known)}; allowed: "
            + ", ".join(known)
        )
    return known[name]
