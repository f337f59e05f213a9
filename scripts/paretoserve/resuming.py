"""What a call of the workflow finds of earlier ones: one still at work, or damaged files."""

import os
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path

from paretoserve import paths, provenance
from paretoserve.errors import InputError
from paretoserve.experiments.experiment import Worker
from paretoserve.experiments.plan import Ask, Chunk, Plan
from paretoserve.paths import ChunkPaths, RunPaths, WorkPaths
from paretoserve.records import is_temporary, read_identity, try_lock, write_bytes
from paretoserve.report.baseline import baseline_files

Identity = Mapping[str, Collection[str]]


@cache
def lock_results(results: Path) -> None:
    """Keep other calls from writing results until this process ends, in whatever way.

    Where the file system has no locks, nothing is kept from anybody.

    Raises
    ------
    InputError
        Another call is at work there.
    """
    file = paths.lock_file(results)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    try:
        try_lock(file)
    except BlockingIOError as error:
        raise InputError(f"{results}: another snakemake is writing there, wait for it") from error
    except OSError:
        return


def keep_asked(
    results: Path, run: str, name: str, content: bytes, baseline: Path | None = None
) -> None:
    """Keep the file that asks for a run, and what its report reads of an earlier run.

    `name` and `content` are the file's, `baseline` is the folder of the earlier run.
    """
    folder = paths.asked_folder(results, run)
    kept = {folder / name: content}
    if baseline is not None:
        earlier = paths.kept_baseline(folder, baseline.resolve().name)
        for table, file in baseline_files(baseline).items():
            kept[earlier.report_table(table)] = file.read_bytes()
    for other in folder.rglob("*"):
        if other.is_file() and other not in kept:
            other.unlink()
    for file, text in kept.items():
        keep(file, text)


def keep(file: Path, content: bytes) -> None:
    """Write a file unless it has this content already."""
    if not file.exists() or file.read_bytes() != content:
        write_bytes(file, content)


def expected_identities(plan: Plan, results: Path) -> dict[Path, Identity]:
    """Return the folders of a plan, and what the metadata of the tables in each may say.

    That is the question, the measurements as they are, and the code as it is of any stage.
    """
    code = {provenance.stage_digest(stage) for stage in paths.stages()}

    def made_from(question: str, workers: Iterable[Worker]) -> Identity:
        return {
            "paretoserve.experiments": {question},
            "paretoserve.perf_db": {provenance.perf_db_digest(workers)},
            "paretoserve.code": code,
        }

    def made_from_all(asked: Ask | Chunk) -> Identity:
        return made_from(asked.digest, (w for one in asked.experiments for w in one.workers))

    expected = {RunPaths(results, plan.run).folder: made_from_all(plan.ask)}
    for chunk in plan.chunks:
        expected[ChunkPaths(results, chunk.id).folder] = made_from_all(chunk)
    for group in plan.groups:
        of_group = [work.worker for work in group.works]
        expected[WorkPaths(results, group.id).folder] = made_from(group.digest, of_group)
    return expected


def damaged_files(folders: Mapping[Path, Identity]) -> dict[str, list[Path]]:
    """Return the files that no stage left in this state, by what is wrong with them.

    Parameters
    ----------
    folders
        The folders of groups and runs, which need not exist; for each, the values that keys of the
        metadata may have in its Parquet files.
    """
    found: dict[str, list[Path]] = {}
    for folder, identity in folders.items():
        for place, _, names in os.walk(folder):
            for file in (Path(place, name) for name in names):
                if reason := _damage(file, identity):
                    found.setdefault(reason, []).append(file)
    return found


def _damage(file: Path, identity: Identity) -> str:
    """What is wrong with a file, "" if nothing is."""
    if is_temporary(file):
        return "left unfinished"
    if not file.stat().st_size:
        return "empty"
    if file.suffix != ".parquet":
        return ""
    try:
        found = read_identity(file)
    except InputError:
        return "its checksum does not hold"
    wanted = {"paretoserve.schema": {file.stem}, **identity}
    if any(found.get(key) not in values for key, values in wanted.items()):
        return "made from another question, other measurements or other code"
    return ""
