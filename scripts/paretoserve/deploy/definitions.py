"""Which keys and flags each version of an engine knows (config/schemas/engines).

A definition maps a name to spans of versions: {since, until, type, choices, many}; a span without
`since` or `until` begins or ends with the definition. A version that a definition does not list is
taken to be the newest older one that it does.
"""

import fnmatch
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from packaging.version import InvalidVersion, Version

from paretoserve import paths
from paretoserve.errors import InputError, did_you_mean

Span = Mapping[str, Any]


@dataclass(frozen=True)
class Definition:
    """Names that the versions of one engine (or of one of its modules) know."""

    name: str  # as its makers spell it
    versions: tuple[str, ...]  # oldest first
    names: Mapping[str, Sequence[Span]]
    required: Mapping[str, Sequence[str]]

    @cached_property
    def _parsed(self) -> tuple[Version, ...]:
        return tuple(Version(version) for version in self.versions)

    def nearest(self, version: str) -> str:
        """Return the newest described version that is not newer; InputError if there is none."""
        wanted = parsed(version)
        older = [v for v, p in zip(self.versions, self._parsed, strict=True) if p <= wanted]
        if not older:
            raise InputError(
                f"no template for {self.name} {version}; the oldest is for {self.versions[0]}"
            )
        return older[-1]

    def find(self, name: str, version: str) -> Span | None:
        """Return what a described version says of a key or flag; None if it does not know it."""
        at = self.versions.index(version)
        for pattern in (name, *self._patterns):
            if not fnmatch.fnmatchcase(name, pattern):
                continue
            for span in self.names.get(pattern, ()):
                if self._range(span)[0] <= at <= self._range(span)[1]:
                    return span
        return None

    def knows(self, name: str, version: str) -> bool:
        """Whether a described version has this key or flag."""
        return self.find(name, version) is not None

    def unknown(self, name: str, version: str) -> str:
        """Say that a version does not know a key or flag, and which versions do."""
        if spans := self.names.get(name):
            ranges = (self._range(span) for span in spans)
            told = ", ".join(
                dict.fromkeys(
                    self.versions[a] if a == b else f"{self.versions[a]} to {self.versions[b]}"
                    for a, b in ranges
                )
            )
            return f"{name} is unknown to {self.name} {version} ({told} know it)"
        known = (other for other in self.names if self.knows(other, version))
        return f"{name} is unknown to {self.name} {version}{did_you_mean(name, known)}"

    @cached_property
    def _patterns(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if "*" in name)

    def _range(self, span: Span) -> tuple[int, int]:
        first = self.versions.index(span["since"]) if "since" in span else 0
        last = self.versions.index(span["until"]) if "until" in span else len(self.versions) - 1
        return first, last


@cache
def definition(engine: str, module: str = "") -> Definition:
    """Read a definition: of an engine, of `aiperf`, or of a module of `dynamo`."""
    spec = json.loads(paths.engine_definition(engine).read_bytes())
    names = spec["modules"][module] if module else spec.get("flags") or spec["keys"]
    name = f"{spec['name']}'s {module} module" if module else spec["name"]
    return Definition(name, tuple(spec["versions"]), names, spec.get("required", {}))


def parsed(version: str) -> Version:
    """Return a version that can be compared; InputError if it is none."""
    try:
        return Version(version)
    except InvalidVersion as error:
        raise InputError(f"'{version}' is not a version, such as 1.0.0rc6") from error


def key_errors(engine: Definition, version: str, content: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each key of an engine's YAML that this described version refuses."""
    for key, value in content.items():
        yield from _key_errors(engine, version, key, value)
        if isinstance(value, Mapping) and _is_described(engine, version, key):
            for inner, its_value in value.items():
                yield from _key_errors(engine, version, f"{key}.{inner}", its_value)
            for inner in engine.required.get(key, ()):
                if inner not in value and engine.knows(f"{key}.{inner}", version):
                    yield f"{key}.{inner} is missing, {engine.name} {version} requires it"


def flag_errors(
    arguments: Sequence[str], known: Iterable[tuple[Definition, str]], required: Iterable[str] = ()
) -> Iterator[str]:
    """Yield a sentence for each flag that none of the definitions (at its version) accepts."""
    known = list(known)
    given: dict[str, list[str]] = {}
    flag, repeated = None, set()
    for argument in arguments:
        if argument.startswith("-") and not _is_number(argument):
            flag = argument
            repeated |= {flag} & given.keys()
            given.setdefault(flag, [])
        elif flag is None:
            yield f"{argument} belongs to no flag"
        else:
            given[flag].append(argument)
    for flag, values in given.items():
        found = next(
            ((d, v, span) for d, v in known if (span := d.find(flag, v)) is not None), None
        )
        if found is None:
            told = [(d, v) for d, v in known if flag in d.names] or known[:1]
            yield told[0][0].unknown(flag, told[0][1])
        else:
            yield from _flag_errors(flag, values, *found)
            if flag in repeated and "type" in found[2]:
                yield f"{flag} is given twice"
    for flag in required:
        if flag not in given:
            yield f"{flag} is missing"


def _key_errors(engine: Definition, version: str, key: str, value: Any) -> Iterator[str]:
    span = engine.find(key, version)
    if span is None:
        yield engine.unknown(key, version)
    elif not _has_type(value, span["type"]):
        yield f"{key} is {value!r}, {engine.name} {version} requires {_told_type(span['type'])}"
    elif "choices" in span and not _is_choice(value, span["choices"]):
        yield _not_a_choice(key, value, engine, version, span["choices"])


def _is_described(engine: Definition, version: str, key: str) -> bool:
    inner = (name for name in engine.names if name.startswith(f"{key}."))
    return any(engine.knows(name, version) for name in inner)


def _flag_errors(
    flag: str, values: Sequence[str], known: Definition, version: str, span: Span
) -> Iterator[str]:
    kind = span.get("type")
    if kind is None:  # the definition has names only
        return
    if kind == "switch":
        if values:
            yield f"{flag} takes no value, it was given {' '.join(values)}"
        return
    if not values or (len(values) > 1 and not span.get("many")):
        yield f"{flag} takes {'values' if span.get('many') else 'one value'}, not {len(values)}"
    for value in values:
        if "$" in value:  # known only where the script runs
            continue
        if kind in ("int", "float") and not _is_number(value, whole=kind == "int"):
            yield f"{flag} is {value!r}, {known.name} {version} requires {_told_type(kind)}"
        elif "choices" in span and not _is_choice(value, span["choices"]):
            yield _not_a_choice(flag, value, known, version, span["choices"])


def _not_a_choice(
    name: str, value: Any, known: Definition, version: str, choices: Sequence[str]
) -> str:
    allowed = ", ".join(choices)
    return f"{name} is {value!r}, {known.name} {version} allows {allowed}"


def _is_choice(value: Any, choices: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(str(value), choice) for choice in choices)


def _has_type(value: Any, kind: str) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match kind:
        case "any":
            return True
        case "int":
            return number and isinstance(value, int)
        case "float":
            return number
        case "list[int]":
            return isinstance(value, list) and all(_has_type(item, "int") for item in value)
        case _:
            return isinstance(value, {"bool": bool, "str": str, "dict": dict}[kind])


def _told_type(kind: str) -> str:
    return {
        "int": "an integer",
        "float": "a number",
        "bool": "true or false",
        "str": "text",
        "dict": "a mapping",
        "list[int]": "a list of integers",
    }[kind]


def _is_number(text: str, whole: bool = False) -> bool:
    try:
        int(text) if whole else float(text)
    except ValueError:
        return False
    return True
