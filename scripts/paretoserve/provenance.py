"""What a result was made from: digests of the code and of the question, and the identity they form.

Snakemake sees changes of a rule and of its files, not of the modules a rule imports. The code
digest closes that gap: it covers the modules that a stage can reach and no others, so that a change
of the report does not price a candidate again.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import paretoserve
from paretoserve import paths
from paretoserve.experiments.experiment import Worker
from paretoserve.hardware import load_system
from paretoserve.perfdb import manifest
from paretoserve.perfdb.tables import OF_ANY_RELEASE

PACKAGE = Path(paretoserve.__file__).parent
SETTINGS = (paths.QUANT_MODES, paths.ESTIMATION, paths.BACKENDS)
# What deployment files are made of and proved against.
DEPLOY_SETTINGS = (
    paths.DEPLOY,
    *sorted(paths.TEMPLATES.rglob("*.j2")),
    *sorted(paths.ENGINE_DEFINITIONS.glob("*.json")),
)
DEPLOY_STAGES = ("generate", "compare")

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
    return code_digest(paths.adapter_file(stage), *settings)


def perf_db_digest(workers: Iterable[Worker]) -> str:
    """Digest of the measurements that these workers' estimates can be made from.

    These are the tables of each worker's engine, those that stand for any of its releases, and
    those of its system's collectives, the system's specification, and the schema of the operators.
    """
    tables, files = [], {paths.OPERATORS}
    engines = {(worker.system, worker.backend, worker.version) for worker in workers}
    for system, backend, version in sorted(engines):
        files.add(paths.system_file(system))
        collectives = load_system(system).collectives(backend, version)
        wanted = {(system, backend, version), (system, *collectives)}
        tables += [
            entry
            for key, entry in manifest.load().tables.items()
            if key[:3] in wanted or (key[:2] == (system, backend) and key[3] in OF_ANY_RELEASE)
        ]
    contents = sorted(f"{_display(file)} {_file_digest(file)}" for file in files)
    return value_digest([manifest.digest(tables), contents])


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


def identity(schema: str, question: Any, perf_db: str, code: str) -> dict[str, str]:
    """Metadata of a Parquet file: what it holds and what it was made from.

    Parameters
    ----------
    schema
        Name of its columns' schema (docs/data.md).
    question
        The works or experiments that the stage was given, as plain data.
    perf_db
        `perf_db_digest` of their workers.
    code
        `stage_digest` of the stage.
    """
    return {
        "paretoserve.schema": schema,
        "paretoserve.experiments": value_digest(question),
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
