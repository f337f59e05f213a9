"""What the flags say about the fields of an experiment, from its schema."""

import json
from functools import cache
from typing import Any

from paretoserve import paths
from paretoserve.models.catalog import model_names


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
