"""The plan of the experiments, and what the rules take from it.

Inputs:  the experiment or sweep file that `config["experiments"]` names; `{run}/plan.json` of
         earlier runs, so that what they divided into jobs stays so
Outputs: `{run}/plan.json` when a run starts; a mistake in the experiments ends Snakemake here, in
         one sentence, before any job
"""

import os
import sys
import time
from itertools import chain
from pathlib import Path

from paretoserve import paths, provenance
from paretoserve.errors import InputError, did_you_mean
from paretoserve.experiments.division import checked_chunk_size, earlier_divisions
from paretoserve.experiments.plan import make_plan, run_name
from paretoserve.paths import ChunkPaths, RunPaths, WorkPaths, benchmark_file, log_file
from paretoserve.perfdb.catalogue import Catalogue
from paretoserve.question import read_question
from paretoserve.report.baseline import baseline_files
from paretoserve.resuming import (
    damaged_files,
    expected_identities,
    keep,
    keep_asked,
    lock_results,
)
from paretoserve.stages.gathering import ANSWERS
from paretoserve.stages.generating import ALL, WINNERS, checked_scope, scope_of

STARTED = time.time()
PATHS = ("experiments", "results", "wheels", "baseline", "measurements")
KEYS = (*PATHS, "chunk_size", "generate")


def checked_config():
    """The configuration, which must hold known names only: paths, a size and a scope."""
    for key, value in config.items():
        if key not in KEYS:
            raise InputError(
                f"configuration: unknown key '{key}'{did_you_mean(key, KEYS)}; "
                f"allowed: {', '.join(KEYS)}"
            )
        if key in PATHS and (not isinstance(value, str) or not value):
            raise InputError(f"configuration: {key} is {value!r}, it must be a path")
    checked_chunk_size(config["chunk_size"], "configuration: chunk_size")
    checked_scope(config["generate"], "configuration: generate")
    results = Path(config["results"])
    nearest = next(place for place in (results, *results.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"configuration: results: no folder can be made at '{results}'")
    return config


def asked_file(named):
    """The file that asks, looked for in the working directory, then beside the Snakefile."""
    beside = Path(workflow.basedir, named)
    return beside if beside.exists() and not Path(named).exists() else Path(named)


def plan_experiments(file, asked):
    """Plan of an experiment or sweep file, divided as the results remember."""
    question, size = read_question(file, Catalogue()), asked["chunk_size"]
    earlier = earlier_divisions(Path(asked["results"]), run_name(*question), size)
    return make_plan(*question, chunk_size=size, earlier=earlier)


def checked_baseline(named, results, run):
    """The folder of an earlier run: not of this one, whose files Snakemake removes to make them."""
    if named and Path(named).resolve() == RunPaths(Path(results), run).folder.resolve():
        raise InputError(
            f"configuration: baseline: '{named}' is the folder that this run writes; copy it first"
        )
    return named


try:
    ASKED = asked_file(checked_config()["experiments"])
    PLAN = plan_experiments(ASKED, config)
    BASELINE = checked_baseline(config.get("baseline"), config["results"], PLAN.run)
    BASELINE_DIGEST = BASELINE and provenance.code_digest(*baseline_files(Path(BASELINE)).values())
except InputError as error:
    # Anything but SystemExit would reach the user as Snakemake's traceback.
    sys.exit("\n".join(f"error: {sentence}" for sentence in str(error).splitlines()))

GROUPS = {group.id: group for group in PLAN.groups}
CHUNKS = {chunk.id: chunk for chunk in PLAN.chunks}
EXPERIMENTS = {experiment.name: experiment for experiment in PLAN.ask.experiments}
CHUNK_OF = {one.name: chunk.id for chunk in PLAN.chunks for one in chunk.experiments}

# Snakemake does not see which modules are imported: their digest is a parameter of each job.
CODE = {stage: provenance.stage_digest(stage) for stage in paths.stages()}

RESULTS = Path(config["results"])
WORK = WorkPaths(RESULTS, "{group}")
CHUNK = ChunkPaths(RESULTS, "{chunk}")
RUN = RunPaths(RESULTS, "{run}")
FOLDER = RUN.experiment("{experiment}")
ANSWER = RunPaths(RESULTS, PLAN.run)

SCOPE = scope_of(PLAN.ask, config["generate"])
FILES = {
    ALL: [ANSWER.experiment(name).config for name in EXPERIMENTS],
    WINNERS: [ANSWER.winners],
}.get(SCOPE, [])


wildcard_constraints:
    group="[^/]+",
    chunk="[^/]+",
    run="[^/]+",
    experiment="[A-Za-z0-9][A-Za-z0-9._-]*",


def memory_mb(works_or_experiments, attempt):
    """Memory that a cluster is asked for, in MB. More at each attempt, should it have been short.

    Measured: 180 MB for 90 works of DEEPSEEK_V3, and Snakemake itself takes 160 MB.
    """
    return (600 + 2 * works_or_experiments) * attempt


def runtime_min(works_or_experiments, attempt):
    """Minutes that a cluster is asked for. Measured: 0.05 s a work; the start takes 10 s."""
    return (10 + works_or_experiments // 100) * attempt


def memory_of_group(wildcards, attempt):
    return memory_mb(len(GROUPS[wildcards.group].works), attempt)


def runtime_of_group(wildcards, attempt):
    return runtime_min(len(GROUPS[wildcards.group].works), attempt)


def memory_of_chunk(wildcards, attempt):
    return memory_mb(len(CHUNKS[wildcards.chunk].experiments), attempt)


def runtime_of_chunk(wildcards, attempt):
    return runtime_min(len(CHUNKS[wildcards.chunk].experiments), attempt)


def memory_of_run(wildcards, attempt):
    return memory_mb(len(EXPERIMENTS), attempt)


def runtime_of_chunk(wildcards, attempt):
    return runtime_min(len(CHUNKS[wildcards.chunk].experiments), attempt)


def groups_of(wildcards, table):
    """A file of each of the groups that a chunk's experiments need."""
    return [getattr(WorkPaths(RESULTS, group), table) for group in CHUNKS[wildcards.chunk].groups]


def chunk_of(wildcards):
    """Files of the chunk that answers an experiment."""
    return ChunkPaths(RESULTS, CHUNK_OF[wildcards.experiment])


def tables_of_group(wildcards):
    """Digest of the measurements that a group can read."""
    return provenance.perf_db_digest(work.worker for work in GROUPS[wildcards.group].works)


def tables_of(experiments):
    """Digest of the measurements behind experiments."""
    return provenance.perf_db_digest(worker for one in experiments for worker in one.workers)


def tables(wildcards):
    """All tables of the run, once those that earlier calls left damaged are out of the way.

    `all` asks for each: Snakemake does not miss a table whose readers are up to date.
    """
    # Without an executor Snakemake was asked for a drawing or a list, not to run anything.
    if workflow.is_main_process and workflow.executor_plugin and not workflow.touch:
        remove_damaged()
    of_groups = expand([WORK.candidates, WORK.estimates, WORK.operators], group=GROUPS)
    of_chunks = [ChunkPaths(RESULTS, chunk).table(name) for chunk in CHUNKS for name in ANSWERS]
    of_run = [*map(ANSWER.table, ANSWERS), *map(ANSWER.report_table, paths.REPORT_TABLES)]
    return [*of_groups, *of_chunks, *of_run, ANSWER.comparison]


def remove_damaged():
    """Remove what cannot be trusted, so that Snakemake makes it anew; a dry-run only says so."""
    if not workflow.dryrun:
        begin()
    damaged = damaged_files(expected_identities(PLAN, RESULTS))
    verb = "would be removed" if workflow.dryrun else "removed"
    for reason, files in damaged.items():
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        print(f"{verb}: {files[0]}{more}, {reason}", file=sys.stderr)
    if not workflow.dryrun:
        for file in chain.from_iterable(damaged.values()):
            file.unlink(missing_ok=True)
            forget_experiment(file)


def forget_experiment(file):
    """If a file lies in a folder of the run, remove those that Snakemake asks for instead."""
    if file.is_relative_to(ANSWER.folder) and file.parent != ANSWER.folder:
        name = file.relative_to(ANSWER.folder).parts[0]
        for asked in (ANSWER.experiment(name).config, ANSWER.winners, ANSWER.report_html):
            asked.unlink(missing_ok=True)


def begin():
    """Lock the results until this call ends or is killed, and note what it was asked."""
    try:
        lock_results(RESULTS)
    except InputError as error:
        sys.exit(f"error: {error}")
    baseline = Path(BASELINE) if BASELINE else None
    keep_asked(RESULTS, PLAN.run, ASKED.name, ASKED.read_bytes(), baseline)
    keep(ANSWER.plan, PLAN.division.encode().encode())
