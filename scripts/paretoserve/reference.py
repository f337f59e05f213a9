"""docs/reference.md: every field of the files that a user writes, from their JSON Schemas.

`python -m paretoserve.reference` prints the page (`make reference`).
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from paretoserve import paths

Schema = Mapping[str, Any]

PAGE = """\
# Reference of every field

Made by `make reference` from `config/schemas/*.schema.json`; editors can check a file against them.
How the fields work together is in [config/README.md](../config/README.md); the flags of the command
line have the same names, and `-h` explains them.
"""
TYPES = {
    "object": "mapping",
    "array": "list",
    "string": "text",
    "integer": "integer",
    "number": "number",
    "boolean": "true or false",
    "null": "null",
}


def reference_page() -> str:
    """Return the whole page in Markdown."""
    files = sorted(paths.SCHEMAS.glob("*.schema.json"))
    return "\n".join([PAGE, *(line for file in files for line in _document(file))])


def _document(file: Path) -> Iterator[str]:
    whole = json.loads(file.read_bytes())
    yield from (f"## {whole['title']}", "")
    yield from (f"`config/schemas/{file.name}`. {whole['description']}", "")
    # Fields of one definition are told once, under the names of all that have them.
    sections: dict[str, tuple[list[str], Schema]] = {"": ([""], whole)}
    pending = [""]
    while pending:
        (path, *_), schema = sections[pending.pop(0)]
        for name, field in _fields(schema):
            full, resolved = f"{path}.{name}".lstrip("."), _resolved(field, whole)
            if "properties" in resolved:
                key = field.get("$ref", full)
                if key not in sections:
                    sections[key] = ([], resolved)
                    pending.append(key)
                sections[key][0].append(full)
    for names, schema in sections.values():
        if names != [""]:
            title = f": {schema['title']}" if len(names) == 1 else ""
            yield from (f"### {', '.join(f'`{name}`' for name in names)}{title}", "")
            yield from (schema["description"], "")
        yield from ("| field | value | default | meaning |", "|---|---|---|---|")
        for name, field in _fields(schema):
            required = name in schema.get("required", ())
            yield _row(name, _resolved(field, whole), required, whole)
        yield ""


def _fields(schema: Schema) -> Iterator[tuple[str, Schema]]:
    yield from schema.get("properties", {}).items()
    others = schema.get("additionalProperties")
    if isinstance(others, dict):
        yield "NAME", others


def _resolved(field: Schema, whole: Schema) -> Schema:
    """The field with what it refers to; what it says itself goes before."""
    if "$ref" not in field:
        return field
    *_, name = field["$ref"].split("/")
    return {**_resolved(whole["$defs"][name], whole), **field}


def _row(name: str, field: Schema, required: bool, whole: Schema) -> str:
    default = f"`{json.dumps(field['default'])}`" if "default" in field else ""
    said = (field.get("title", ""), field.get("description", ""))
    meaning = ". ".join(part for part in said if part).replace("|", "\\|")
    cells = (f"`{name}`", _value(field, whole), "required" if required else default, meaning)
    return f"| {' | '.join(cells)} |"


def _value(field: Schema, whole: Schema) -> str:
    """What a field may be: its type, range and unit, or the words that are allowed."""
    if "enum" in field:
        return ", ".join(f"`{word}`" for word in field["enum"])
    of_item = _value(_resolved(field["items"], whole), whole) if "items" in field else ""
    types = field.get("type", "object")
    said = " or ".join(
        f"list of {of_item}" if one == "array" and of_item else TYPES[one]
        for one in ([types] if isinstance(types, str) else types)
    )
    least, above, most = (field.get(limit) for limit in ("minimum", "exclusiveMinimum", "maximum"))
    if above is not None:
        said += f" above {above}" + (f", up to {most}" if most is not None else "")
    elif least is not None:
        said += f" from {least}" + (f" to {most}" if most is not None else "")
    if "maxItems" in field:
        said += f", at most {field['maxItems']}"
    return f"{said}, {field['unit']}" if "unit" in field else said


if __name__ == "__main__":
    print(reference_page(), end="")
