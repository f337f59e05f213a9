"""The plan of the experiments, and what the rules take from it.

Inputs:  the experiment file that `config["experiments"]` names
Outputs: none; a mistake in the experiments ends Snakemake here, in one sentence, before any job
"""

import os
import re
import sys
import time
from pathlib import Path

from paretoserve import provenance
from paretoserve.deploy.target import require_templates
from paretoserve.errors import InputError, did_you_mean
from paretoserve.experiments.experiment import plain
from paretoserve.experiments.loading import load_files
from paretoserve.experiments.plan import make_plan
from paretoserve.experiments.resolving import resolve_all
from paretoserve.paths import RunPaths, WorkPaths, benchmark_file, log_file
from paretoserve.perfdb.catalogue import Catalogue

STARTED = time.time()
KEYS = ("experiments", "results", "wheels")
STAGES = ("enumerate_candidates", "estimate", "pareto", "generate", "compare")


def checked_config():
    """The configuration, which must hold paths under known names only."""
    for key, value in config.items():
        if key not in KEYS:
            raise InputError(
                f"configuration: unknown key '{key}'{did_you_mean(key, KEYS)}; "
                f"allowed: {', '.join(KEYS)}"
            )
        if not isinstance(value, str) or not value:
            raise InputError(f"configuration: {key} is {value!r}, it must be a path")
    results = Path(config["results"])
    nearest = next(place for place in (results, *results.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"configuration: results: no folder can be made at '{results}'")
    return config


def plan_experiments(named):
    """Plan of an experiment file, looked for in the working directory, then beside the Snakefile."""
    beside = Path(workflow.basedir, named)
    file = beside if beside.exists() and not Path(named).exists() else Path(named)
    experiments = resolve_all(load_files([file]), Catalogue())
    require_templates(experiments)
    return make_plan(experiments)


try:
    PLAN = plan_experiments(checked_config()["experiments"])
except InputError as error:
    # Anything but SystemExit would reach the user as Snakemake's traceback.
    sys.exit("\n".join(f"error: {sentence}" for sentence in str(error).splitlines()))

GROUPS = {group.id: group for group in PLAN.groups}
EXPERIMENTS = {experiment.name: experiment for experiment in PLAN.ask.experiments}

# Snakemake does not see which modules are imported: their digest is a parameter of each job.
CODE = {stage: provenance.stage_digest(stage) for stage in STAGES}

RESULTS = Path(config["results"])
WORK = WorkPaths(RESULTS, "{group}")
RUN = RunPaths(RESULTS, "{run}")
FOLDER = RUN.experiment("{experiment}")
ANSWER = RunPaths(RESULTS, PLAN.run)


wildcard_constraints:
    group="[^/]+",
    run="[^/]+",
    experiment="|".join(map(re.escape, EXPERIMENTS)),


def work_of(wildcards):
    """What enumerate and estimate read of the plan."""
    return PLAN.work_spec(wildcards.group)


def ask_of(wildcards):
    """What pareto and compare read of the plan."""
    return PLAN.ask_spec()


def experiment_of(wildcards):
    """What generate reads of the plan."""
    return plain(EXPERIMENTS[wildcards.experiment])


def tables_of_group(wildcards):
    """Digest of the measurements that a group can read."""
    return provenance.perf_db_digest(work.worker for work in GROUPS[wildcards.group].works)


def tables_of_run(wildcards):
    """Digest of the measurements behind all experiments."""
    workers = (worker for experiment in EXPERIMENTS.values() for worker in experiment.workers)
    return provenance.perf_db_digest(workers)
