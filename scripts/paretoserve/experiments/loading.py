"""Read experiment files, or the flags of default mode, into validated raw experiments."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from paretoserve.errors import InputError, did_you_mean
from paretoserve.experiments import schema


@dataclass(frozen=True)
class Source:
    """Where experiments were written, to say where an error is."""

    name: str
    flags: Mapping[str, str] = field(default_factory=dict)  # field -> the flag that sets it

    def locate(self, path: schema.Path) -> str:
        """Return the beginning of a sentence about this path: experiment, field, ..."""
        if not path:
            return self.name
        fields = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path[1:])
        name = fields.removeprefix(".")
        if path[0] == "exps":
            return f"{self.name}, field 'exps{fields}'"
        if name in self.flags:
            return self.flags[name]
        return f"{self.name}: experiment '{path[0]}'" + (f", field '{name}'" if name else "")


COMMAND_LINE = Source(
    "command line",
    {
        "model_name": "--model",
        "total_gpus": "--total_gpus",
        "system_name": "--system",
        "decode_system_name": "--decode_system",
        "backend_name": "--backend",
        "backend_version": "--backend_version",
        "isl": "--isl",
        "osl": "--osl",
        "ttft": "--ttft",
        "tpot": "--tpot",
        "sla_probability": "--sla_probability",
        "top_n": "--top_n",
        "generated_config_version": "--generated_config_version",
    },
)


@dataclass(frozen=True)
class RawExperiment:
    """An experiment as written: valid by the schema, not yet resolved."""

    name: str
    fields: Mapping[str, Any]
    source: Source

    def where(self, field: str) -> str:
        """Return the beginning of a sentence about a field, such as 'config.nextn'."""
        return self.source.locate([self.name, *field.split(".")])


def load_files(files: Iterable[Path]) -> tuple[RawExperiment, ...]:
    """Read the experiments of all `files`, each in the order of its `exps`.

    Raises
    ------
    InputError
        A file is unreadable, not YAML or not valid, or an experiment's name stands in two files.
    """
    loaded: dict[str, RawExperiment] = {}
    for file in files:
        for raw in read_mapping(read_file(file), Source(str(file))):
            if raw.name in loaded:
                raise InputError(
                    f"{file}: experiment '{raw.name}' is also in {loaded[raw.name].source.name}"
                )
            loaded[raw.name] = raw
    return tuple(loaded.values())


def read_mapping(mapping: dict[str, Any], source: Source) -> tuple[RawExperiment, ...]:
    """Validate the content of an experiment file and return the experiments that it runs."""
    schema.validate(mapping, source.locate)
    defined = {name: fields for name, fields in mapping.items() if name != "exps"}
    chosen = mapping.get("exps", list(defined))
    schema.raise_all(
        f"{source.locate(['exps', index])}: no experiment '{name}'{did_you_mean(name, defined)}; "
        f"the file defines {', '.join(defined) or 'none'}"
        for index, name in enumerate(chosen)
        if name not in defined
    )
    return tuple(RawExperiment(name, defined[name], source) for name in chosen)


def default_mode_experiments(
    model: str,
    total_gpus: int,
    system: str,
    *,
    decode_system: str | None = None,
    backend: str | None = None,
    backend_version: str | None = None,
    isl: int | None = None,
    osl: int | None = None,
    ttft: float | None = None,
    tpot: float | None = None,
    sla_probability: float | None = None,
    top_n: int | None = None,
    generated_config_version: str | None = None,
) -> dict[str, Any]:
    """Return what a YAML file would hold that asks for `disagg` and `agg`, in this order.

    None leaves a field to config/defaults.yaml. Pass the result to
    `read_mapping(..., COMMAND_LINE)`.
    """
    shared = {
        "model_name": model,
        "total_gpus": total_gpus,
        "system_name": system,
        "backend_name": backend,
        "backend_version": backend_version,
        "isl": isl,
        "osl": osl,
        "ttft": ttft,
        "tpot": tpot,
        "sla_probability": sla_probability,
        "top_n": top_n,
        "generated_config_version": generated_config_version,
    }
    given = {name: value for name, value in shared.items() if value is not None}
    disagg = {"serving_mode": "disagg", **given}
    if decode_system is not None:
        disagg["decode_system_name"] = decode_system
    return {"disagg": disagg, "agg": {"serving_mode": "agg", **given}}


class _Loader(yaml.CSafeLoader):
    """YAML as it is meant here: keys are text, and none stands twice in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str" and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(
                    problem=f"key {key.value} is not text; write it in quotes",
                    problem_mark=key.start_mark,
                )
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key '{key.value}' stands twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_file(file: Path) -> dict[str, Any]:
    """Return the content of a YAML file; InputError if it is unreadable or no mapping."""
    try:
        content = yaml.load(file.read_bytes(), _Loader)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InputError(f"{file}{line}: is not valid YAML: {problem}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: must hold named experiments, as `name:` and their fields below")
    return content
