"""What a result was made from: digests of the code and of the question, and the identity they form.

Snakemake sees changes of a rule and of its files, not of the modules a rule imports. The code
digest closes that gap: it covers the modules that a stage can reach and no others, so that a change
of the report does not price a candidate again.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import paretoserve
from paretoserve import paths
from paretoserve.experiments.experiment import Experiment, Worker
from paretoserve.hardware import load_system
from paretoserve.perfdb import manifest
from paretoserve.perfdb.catalogue import ENGINES
from paretoserve.perfdb.elsewhere import tables_elsewhere

PACKAGE = Path(paretoserve.__file__).parent
SETTINGS = (paths.QUANT_MODES, paths.ESTIMATION, paths.BACKENDS, paths.PRECISION)
# What deployment files are made of and proved against.
DEPLOY_SETTINGS = (
    paths.DEPLOY,
    *sorted(paths.TEMPLATES.rglob("*.j2")),
    *sorted(paths.ENGINE_DEFINITIONS.glob("*.json")),
)
DEPLOY_STAGES = ("generate", "generate_winners", "compare")
# What the comparison report is made of beside code.
REPORT_SETTINGS = (
    paths.PRICES,
    paths.REPORT,
    paths.WORKLOADS,
    *sorted(path for path in paths.REPORT_TEMPLATES.iterdir() if path.is_file()),
)
# Stages whose code decides what is found.
ANSWERING_STAGES = ("enumerate_candidates", "estimate", "pareto", "gather")
# What was fitted to running engines, and how far it was off: pareto alone reads them.
SIMULATION_SETTINGS = (paths.CALIBRATION, paths.HELD_OUT)

# A pattern, not a parser: parsing the whole library costs more than a small workflow does. What
# only looks like an import (a line of a docstring) may add a module, never lose one.
_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<base>[\w.]+)[ \t]+import[ \t]+(?P<names>\([^)]*\)|[^\n#;]+)"
    r"|import[ \t]+(?P<modules>[^\n#;]+))",
    re.MULTILINE,
)


def stage_digest(stage: str) -> str:
    """Digest of what a stage is made of: its adapter, the library below it, and the settings."""
    settings = SETTINGS + (DEPLOY_SETTINGS if stage in DEPLOY_STAGES else ())
    settings += REPORT_SETTINGS if stage == "report" else ()
    settings += SIMULATION_SETTINGS if stage == "pareto" else ()
    return code_digest(paths.adapter_file(stage), *settings)


def made_from(experiments: Iterable[Experiment]) -> dict[str, dict[str, str]]:
    """Digests of what each experiment's answer follows from: its question, perf_db and the code."""
    code = value_digest([stage_digest(stage) for stage in ANSWERING_STAGES])
    measurements: dict[tuple, str] = {}
    digests = {}
    for experiment in experiments:
        engines = tuple((w.system, w.backend, w.version) for w in experiment.workers)
        if engines not in measurements:
            measurements[engines] = perf_db_digest(experiment.workers)
        digests[experiment.name] = {
            "question": replace(experiment, name="", left_out=()).digest,
            "perf_db": measurements[engines],
            "code": code,
        }
    return digests


def perf_db_digest(workers: Iterable[Worker]) -> str:
    """Digest of the measurements that these workers' estimates can be made from.

    These are the tables of each worker's system, of any engine, since one stands in for another,
    and those of its collectives, those of other systems that can stand in, the system's
    specification, the schema of the operators and the list of screened tables. The names of all
    tables count too.
    """
    engines = {(worker.system, worker.backend, worker.version) for worker in workers}
    return _engines_digest(frozenset(engines))


@cache
def _engines_digest(engines: frozenset[tuple[str, str, str]]) -> str:
    files = {paths.OPERATORS, paths.SCREENING}
    files |= {paths.system_file(system) for system, _, _ in engines}
    contents = sorted(f"{_display(file)} {_file_digest(file)}" for file in files)
    names = sorted(map(list, manifest.load().tables))
    return value_digest([manifest.digest(_tables_of(engines)), contents, names])


def tables_in_reach(workers: Iterable[Worker]) -> list[manifest.Entry]:
    """Return the manifest's entries of the tables that these workers' estimates can be made from.

    An entry stands there once for each engine that reads its table.
    """
    return _tables_of({(worker.system, worker.backend, worker.version) for worker in workers})


def _tables_of(engines: Iterable[tuple[str, str, str]]) -> list[manifest.Entry]:
    tables = []
    for system, backend, version in sorted(engines):
        collectives = load_system(system).collectives(backend, version)
        tables += [
            entry
            for key, entry in manifest.load().tables.items()
            if key[0] == system and (key[1] in ENGINES or key[:3] == (system, *collectives))
        ]
        tables += tables_elsewhere(system)
    return tables


def code_digest(*files: Path) -> str:
    """Digest of these files and of every module of the library that their imports reach.

    Imports inside functions count. Returns 16 hex digits.
    """
    sources = (file for file in files if file.suffix == ".py")
    reached = {*files, *modules_reached(*sources)}
    return value_digest(sorted(f"{_display(file)} {_file_digest(file)}" for file in reached))


def modules_reached(*files: Path) -> set[Path]:
    """Modules of the library that these files import, and that those import, and so on."""
    reached: set[Path] = set()
    pending = list(files)
    while pending:
        new = _imported(pending.pop()) - reached
        reached |= new
        pending += new
    return reached


def value_digest(value: Any) -> str:
    """Digest of a value made of dicts, lists, strings and numbers; keys may be in any order."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return _hash(canonical.encode())


def identity(schema: str, question: str, perf_db: str, code: str) -> dict[str, str]:
    """Metadata of a Parquet file: what it holds and what it was made from.

    Parameters
    ----------
    schema
        Name of its columns' schema (docs/data.md).
    question
        Digest of the works or experiments that the stage was given.
    perf_db
        `perf_db_digest` of their workers.
    code
        `stage_digest` of the stage.
    """
    return {
        "paretoserve.schema": schema,
        "paretoserve.experiments": question,
        "paretoserve.perf_db": perf_db,
        "paretoserve.code": code,
        "paretoserve.version": paretoserve.__version__,
    }


def _imported(path: Path) -> set[Path]:
    """Modules of the library that a file imports, with the packages they lie in."""
    found: set[Path] = set()
    for match in _IMPORT.finditer(_source(path).decode()):
        if match["modules"]:
            dotted = _names(match["modules"])
        else:
            base = _absolute(match["base"], path)
            # A name is a module of the package or something that the package's module defines.
            dotted = [base, *(f"{base}.{name}" for name in _names(match["names"]))]
        for name in dotted:
            found.update(_files(name))
    return found


def _names(listed: str) -> Iterable[str]:
    """`(a, b as c)` -> a, b"""
    without_comments = re.sub(r"#[^\n]*", "", listed)
    return [
        part.split()[0] for part in without_comments.strip("() \t\n").split(",") if part.strip()
    ]


def _absolute(base: str, path: Path) -> str:
    """`..quant` in paretoserve/operators/gemm.py -> `paretoserve.quant`"""
    dots = len(base) - len(base.lstrip("."))
    if not dots or not path.is_relative_to(PACKAGE):
        return base
    package = (PACKAGE.name, *path.relative_to(PACKAGE).parts[:-1])
    return ".".join((*package[: len(package) - dots + 1], *filter(None, [base[dots:]])))


@cache
def _files(dotted: str) -> tuple[Path, ...]:
    """Files that importing this name runs: the module and its packages; () if not ours."""
    head, *rest = dotted.split(".")
    if head != PACKAGE.name:
        return ()
    folder, files = PACKAGE, [PACKAGE / "__init__.py"]
    for part in rest:
        if (module := folder / f"{part}.py").is_file():
            files.append(module)
            break
        folder = folder / part
        if not folder.is_dir():
            break
        files.append(folder / "__init__.py")
    return tuple(path for path in files if path.is_file())


@cache
def _source(path: Path) -> bytes:
    return path.read_bytes()


@cache
def _file_digest(path: Path) -> str:
    return _hash(_source(path))


def _display(path: Path) -> str:
    """Name that does not depend on where the repository lies."""
    return path.relative_to(paths.ROOT).as_posix() if path.is_relative_to(paths.ROOT) else path.name


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
