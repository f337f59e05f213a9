"""Fill in defaults, profiles and data: a raw experiment becomes a resolved one."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, reduce
from typing import Any, Protocol

import yaml

from paretoserve import paths
from paretoserve.errors import InputError
from paretoserve.experiments.experiment import Experiment, Replica, Tuning, Worker, plain
from paretoserve.experiments.loading import RawExperiment
from paretoserve.experiments.schema import raise_all
from paretoserve.models.catalog import find_model
from paretoserve.models.dimensions import Model
from paretoserve.perfdb.catalogue import ENGINES
from paretoserve.precision import published_modes

Config = dict[str, Any]

ANY = "any"  # a backend_name: every engine

SECTIONS = {
    "agg": {"agg": "worker_config"},
    "disagg": {"prefill": "prefill_worker_config", "decode": "decode_worker_config"},
}
OTHER_MODE = {
    "agg": (
        "decode_system_name",
        "decode_backend_version",
        "config.prefill_worker_config",
        "config.decode_worker_config",
        "config.replica_config",
        "config.advanced_tuning_config.prefill_max_batch_size",
    ),
    "disagg": ("config.worker_config",),
}
BATCH_LIMITS = {
    "agg": "decode_max_batch_size",
    "prefill": "prefill_max_batch_size",
    "decode": "decode_max_batch_size",
}
MOE_LISTS = ("dp_list", "moe_tp_list", "moe_ep_list")
LISTS = ("num_gpu_per_worker", "tp_list", "pp_list", *MOE_LISTS)
# Of which the performance database knows what was measured together.
MEASURED_TOGETHER = ("gemm_quant_mode", "kvcache_quant_mode", "fmha_quant_mode")
QUANT_MODES = (
    "gemm_quant_mode",
    "moe_quant_mode",
    "kvcache_quant_mode",
    "fmha_quant_mode",
    "comm_quant_mode",
)


class Catalogue(Protocol):
    """What the performance database can answer."""

    def system_name(self, name: str) -> str:
        """Return the canonical name of a system or alias; InputError for an unknown one."""

    def sm_version(self, system: str) -> int:
        """CUDA compute capability times ten; 0 for other makers' GPUs."""

    def backends(self, system: str, model: Model) -> Collection[str]:
        """Backends with at least one version that can answer for the model."""

    def versions(self, system: str, backend: str, model: Model) -> Sequence[str]:
        """Versions that hold every table that the model needs, oldest first."""

    def precisions(
        self, system: str, backend: str, version: str, model: Model
    ) -> Collection[tuple[str, str, str]]:
        """(GEMM, KV cache, prefill attention) precisions measured for all attention of a model."""

    def expert_modes(
        self, system: str, backend: str, version: str, model: Model
    ) -> tuple[Collection[str], Collection[str]]:
        """Precisions measured for just the experts of a model, and those measured for any."""


def resolve_all(raws: Iterable[RawExperiment], catalogue: Catalogue) -> tuple[Experiment, ...]:
    """Resolve every experiment; InputError holds a line for each of the first few that fail.

    One that asks for `any` backend becomes one of each engine that can be asked, `name.engine`.
    """
    resolved: dict[str, Experiment] = {}
    sentences = []
    for raw in raws:
        try:
            experiments = _each_engine(raw, catalogue)
        except InputError as error:
            sentences += str(error).splitlines()
            continue
        for experiment in experiments:
            if experiment.name in resolved:
                sentences.append(
                    f"{raw.where('backend_name')}: makes a second experiment '{experiment.name}'; "
                    "rename one"
                )
            resolved[experiment.name] = experiment
    raise_all(sentences)
    return tuple(resolved.values())


def _each_engine(raw: RawExperiment, catalogue: Catalogue) -> list[Experiment]:
    """The experiment, or with `any` one of each engine, the first of which says what is left out.

    InputError where no engine can be asked, with the different reasons.
    """
    if {**_defaults()["experiment"], **raw.fields}["backend_name"] != ANY:
        return [resolve(raw, catalogue)]
    if "generated_config_version" in raw.fields:
        raise InputError(
            f"{raw.where('generated_config_version')}: is of one engine, backend_name 'any' of all"
        )
    resolved, refused = [], {}
    for engine in ENGINES:
        one = replace(raw, fields={**raw.fields, "backend_name": engine})
        try:
            experiment = resolve(one, catalogue)
        except InputError as error:
            refused[engine] = str(error)
        else:
            resolved.append(replace(experiment, name=f"{raw.name}.{engine}"))
    if not resolved:
        raise InputError("\n".join(dict.fromkeys(refused.values())))
    left_out = tuple(f"{engine}: {reason}" for engine, reason in refused.items())
    return [replace(resolved[0], left_out=left_out), *resolved[1:]]


# Fields that `resolve` takes over as they are, None where absent: the experiment's own field, and
# its type.
TAKEN_OVER: dict[str, tuple[str, type]] = {
    "isl": ("isl", int),
    "osl": ("osl", int),
    "ttft": ("ttft_ms", float),
    "tpot": ("tpot_ms", float),
    "top_n": ("top_n", int),
    "sla_probability": ("sla_probability", float),
}


def resolver(catalogue: Catalogue) -> Callable[[RawExperiment], Experiment]:
    """Return a `resolve` that does its work once for experiments that differ in load or SLA."""
    known: dict[str, Experiment | str] = {}

    def resolve_again(raw: RawExperiment) -> Experiment:
        fields = {**_defaults()["experiment"], **raw.fields}
        asked = json.dumps({k: v for k, v in fields.items() if k not in TAKEN_OVER}, sort_keys=True)
        if asked not in known:
            try:
                known[asked] = resolve(raw, catalogue)
            except InputError as error:
                known[asked] = str(error)
        found = known[asked]
        if isinstance(found, str):
            raise InputError(found)
        return replace(found, name=raw.name, **_taken_over(fields))

    return resolve_again


def resolve(raw: RawExperiment, catalogue: Catalogue) -> Experiment:
    """Return the experiment with every default, profile and data-dependent choice filled in.

    Raises
    ------
    InputError
        A name is unknown, data is missing, fields contradict each other, or the question is one
        that this version does not answer.
    """
    defaults = _defaults()
    fields = {**defaults["experiment"], **raw.fields}
    given = fields.get("config", {})
    mode = fields["serving_mode"]
    with _at(raw, "model_name"):
        model = find_model(fields["model_name"])
    _refuse_other_mode(raw, mode)
    systems = _systems(raw, fields, catalogue)

    kinds = _kinds(model, fields)
    base = _base_config(defaults, mode, fields["profiles"], systems, kinds)
    if fields["mode"] == "replace":
        config = given
        _require_complete(raw, config, base)
    else:
        config = _merged(base, given)
    _refuse_unanswered(raw, fields, config, model)

    tuning = config["advanced_tuning_config"]
    return Experiment(
        name=raw.name,
        serving_mode=mode,
        model_name=model.name,
        model_digest=model.digest,
        total_gpus=int(fields["total_gpus"]),
        enable_wide_ep=fields["enable_wide_ep"],
        nextn=int(config["nextn"]),
        nextn_accept_rates=_accept_rates(raw, config),
        workers=tuple(
            _worker(raw, role, fields, config, model, systems[role], catalogue)
            for role in SECTIONS[mode]
        ),
        replica=_replica(raw, fields, config) if mode == "disagg" else None,
        tuning=Tuning(
            prefill_correction_scale=float(tuning["prefill_correction_scale"]),
            decode_correction_scale=float(tuning["decode_correction_scale"]),
        ),
        generated_config_version=fields.get("generated_config_version"),
        **_taken_over(fields),
    )


def _taken_over(fields: Config) -> dict[str, int | float | None]:
    return {
        name: kind(fields[field]) if field in fields else None
        for field, (name, kind) in TAKEN_OVER.items()
    }


def fields_of(experiment: Experiment) -> Config:
    """Return the fields of a file that resolve to just this, with nothing left to default."""
    first, last = experiment.workers[0], experiment.workers[-1]
    fields: Config = {
        "mode": "replace",
        "serving_mode": experiment.serving_mode,
        "model_name": experiment.model_name,
        "total_gpus": experiment.total_gpus,
        "system_name": first.system,
        "backend_name": first.backend,
        "backend_version": first.version,
        "isl": experiment.isl,
        "osl": experiment.osl,
        "ttft": experiment.ttft_ms,
        "tpot": experiment.tpot_ms,
        "enable_wide_ep": experiment.enable_wide_ep,
        "top_n": experiment.top_n,
    }
    if experiment.generated_config_version is not None:
        fields["generated_config_version"] = experiment.generated_config_version
    if experiment.sla_probability is not None:
        fields["sla_probability"] = experiment.sla_probability
    config: Config = {
        "nextn": experiment.nextn,
        "nextn_accept_rates": list(experiment.nextn_accept_rates),
    }
    limits = {}
    for worker in experiment.workers:
        config[SECTIONS[experiment.serving_mode][worker.role]] = {
            **{field: getattr(worker, field) for field in QUANT_MODES},
            **{name: list(getattr(worker, name)) for name in LISTS},
        }
        limits[BATCH_LIMITS[worker.role]] = worker.max_batch_size
    if experiment.replica is not None:
        fields |= {"decode_system_name": last.system, "decode_backend_version": last.version}
        config["replica_config"] = plain(experiment.replica)
    config["advanced_tuning_config"] = {**plain(experiment.tuning), **limits}
    return {**fields, "config": config}


@cache
def _defaults() -> Config:
    return yaml.load(paths.DEFAULTS.read_bytes(), yaml.CSafeLoader)


@contextmanager
def _at(raw: RawExperiment, field: str) -> Iterator[None]:
    """Say in an InputError from within which field it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{raw.where(field)}: {error}") from error


def _refuse_other_mode(raw: RawExperiment, mode: str) -> None:
    for field in OTHER_MODE[mode]:
        if _holds(raw.fields, field):
            raise InputError(f"{raw.where(field)}: has no meaning with serving_mode '{mode}'")


def _refuse_unanswered(raw: RawExperiment, fields: Config, config: Config, model: Model) -> None:
    if fields["enable_wide_ep"] and not model.is_moe:
        raise InputError(
            f"{raw.where('enable_wide_ep')}: got true, but {model.name} has no experts to spread"
        )
    if config["nextn"] and not model.mtp_layers:
        raise InputError(
            f"{raw.where('config.nextn')}: got {config['nextn']}, but {model.name} has no layers "
            "for multi-token prediction: only 0 is allowed"
        )
    for section in () if model.is_moe else SECTIONS[fields["serving_mode"]].values():
        for name in MOE_LISTS:
            if config[section][name] != [1]:
                raise InputError(
                    f"{raw.where(f'config.{section}.{name}')}: got {config[section][name]}, "
                    f"but {model.name} is dense: only [1] is allowed"
                )


def _systems(raw: RawExperiment, fields: Config, catalogue: Catalogue) -> dict[str, str]:
    """Return the canonical system of each role."""
    with _at(raw, "system_name"):
        system = catalogue.system_name(fields["system_name"])
    systems = dict.fromkeys(SECTIONS[fields["serving_mode"]], system)
    if "decode_system_name" in fields:
        with _at(raw, "decode_system_name"):
            systems["decode"] = catalogue.system_name(fields["decode_system_name"])
    return systems


def _kinds(model: Model, fields: Config) -> list[str]:
    """Which overlays of the defaults a model and its experiment get, in their order."""
    conditions = {
        "mtp": model.mtp_layers > 0,
        "moe": model.is_moe,
        "wide_ep": fields["enable_wide_ep"],
    }
    return [kind for kind, holds in conditions.items() if holds]


def _base_config(
    defaults: Config,
    mode: str,
    profiles: Iterable[str],
    systems: dict[str, str],
    kinds: Iterable[str],
) -> Config:
    """Return the `config` tree that the experiment's own is merged over."""
    of_kinds = [defaults["kinds"][kind] for kind in kinds]
    config = {
        key: value
        for key, value in reduce(_merged, of_kinds, defaults["config"]).items()
        if f"config.{key}" not in OTHER_MODE[mode]
    }
    presets = [defaults["profiles"][name] for name in profiles]
    for role, section in SECTIONS[mode].items():
        of_system = defaults["systems"].get(systems[role], {})
        layers = [of_system, *(kind.get(section, {}) for kind in of_kinds), *presets]
        config[section] = reduce(_merged, layers, config[section])
    return config


def _require_complete(raw: RawExperiment, config: Config, base: Config) -> None:
    if raw.fields.get("profiles"):
        raise InputError(f"{raw.where('profiles')}: has no meaning with mode 'replace'")
    missing = [
        field
        for field in _missing(config, base)
        if f"config.{field}" not in OTHER_MODE[raw.fields["serving_mode"]]
    ]
    if missing:
        raise InputError(
            f"{raw.where('config')}: with mode 'replace' it must also give {', '.join(missing)}"
        )


def _accept_rates(raw: RawExperiment, config: Config) -> tuple[float, ...]:
    nextn, rates = int(config["nextn"]), config["nextn_accept_rates"]
    if len(rates) < nextn:
        raise InputError(
            f"{raw.where('config.nextn_accept_rates')}: got {len(rates)} rates, "
            f"nextn {nextn} needs {nextn}"
        )
    return tuple(float(rate) for rate in rates[:nextn])


def _replica(raw: RawExperiment, fields: Config, config: Config) -> Replica:
    replica = config["replica_config"]
    largest = int(replica["max_gpu_per_replica"])
    sizes = replica["num_gpu_per_replica"]
    if sizes is not None:
        field = "config.replica_config.num_gpu_per_replica"
        sizes = _integers(sizes)
        if not _holds(raw.fields, field):
            step = sizes[-1] - sizes[-2]
            total_gpus = int(fields["total_gpus"])
            limit = min(largest or total_gpus, total_gpus)
            sizes += tuple(range(sizes[-1] + step, limit + 1, step))
            if limit == total_gpus:  # the whole cluster may be one replica, whatever its size
                sizes = tuple(sorted({*sizes, total_gpus}))
        if largest and min(sizes) > largest:
            raise InputError(
                f"{raw.where(field)}: got {list(sizes)}, all above max_gpu_per_replica {largest}"
            )
        sizes = tuple(size for size in sizes if not largest or size <= largest)
    return Replica(
        num_gpu_per_replica=sizes,
        max_gpu_per_replica=largest,
        max_prefill_worker=int(replica["max_prefill_worker"]),
        max_decode_worker=int(replica["max_decode_worker"]),
    )


def _worker(
    raw: RawExperiment,
    role: str,
    fields: Config,
    config: Config,
    model: Model,
    system: str,
    catalogue: Catalogue,
) -> Worker:
    section = SECTIONS[fields["serving_mode"]][role]
    worker = config[section]
    backend = fields["backend_name"]
    version = _version(raw, role, fields, model, system, catalogue)
    modes = _precision(raw, section, worker, model, (system, backend, version), catalogue)
    return Worker(
        role=role,
        system=system,
        backend=backend,
        version=version,
        **modes,
        **{name: _integers(worker[name]) for name in LISTS},
        max_batch_size=int(config["advanced_tuning_config"][BATCH_LIMITS[role]]),
    )


def _version(
    raw: RawExperiment, role: str, fields: Config, model: Model, system: str, catalogue: Catalogue
) -> str:
    backend = fields["backend_name"]
    versions = catalogue.versions(system, backend, model)
    if not versions:
        others = ", ".join(catalogue.backends(system, model)) or "none"
        raise InputError(
            f"{raw.where('backend_name')}: no measured tables of {backend} for {model.name} on "
            f"{system}; backends that have them: {others}"
        )
    own = role == "decode" and "decode_backend_version" in fields
    field = "decode_backend_version" if own else "backend_version"
    if field not in fields:
        return versions[-1]
    if fields[field] not in versions:
        raise InputError(
            f"{raw.where(field)}: got '{fields[field]}', measured for {model.name} with "
            f"{backend} on {system}: {', '.join(versions)}"
        )
    return fields[field]


def _precision(
    raw: RawExperiment,
    section: str,
    worker: Config,
    model: Model,
    engine: tuple[str, str, str],
    catalogue: Catalogue,
) -> dict[str, str]:
    """Return a worker's quant modes: the most wanted that are measured together."""
    system, backend, version = engine
    measured = {*catalogue.precisions(*engine, model)}
    if not measured:
        raise InputError(
            f"{raw.where('model_name')}: the attention of {model.name} is not measured for "
            f"{backend} {version} on {system}"
        )
    modes: dict[str, str] = {}
    for field in QUANT_MODES:
        wanted = _wanted_modes(field, worker, model, backend, system, catalogue)
        preferred = available = wanted
        if field == "moe_quant_mode" and not model.is_moe:
            wanted = preferred = available = [modes["gemm_quant_mode"]]
        elif field == "moe_quant_mode":
            preferred, available = catalogue.expert_modes(*engine, model)
        elif field in MEASURED_TOGETHER:
            column = MEASURED_TOGETHER.index(field)
            preferred = available = {modes_of[column] for modes_of in measured}
        mode = next((mode for mode in wanted if mode in preferred), None)
        mode = mode or next((mode for mode in wanted if mode in available), None)
        if mode is None:
            raise InputError(
                f"{raw.where(f'config.{section}.{field}')}: {' or '.join(wanted)} is not measured "
                f"for {backend} {version} on {system}; measured: {', '.join(sorted(available))}"
            )
        modes[field] = mode
        if field in MEASURED_TOGETHER:
            measured = {modes_of for modes_of in measured if modes_of[column] == mode}
    return modes


def _wanted_modes(
    field: str, worker: Config, model: Model, backend: str, system: str, catalogue: Catalogue
) -> list[str]:
    """Return the modes to choose from, the most wanted first."""
    if field in worker:
        return ["float16" if worker[field] == "bfloat16" else worker[field]]
    if model.checkpoint and field in ("gemm_quant_mode", "moe_quant_mode"):
        return [model.checkpoint.gemm if field == "gemm_quant_mode" else model.checkpoint.moe]
    defaults = _defaults()
    sm_version = catalogue.sm_version(system)
    generation = next(entry for entry in defaults["quant_modes"] if sm_version >= entry["sm"])
    wanted = list(generation[field])
    per_tensor = defaults["per_tensor_fp8"].get(field, ())
    if "fp8_block" in wanted and not {model.architecture, backend}.isdisjoint(per_tensor):
        wanted.remove("fp8_block")
        wanted.insert(wanted.index("fp8") + 1, "fp8_block")
    part = field.removesuffix("_quant_mode")
    if part in ("gemm", "moe") and (published := published_modes(model.name, part, system)):
        # Those of the usual order, then the others, then what nobody published.
        first = [mode for mode in wanted if mode in published]
        wanted = [*dict.fromkeys([*first, *published, *wanted])]
    return wanted


def _integers(sizes: Iterable[float]) -> tuple[int, ...]:
    return tuple(int(size) for size in sizes)  # JSON Schema takes 8.0 for an integer


def _merged(base: Config, over: Mapping[str, Any]) -> Config:
    """Return `base` with `over` on top: mappings merged, everything else replaced."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        merged[key] = _merged(below, value) if both else value
    return merged


def _missing(config: Config, complete: Config, prefix: str = "") -> Iterator[str]:
    """Yield the dotted fields of `complete` that `config` lacks; quant modes need not be there."""
    for key, value in complete.items():
        if key not in config and key not in QUANT_MODES:
            yield f"{prefix}{key}"
        elif isinstance(value, dict):
            yield from _missing(config[key], value, f"{prefix}{key}.")


def _holds(config: Mapping[str, Any], field: str) -> bool:
    """Whether a dotted field is given."""
    for key in field.split("."):
        if not isinstance(config, Mapping) or key not in config:
            return False
        config = config[key]
    return True
