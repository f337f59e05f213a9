"""Evidence of a run: one archive with what was asked, what it was answered from, and the answer.

`pack` makes it, the same bytes each time; `verify` answers the question in it again and compares
every file, also those of which the archive holds the checksum only (the tables of the groups).
"""

import hashlib
import json
import platform
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq
from packaging.requirements import Requirement

import paretoserve
from paretoserve import paths, provenance
from paretoserve.errors import InputError
from paretoserve.experiments.division import decode
from paretoserve.experiments.plan import Plan, make_plan
from paretoserve.inprocess import run_in_process
from paretoserve.paths import RunPaths
from paretoserve.perfdb.catalogue import Catalogue
from paretoserve.question import read_question
from paretoserve.records import write_bytes, write_whole
from paretoserve.resuming import damaged_files, expected_identities
from paretoserve.stages.generating import ALL, NONE, WINNERS

FORMAT = 1
DESCRIPTION = "pack.json"
INPUTS, RESULTS = PurePosixPath("inputs"), PurePosixPath("results")
# A zip file has no other way to say that a date does not matter.
_NO_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Verdict:
    """What repeating a run showed."""

    run: str
    files: int
    differing: Mapping[str, str]  # file -> in what
    causes: tuple[str, ...]  # what the two runs were made from that is not the same

    @property
    def same(self) -> bool:
        return not self.differing


def find_run(folder: Path) -> RunPaths:
    """Return the run that a folder holds: a run's own, or results with one run in them."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder of results")
    if paths.asked_folder(folder.parent, folder.name).is_dir():
        return RunPaths(folder.parent, folder.name)
    runs = sorted(asked.name for asked in paths.asked_folder(folder, "").glob("*"))
    if not runs:
        raise InputError(f"{folder} holds no run, or one that was not made by this version")
    if len(runs) > 1:
        listed = ", ".join(str(folder / run) for run in runs)
        raise InputError(f"{folder} holds {len(runs)} runs, name one of them: {listed}")
    return RunPaths(folder, runs[0])


def pack(run: RunPaths, archive: Path) -> dict[str, Any]:
    """Write the archive of a finished run, and return its description.

    Raises
    ------
    InputError
        The run is not finished, or not made from today's code, tables and settings.
    """
    asked = _asked_file(run)
    plan = _plan(asked, run.plan.read_bytes() if run.plan.exists() else None)
    if plan.run != run.run:
        raise InputError(
            f"{asked} asks for the run {plan.run} today, not for {run.run}: settings or models "
            f"have changed since; run it again before you pack it"
        )
    identities = expected_identities(plan, run.results)
    for reason, files in damaged_files(identities).items():
        raise InputError(f"{files[0]}: {reason}; run the workflow again before you pack it")
    files = {
        file.relative_to(run.results).as_posix(): file
        for folder in identities
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    if not run.report.exists():
        raise InputError(f"{run.report} is missing: run the workflow to its end before you pack it")

    kept = (file for file in asked.parent.rglob("*") if file.is_file())
    inputs = {file.relative_to(asked.parent).as_posix(): file for file in kept}
    inputs |= _settings(plan)
    description = {
        "format": FORMAT,
        "run": run.run,
        "asked": asked.name,
        "generated": _scope(run, plan),
        "made_from": made_from(plan),
        "inputs": {name: _checksum(file.read_bytes()) for name, file in sorted(inputs.items())},
        "files": {name: _checksum(file.read_bytes()) for name, file in sorted(files.items())},
    }
    inside = {DESCRIPTION: (json.dumps(description, indent=1) + "\n").encode()}
    inside |= {str(INPUTS / name): file.read_bytes() for name, file in inputs.items()}
    inside |= {
        str(RESULTS / name): file.read_bytes()
        for name, file in files.items()
        if file.is_relative_to(run.folder)
    }
    write_whole(archive, lambda stream: _write_zip(stream, inside))
    return description


def verify(archive: Path) -> Verdict:
    """Answer the question of an archive again, with what is installed here, and compare.

    Raises
    ------
    InputError
        The file is not an archive of `pack`, or not as `pack` wrote it.
    """
    description, inside = _read(archive)
    with tempfile.TemporaryDirectory(prefix="paretoserve-verify-") as temporary:
        folder = Path(temporary)
        for name in _kept(description):
            write_bytes(folder / name, inside[str(INPUTS / name)])
        asked = folder / description["asked"]
        divided = RunPaths(Path(RESULTS), description["run"]).plan.as_posix()
        plan = _plan(asked, inside.get(divided))
        causes = tuple(_causes(description, plan))
        if plan.run != description["run"]:
            differing = dict.fromkeys(description["files"], f"the question is now {plan.run}")
            return Verdict(description["run"], len(description["files"]), differing, causes)
        earlier = sorted(paths.kept_baseline(folder, "").folder.glob("*"))
        baseline = earlier[0] if earlier else None
        made = {"baseline": baseline, "scope": description["generated"]}
        run_in_process(plan, folder / "results", **made)
        differing = dict(_differing(description["files"], inside, folder / "results"))
    return Verdict(plan.run, len(description["files"]), differing, causes)


def made_from(plan: Plan) -> dict[str, Any]:
    """Return all that a run's bytes depend on but its question and the settings."""
    workers = [worker for one in plan.ask.experiments for worker in one.workers]
    tables = provenance.tables_in_reach(workers)
    return {
        "paretoserve": paretoserve.__version__,
        "perf_db": {
            "digest": provenance.perf_db_digest(workers),
            "tables": {entry["path"]: entry["sha256"] for entry in tables},
            "manifest": _checksum(paths.MANIFEST.read_bytes()),
        },
        "code": {stage: provenance.stage_digest(stage) for stage in paths.stages()},
        "packages": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _packages()},
        },
        "platform": f"{sys.platform} {platform.machine()}",
    }


def _causes(description: Mapping[str, Any], plan: Plan) -> Iterator[str]:
    """Sentences on what a run would be made from here that is not as in the archive."""
    then, now = description["made_from"], made_from(plan)
    if then["perf_db"]["digest"] != now["perf_db"]["digest"]:
        tables = _changed(then["perf_db"]["tables"], now["perf_db"]["tables"])
        yield f"other measurements in perf_db: {_listed(tables) or 'a specification'}"
    if stages := _changed(then["code"], now["code"]):
        versions = dict.fromkeys((then["paretoserve"], now["paretoserve"]))
        yield f"other code: of {_listed(stages)} (paretoserve {' -> '.join(versions)})"
    here = {name: _checksum(file.read_bytes()) for name, file in _settings(plan).items()}
    kept = _kept(description)
    settings = {name: one for name, one in description["inputs"].items() if name not in kept}
    if files := _changed(settings, here):
        yield f"other settings: {_listed(files)}"
    if packages := _changed(then["packages"], now["packages"]):
        shown = (
            f"{name} {then['packages'].get(name, 'none')} -> {now['packages'].get(name, 'none')}"
            for name in packages
        )
        yield f"other packages: {_listed(list(shown))}"
    if then["platform"] != now["platform"]:
        yield f"another platform: {then['platform']} -> {now['platform']}"


def _kept(description: Mapping[str, Any]) -> set[str]:
    """Inputs that belong to the question: its file, and tables of the run it is compared with."""
    baseline = paths.kept_baseline(Path(), "").folder.as_posix()
    of_baseline = {name for name in description["inputs"] if name.startswith(f"{baseline}/")}
    return {description["asked"], *of_baseline}


def _changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]


def _listed(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _differing(
    checksums: Mapping[str, str], inside: Mapping[str, bytes], results: Path
) -> Iterator[tuple[str, str]]:
    """Files that are not the same in the archive and in `results`, and in what."""
    made = {
        file.relative_to(results).as_posix(): file for file in results.rglob("*") if file.is_file()
    }
    for name in sorted({*checksums, *made}):
        if name not in made:
            yield name, "is not made here"
        elif name not in checksums:
            yield name, "is made here only"
        elif _checksum(content := made[name].read_bytes()) != checksums[name]:
            yield name, _difference(name, inside.get(str(RESULTS / name)), content)


def _difference(name: str, then: bytes | None, now: bytes) -> str:
    if then is None:
        return "has other bytes"
    if name.endswith(".parquet"):
        before, after = (pq.read_table(BytesIO(content)) for content in (then, now))
        same = before.equals(after)
        return "has the same rows, made from something else" if same else "has other rows"
    lines = zip(then.splitlines(), now.splitlines(), strict=False)
    first = next((i for i, (a, b) in enumerate(lines, 1) if a != b), None)
    return f"differs from line {first} on" if first and _is_text(then) else "has other bytes"


def _is_text(content: bytes) -> bool:
    return b"\0" not in content


def _plan(asked: Path, divided: bytes | None) -> Plan:
    """Plan of what was asked, cut into jobs as the plan.json of its run says."""
    division = decode(divided) if divided else None
    if division is None:
        return make_plan(*read_question(asked, Catalogue()))
    question, size = read_question(asked, Catalogue()), division.chunk_size
    return make_plan(*question, chunk_size=size, earlier=[division])


def _scope(run: RunPaths, plan: Plan) -> str:
    """For which experiments of a run deployment files were generated."""
    if run.winners.exists():
        return WINNERS
    configs = (run.experiment(one.name).config for one in plan.ask.experiments)
    return ALL if all(config.exists() for config in configs) else NONE


def _asked_file(run: RunPaths) -> Path:
    asked = [file for file in paths.asked_folder(run.results, run.run).glob("*") if file.is_file()]
    if len(asked) != 1:
        raise InputError(f"{run.folder}: what was asked is not known; run the workflow again")
    return asked[0]


def _settings(plan: Plan) -> dict[str, Path]:
    """Files of settings and models that a run depends on, and the lock, by name in the archive."""
    files = [*paths.CONFIG.glob("*.yaml")]
    files += {paths.model_file(one.model_name) for one in plan.ask.experiments}
    files.append(paths.LOCK)
    return {file.relative_to(paths.ROOT).as_posix(): file for file in files if file.is_file()}


def _packages() -> Iterable[str]:
    """Packages that the library needs, without those for its development."""
    needed = map(Requirement, metadata.requires("paretoserve") or ())
    return sorted(
        one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})
    )


def _write_zip(stream: Any, inside: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in sorted(inside.items()):
            entry = zipfile.ZipInfo(name, _NO_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o755 if name.endswith(".sh") else 0o644) << 16
            packed.writestr(entry, content)


def _read(archive: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Description and files of an archive, after checking them."""
    try:
        with zipfile.ZipFile(archive) as packed:
            inside = {name: packed.read(name) for name in packed.namelist()}
        description = json.loads(inside.pop(DESCRIPTION))
        if description["format"] != FORMAT:
            raise InputError(
                f"{archive} is an archive of format {description['format']}, "
                f"this version of paretoserve reads {FORMAT}"
            )
        said = {str(INPUTS / name): one for name, one in description["inputs"].items()}
        said |= {str(RESULTS / name): one for name, one in description["files"].items()}
        wrong = [name for name in inside if said.get(name) != _checksum(inside[name])]
        missing = [name for name in said if name.startswith(str(INPUTS)) and name not in inside]
    except OSError as error:
        raise InputError(f"{archive} cannot be read ({error.strerror})") from error
    except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{archive} is no archive of paretoserve pack ({error})") from error
    if wrong or missing:
        raise InputError(f"{archive}: {[*wrong, *missing][0]} is not as it was packed")
    return description, inside


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
