"""Expand a sweep file: the product of lists over experiment fields, as raw experiments with names.

An experiment is named by its value on every axis, in the order of the axes, and by nothing else:
another value on an axis renames and renumbers nobody.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import yaml

from paretoserve import paths
from paretoserve.errors import InputError, did_you_mean
from paretoserve.experiments import schema
from paretoserve.experiments.experiment import Experiment
from paretoserve.experiments.loading import RawExperiment, Source
from paretoserve.experiments.plan import Refused
from paretoserve.experiments.resolving import ANY, OTHER_MODE, SECTIONS, Catalogue, resolver
from paretoserve.models.catalog import find_model
from paretoserve.perfdb.catalogue import ENGINES

Fields = dict[str, Any]  # by dotted name

# Axes that set several fields: by a list of their values, or by a mapping.
PAIRS = {"workload": ("isl", "osl"), "sla": ("ttft", "tpot")}
VERSIONS = ("backend_version", "decode_backend_version")
NO_PRESET = "own_precision"  # how an experiment without precision presets is named


@dataclass(frozen=True)
class Value:
    """One value of an axis: its name, the fields that it sets, and where it was written."""

    name: str
    fields: Fields
    where: str


class Unnamed(Source):
    """Says of a field only which it is: the same reason of many experiments reads the same."""

    def locate(self, path: schema.Path) -> str:
        """Return the dotted name of a field."""
        return ".".join(map(str, path[1:]))


def is_sweep(content: Mapping[str, Any]) -> bool:
    """Whether the content of a file is a sweep, not experiments of which one is named `axes`."""
    axes = content.get("axes")
    named = isinstance(axes, dict) and isinstance(axes.get("serving_mode"), str)
    return "axes" in content and not named


def expand(content: dict[str, Any], file: str) -> tuple[RawExperiment, ...]:
    """Return the experiments of a sweep, the first axis varying slowest, then those included.

    Raises
    ------
    InputError
        The file is no sweep by the schema, a field or value is not one of an experiment's, two
        experiments have one name, or a line of `exclude` leaves out nothing.
    """
    schema.validate(content, lambda path: _located(file, path), paths.SWEEP_SCHEMA)
    shared = _fields(content.get("experiment", {}), f"{file}, experiment")
    axes = {
        key: [_value(key, one, f"{file}, axes.{key}[{i}]") for i, one in enumerate(values)]
        for key, values in content["axes"].items()
    }
    _require_distinct(axes, file)
    included = [
        _included(line, list(axes), f"{file}, include[{i}]")
        for i, line in enumerate(content.get("include", ()))
    ]
    _validate(shared, axes, included, file)

    chosen = list(product(*axes.values()))
    for i, line in enumerate(content.get("exclude", ())):
        kept = _without(line, chosen, list(axes), shared, f"{file}, exclude[{i}]")
        if len(kept) == len(chosen):
            raise InputError(f"{file}, exclude[{i}]: no experiment has these values")
        chosen = kept
    rows = [(".".join(value.name for value in values), values) for values in chosen]
    rows += [(one.name, (one,)) for one in included]
    if not rows:
        raise InputError(f"{file}, exclude: leaves out every experiment")
    _require_unique(rows)
    source = Unnamed(file)
    return tuple(RawExperiment(name, _experiment(shared, values), source) for name, values in rows)


def resolve_sweep(
    raws: Iterable[RawExperiment], catalogue: Catalogue
) -> tuple[list[Experiment], list[Refused]]:
    """Resolve the experiments of a sweep; those that cannot be asked are refused, with the reason.

    What no other field could mend is a mistake, hence an InputError: the name of a model or system
    that does not exist, a version of an engine with which no experiment of the sweep was measured.
    """
    raws = [one for raw in raws for one in _of_engines(raw)]
    _require_names(raws, catalogue)
    resolve = resolver(catalogue)
    resolved, refused, dated = [], [], {}
    for raw in raws:
        versions = {(key, raw.fields[key]) for key in VERSIONS if key in raw.fields}
        try:
            resolved.append(resolve(raw))
        except InputError as error:
            reason = str(error)
            refused.append(Refused(raw.name, raw.fields["serving_mode"], reason))
            wrong = {version for version in versions if reason.startswith(f"{version[0]}: got")}
        else:
            wrong, reason = set(), ""
        for version in versions:
            dated.setdefault(version, []).append(reason if version in wrong else "")
    schema.raise_all(f"{raws[0].source.name}, {of[0]}" for of in dated.values() if all(of))
    return resolved, refused


@cache
def workloads() -> dict[str, Fields]:
    """Return the named workloads of config/workloads.yaml: fields of each."""
    return yaml.load(paths.WORKLOADS.read_bytes(), yaml.CSafeLoader)


def _located(file: str, path: schema.Path) -> str:
    steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return f"{file}, {steps.removeprefix('.')}" if steps else file


def _value(axis: str, given: Any, where: str) -> Value:
    """Return a value of an axis with the fields that it sets."""
    if axis in PAIRS:
        fields, name = _pair(axis, given, where)
    elif _is_field(axis):
        fields, name = {axis: _listed(axis, given)}, _label(axis, given)
    elif isinstance(given, dict):
        fields = _fields({k: v for k, v in given.items() if k != "name"}, where)
        name = given.get("name")
    else:
        raise InputError(
            f"{where}: got {schema.shown(given)}, but '{axis}' is no field of an experiment"
            f"{did_you_mean(axis, [*_known(), *PAIRS])}; an axis of any other name holds mappings "
            "of fields"
        )
    name = name or ".".join(_label(key, value) for key, value in fields.items())
    if not isinstance(name, str) or not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise InputError(
            f"{where}: name {schema.shown(name)} may hold only letters, digits, '.', '_' and '-'"
        )
    return Value(name, fields, where)


def _pair(axis: str, given: Any, where: str) -> tuple[Fields, str | None]:
    """Fields of a workload or SLA, given by name, as a list of two, or as a mapping; its name."""
    keys = PAIRS[axis]
    if isinstance(given, str) and axis == "workload":
        if given not in workloads():
            raise InputError(
                f"{where}: no workload '{given}'{did_you_mean(given, workloads())}; "
                f"config/workloads.yaml has {', '.join(workloads())}"
            )
        return {key: workloads()[given][key] for key in keys}, given
    if isinstance(given, list) and len(given) == len(keys):
        given = dict(zip(keys, given, strict=True))
    if not isinstance(given, dict) or not {*given} - {"name"}:
        forms = f"a list [{', '.join(keys)}] or a mapping of fields"
        named = ", the name of a workload" if axis == "workload" else ""
        raise InputError(f"{where}: got {schema.shown(given)}, must be {forms}{named}")
    fields = _fields({key: value for key, value in given.items() if key != "name"}, where)
    name = given.get("name") or "_".join(_label(key, value) for key, value in fields.items())
    return fields, name


def _fields(given: Mapping[str, Any], where: str) -> Fields:
    """Fields by dotted name, `workload` and `sla` as the fields that they stand for."""
    fields: Fields = {}
    for key, value in given.items():
        if key in PAIRS:
            fields |= _pair(key, value, f"{where}.{key}")[0]
        elif not _is_field(key):
            raise InputError(
                f"{where}: '{key}' is no field of an experiment"
                f"{did_you_mean(key, [*_known(), *PAIRS])}"
            )
        elif key == "config" and isinstance(value, dict):
            fields |= {f"config.{path}": leaf for path, leaf in _leaves(value)}
        else:
            fields[key] = _listed(key, value)
    return fields


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_field(key: str) -> bool:
    return key in _known() or key.startswith("config.")


@cache
def _known() -> dict[str, Any]:
    return schema.content(paths.EXPERIMENT_SCHEMA)["$defs"]["experiment"]["properties"]


def _listed(key: str, value: Any) -> Any:
    """A preset of precision alone stands for a list of it, null for none."""
    if key == "profiles" and not isinstance(value, list):
        return [] if value is None else [value]
    return value


def _label(key: str, value: Any) -> str:
    """Return what a field's value adds to a name: text alone, other values with their field."""
    short = key.rpartition(".")[2]
    if key == "profiles":
        presets = _listed(key, value)
        return "-".join(map(str, presets)) or NO_PRESET
    if key == "total_gpus":
        return f"{value}gpus"
    if isinstance(value, str):
        return re.sub(r"[^A-Za-z0-9._-]", "_", value.rstrip("/").rpartition("/")[2])
    if isinstance(value, bool):
        return f"{short}_{'on' if value else 'off'}"
    if isinstance(value, float):
        return f"{short}{value:g}"
    if isinstance(value, list):
        return f"{short}{'-'.join(map(str, value))}"
    return f"{short}{value}"


def _included(line: Mapping[str, Any], axes: Sequence[str], where: str) -> Value:
    """An experiment beside the product, named by its axes and then by what else it sets."""
    order = sorted(line, key=lambda key: axes.index(key) if key in axes else len(axes))
    values = [_value(key, line[key], f"{where}.{key}") for key in order]
    fields = {key: of for value in values for key, of in value.fields.items()}
    return Value(".".join(value.name for value in values), fields, where)


def _require_distinct(axes: Mapping[str, Sequence[Value]], file: str) -> None:
    """InputError if two values of an axis have one name, or two axes set one field."""
    setter: dict[str, str] = {}
    for axis, values in axes.items():
        names: dict[str, int] = {}
        for i, value in enumerate(values):
            if value.name in names:
                raise InputError(
                    f"{file}, axes.{axis}: values {names[value.name]} and {i} are both named "
                    f"'{value.name}'; remove one, or write mappings with a `name` of their own"
                )
            names[value.name] = i
        for field in dict.fromkeys(field for value in values for field in value.fields):
            if field in setter:
                raise InputError(f"{file}, axes.{axis}: sets {field}, as axis {setter[field]} does")
            setter[field] = axis


def _require_unique(rows: Iterable[tuple[str, Sequence[Value]]]) -> None:
    names: set[str] = set()
    for name, values in rows:
        if name in names:
            raise InputError(
                f"{values[0].where}: makes a second experiment '{name}'; remove or rename one"
            )
        names.add(name)


def _validate(
    shared: Fields, axes: Mapping[str, Sequence[Value]], included: Sequence[Value], file: str
) -> None:
    """Hold every value against the schema of experiments, each in one experiment that has it.

    The schema knows no rule between fields, so what is valid in one experiment is in all.
    """
    first = [values[0] for values in axes.values()]
    trials = [first]
    trials += [
        [*first[:at], value, *first[at + 1 :]]
        for at, values in enumerate(axes.values())
        for value in values[1:]
    ]
    trials += [[one] for one in included]
    written: dict[str, dict[str, str]] = {}
    experiments = {}
    for i, values in enumerate(trials):
        written[f"trial{i}"] = dict.fromkeys(shared, f"{file}, experiment") | {
            field: value.where for value in values for field in value.fields
        }
        experiments[f"trial{i}"] = _nested(shared, values)

    def locate(path: schema.Path) -> str:
        if len(path) < 2:
            return f"{file}, experiment"
        origins, steps = written[str(path[0])], [str(step) for step in path[1:]]
        for length in range(len(steps), 0, -1):
            if (field := ".".join(steps[:length])) in origins:
                return f"{origins[field]}, field '{field}'"
        field = ".".join(steps)
        origin = next((at for name, at in origins.items() if name.startswith(field)), file)
        return f"{origin}, field '{field}'"

    schema.validate(experiments, locate)


def _experiment(shared: Fields, values: Sequence[Value]) -> dict[str, Any]:
    """Fields of one experiment as in a file, without what all share and its mode does not have."""
    own = {field: value for one in values for field, value in one.fields.items()}
    mode = {**shared, **own}["serving_mode"]
    if not any(_of_other_mode(field, mode) for field in shared):
        return _nested(shared, values)
    return _nested({f: v for f, v in shared.items() if not _of_other_mode(f, mode)}, values)


def _of_other_mode(field: str, mode: str) -> bool:
    others = OTHER_MODE[mode] if mode in SECTIONS else ()
    return any(field == other or field.startswith(f"{other}.") for other in others)


def _nested(shared: Fields, values: Sequence[Value]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for fields in (shared, *(value.fields for value in values)):
        for field, value in fields.items():
            *outer, last = field.split(".")
            place = tree
            for key in outer:
                below = place.get(key)
                place = place.setdefault(key, {}) if isinstance(below, dict | None) else {}
            place[last] = value
    return tree


def _without(
    line: Mapping[str, Any],
    chosen: Sequence[tuple[Value, ...]],
    axes: Sequence[str],
    shared: Fields,
    where: str,
) -> list[tuple[Value, ...]]:
    """The chosen experiments that lack one of the values of a line of `exclude`."""
    hit = list(chosen)
    for key, given in line.items():
        if key in axes:
            at, names = axes.index(key), {_value(key, o, where).name for o in _options(key, given)}
            hit = [values for values in hit if values[at].name in names]
        elif _is_field(key):
            options = given if isinstance(given, list) and key != "profiles" else [given]
            hit = [values for values in hit if _held(shared, values).get(key) in options]
        else:
            raise InputError(
                f"{where}: '{key}' is neither an axis nor a field of an experiment"
                f"{did_you_mean(key, [*axes, *_known()])}"
            )
    excluded = {id(values) for values in hit}
    return [values for values in chosen if id(values) not in excluded]


def _options(axis: str, given: Any) -> list[Any]:
    """The values of an axis that a line of `exclude` names: of pairs, a list of two is one."""
    if axis in PAIRS and isinstance(given, list) and not isinstance(given[0], list | dict | str):
        return [given]
    return given if isinstance(given, list) else [given]


def _held(shared: Fields, values: Sequence[Value]) -> Fields:
    return {**shared, **{field: of for value in values for field, of in value.fields.items()}}


def _of_engines(raw: RawExperiment) -> list[RawExperiment]:
    """The experiment, or with `any` backend one of each engine."""
    if raw.fields.get("backend_name") != ANY:
        return [raw]
    return [
        replace(raw, name=f"{raw.name}.{engine}", fields={**raw.fields, "backend_name": engine})
        for engine in ENGINES
    ]


def _require_names(raws: Iterable[RawExperiment], catalogue: Catalogue) -> None:
    """InputError for models and systems that do not exist."""
    find = {
        "model_name": find_model,
        "system_name": catalogue.system_name,
        "decode_system_name": catalogue.system_name,
    }
    sentences = []
    for field, named in find.items():
        given = {raw.fields[field]: raw for raw in raws if field in raw.fields}
        for name, raw in given.items():
            try:
                named(name)
            except InputError as error:
                sentences.append(f"{raw.source.name}, field '{field}': {error}")
    schema.raise_all(sentences)
