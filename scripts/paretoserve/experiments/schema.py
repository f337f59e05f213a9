"""Validate raw experiments against the JSON Schema, with one readable sentence per error."""

import json
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

from paretoserve import paths
from paretoserve.errors import InputError, did_you_mean

MAX_ERRORS = 5  # more at once is noise

Path = list[str | int]

TYPES = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "integer": "an integer",
    "number": "a finite number",
    "boolean": "true or false",
    "null": "null",
}


def validate(
    raw: dict[str, Any],
    locate: Callable[[Path], str],
    schema: pathlib.Path = paths.EXPERIMENT_SCHEMA,
) -> None:
    """Raise InputError, a line for each of the first few errors in a file.

    Parameters
    ----------
    raw
        Content of the file, such as `exps` and named experiments. All keys are strings.
    locate
        Says where a path into `raw` was written, to begin a sentence with.
    schema
        JSON Schema of such files.
    """
    errors = sorted(_validator(schema).iter_errors(raw), key=lambda error: [*map(str, error.path)])
    raise_all(
        f"{locate(list(error.absolute_path))}: {problem}"
        for error in errors
        for problem in _problems(error)
    )


def raise_all(sentences: Iterable[str]) -> None:
    """Raise InputError with the first few different sentences, a line each, if there are any."""
    different = list(dict.fromkeys(sentences))
    if different:
        raise InputError("\n".join(different[:MAX_ERRORS]))


@cache
def content(schema: pathlib.Path) -> dict[str, Any]:
    """Return a JSON Schema."""
    return json.loads(schema.read_bytes())


@cache
def _validator(schema: pathlib.Path) -> Any:
    import jsonschema  # takes longer to import than all else here

    base = jsonschema.Draft202012Validator
    finite = base.TYPE_CHECKER.redefine(
        "number",
        lambda checker, value: (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        ),
    )
    validator = jsonschema.validators.extend(base, type_checker=finite)
    return validator(content(schema))


def _problems(error: Any) -> Iterator[str]:
    """Say what is wrong, for one error of jsonschema."""
    value, rule = error.instance, error.validator_value
    match error.validator:
        case "required":
            missing = [f"'{key}'" for key in rule if key not in value]
            yield f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        case "additionalProperties":
            known = error.schema["properties"]
            for key in sorted(value.keys() - known.keys()):
                nearest = did_you_mean(key, known) or f"; known keys: {', '.join(known)}"
                yield f"unknown key '{key}'{nearest}"
        case "enum":
            nearest = did_you_mean(value, rule) if isinstance(value, str) else ""
            yield f"got {shown(value)}, allowed {', '.join(rule)}{nearest}"
        case "type":
            types = [rule] if isinstance(rule, str) else rule
            allowed = " or ".join(TYPES[name] for name in types)
            name = str(error.absolute_path[0]) if len(error.absolute_path) == 1 else ""
            yield f"got {shown(value)}, must be {allowed}{did_you_mean(name, ['exps'])}"
        case "minimum" | "maximum" | "exclusiveMinimum":
            yield f"got {shown(value)}, allowed {_range(error.schema)}"
        case "minItems" | "minLength":
            yield "must not be empty"
        case "maxItems":
            yield f"got {len(value)} values, at most {rule} are allowed"
        case "uniqueItems":
            yield f"got {shown(value)}, where a value repeats"
        case "minProperties":
            yield "must not be empty" if error.absolute_path else "holds no experiment"
        case "pattern" if error.absolute_path:
            yield f"got {shown(value)}, must be a version such as 1.0.0rc6"
        case "pattern":  # of an experiment's name: it becomes a folder
            yield f"experiment name '{value}' may hold only letters, digits, '.', '_' and '-'"
        case _:
            yield error.message


def _range(schema: dict[str, Any]) -> str:
    low = f"{schema['minimum']}" if "minimum" in schema else None
    if low is not None and "maximum" in schema:
        return f"{low}..{schema['maximum']}"
    low = f"{low} or more" if low is not None else f"more than {schema['exclusiveMinimum']}"
    return f"{low}, up to {schema['maximum']}" if "maximum" in schema else low


def shown(value: Any) -> str:
    """Return a value as a sentence shows it."""
    match value:
        case dict():
            return "a mapping"
        case None | True | False:
            return json.dumps(value)
        case str():
            text = f"'{value}'"
        case _:
            text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
