"""What the comparison report shows (config/report.yaml)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from paretoserve import paths
from paretoserve.errors import InputError


@dataclass(frozen=True)
class Choices:
    """How many questions have details in the page, and where throughput and GPUs are told."""

    detailed_questions: int
    tpot_targets_ms: tuple[float, ...]
    user_speeds: tuple[float, ...]
    request_rates_per_s: tuple[float, ...]


def load_choices(file: Path = paths.REPORT) -> Choices:
    """Read the choices; InputError if one is missing or cannot be used."""
    try:
        content = yaml.load(file.read_bytes(), yaml.CSafeLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    names = tuple(Choices.__dataclass_fields__)
    if not isinstance(content, dict) or set(content) != set(names):
        raise InputError(f"{file} must have {', '.join(names)}, and nothing else")
    most = content.pop(names[0])
    if isinstance(most, bool) or not isinstance(most, int) or most < 0:
        raise InputError(f"{file}: {names[0]} is {most!r}, it must be a number of questions")
    return Choices(most, **{name: _rising(file, name, of) for name, of in content.items()})


def _rising(file: Path, name: str, values: Any) -> tuple[float, ...]:
    usable = isinstance(values, list) and values and all(_positive(value) for value in values)
    if not usable or sorted(set(values)) != values:
        raise InputError(f"{file}: {name} is {values!r}, it must be numbers above 0, rising")
    return tuple(values)


def _positive(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and value > 0
