"""What the flags say about the fields of an experiment, from its schema."""

import argparse
import json
import re
from functools import cache
from typing import Any

from paretoserve import paths
from paretoserve.experiments.loading import COMMAND_LINE
from paretoserve.models.catalog import model_names

# The guide's default mode asks for 20 ms, its commented experiment file for 40.
DEFAULT_MODE_TPOT_MS = 20.0
TYPES = {"integer": int, "number": float, "string": str}


def spec_of(field: str) -> dict[str, Any]:
    """Return the schema of an experiment's field."""
    return experiment_schema()["properties"][field]


@cache
def experiment_schema() -> dict[str, Any]:
    """Return the schema of an experiment."""
    return json.loads(paths.EXPERIMENT_SCHEMA.read_bytes())["$defs"]["experiment"]


def allowed(field: str, spec: dict[str, Any]) -> list[str]:
    """Say what a field allows, where its description does not."""
    if field == "model_name":
        return [f"Known: {', '.join(model_names())}."]
    if field == "system_name":
        return [f"Known: {', '.join(sorted(file.stem for file in paths.SYSTEMS.glob('*.yaml')))}."]
    if "enum" in spec:
        return [f"Allowed: {', '.join(spec['enum'])}."]
    if "exclusiveMinimum" in spec:
        return [f"More than {spec['exclusiveMinimum']}."]
    return [f"{spec['minimum']} to {spec['maximum']}."] if "minimum" in spec else []


def add_field(
    mode: argparse.ArgumentParser, field: str, flag: str, default: float | None = None
) -> None:
    """Add the flag of a field. Its range is told here but checked, as in files, by the schema.

    `default` stands in the place of the schema's, which is told but left to config/defaults.yaml.
    """
    spec = spec_of(field)
    value = spec.get("default") if default is None else default
    told = [
        re.sub(r"\w+", lambda word: COMMAND_LINE.flags.get(word[0], word[0]), spec["description"]),
        *allowed(field, spec),
        *([] if value is None else [f"Default: {value}."]),
    ]
    mode.add_argument(
        flag,
        type=TYPES[spec.get("type", "string")],
        required=field in experiment_schema()["required"],
        default=default,
        metavar=spec.get("unit", flag.removeprefix("--").split("_")[-1]).upper(),
        help=" ".join(told).replace("%", "%%"),
    )
