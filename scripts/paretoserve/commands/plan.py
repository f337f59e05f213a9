"""`paretoserve plan`: what a file asks, how much work that is, and how long it will take."""

import argparse
import json
import os
import shutil
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretoserve.commands.common import ANSWERED, add_debug, add_mode

if TYPE_CHECKING:
    from paretoserve.experiments.plan import Plan
    from paretoserve.planning import Forecast
    from paretoserve.workflow import DryRun

REASONS_SHOWN = 10
JOBS_SHOWN = 20


def add(doors: Any) -> None:
    """Add the command to the parser's choices."""
    door = add_mode(doors, "plan", "say what a sweep will do before anything runs", "")
    door.add_argument("file", type=Path, help="Experiments or a sweep; config/README.md.")
    door.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="Folder of the results; its benchmarks refine the time. Default: results.",
    )
    door.add_argument(
        "--cores",
        type=int,
        default=os.cpu_count(),
        metavar="N",
        help="Cores that `snakemake --cores` will get. Default: all.",
    )
    door.add_argument("--chunk_size", default="auto", metavar="N", help="As in config/config.yaml.")
    door.add_argument("--generate", default="auto", metavar="SCOPE", help="Likewise.")
    door.add_argument(
        "--diff",
        action="store_true",
        help="Also say which jobs would run now, given what the results hold, and why.",
    )
    door.add_argument("--json", action="store_true", help="Print all of it as JSON.")
    add_debug(door)
    door.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from paretoserve.experiments.division import (
        checked_chunk_size,
        earlier_divisions,
    )
    from paretoserve.experiments.plan import make_plan, run_name
    from paretoserve.perfdb.catalogue import Catalogue
    from paretoserve.planning import digests_of, forecast
    from paretoserve.question import read_question
    from paretoserve.stages.generating import checked_scope
    from paretoserve.workflow import dry_run

    size = checked_chunk_size(arguments.chunk_size, "--chunk_size")
    scope = checked_scope(arguments.generate, "--generate")
    question = read_question(arguments.file, Catalogue())
    earlier = earlier_divisions(arguments.results, run_name(*question), size)
    plan = make_plan(*question, chunk_size=size, earlier=earlier)
    told = forecast(plan, arguments.results, scope, arguments.cores)
    changes = None
    if arguments.diff:
        config = {"experiments": arguments.file, "results": arguments.results}
        changes = dry_run({**config, "chunk_size": size, "generate": scope})
    if arguments.json:
        content = told.plain()
        if changes:
            content["diff"] = {
                "jobs": changes.jobs,
                "causes": changes.causes(digests_of(plan)),
                "reasons": [{"job": job, "reason": reason} for job, reason in changes.reasons],
            }
        print(json.dumps(content, indent=1))
    else:
        print(_forecast_text(told, arguments.cores), end="")
        if changes:
            print(_changes_text(changes, plan), end="")
    return ANSWERED


def _forecast_text(told: "Forecast", cores: int) -> str:
    asked = told.experiments - sum(told.refused.values())
    jobs = ", ".join(f"{count} {rule}" for rule, count in told.jobs.items())
    sure = " (rates refined by benchmarks)" if _refined(told) else ""
    lines = [
        f"run         {told.run}",
        f"experiments {told.experiments}, of which {asked} can be asked",
        f"work        {told.stages['estimate'].units} candidates of {told.works} kinds of worker, "
        f"in {told.stages['estimate'].jobs} groups",
        f"jobs        {sum(told.jobs.values())}: {jobs}",
        f"time        about {duration(told.seconds)} on {cores} cores{sure}",
    ]
    if told.refused:
        lines.append("cannot be asked:")
        shown = list(told.refused.items())[:REASONS_SHOWN]
        lines += [f"{count:9}   {reason}" for reason, count in shown]
        if more := len(told.refused) - len(shown):
            lines.append(f"            and {more} other reasons: --json has all")
    return _wrapped(lines)


def _refined(told: "Forecast") -> bool:
    return any(stage.measured for stage in told.stages.values())


def _changes_text(changes: "DryRun", plan: "Plan") -> str:
    from paretoserve.planning import digests_of

    if not changes.jobs:
        return "now         nothing would run: the results are up to date\n"
    jobs = ", ".join(f"{count} {rule}" for rule, count in changes.jobs.items())
    lines = [f"now         {sum(changes.jobs.values())} jobs would run: {jobs}", "because"]
    lines += [f"{count:9}   {kind}" for kind, count in changes.causes(digests_of(plan)).items()]
    lines.append("such as")
    lines += [f"            {job}" for job, _ in changes.reasons[:JOBS_SHOWN]]
    if more := len(changes.reasons) - JOBS_SHOWN:
        lines += [f"            and {more} more: --json has all"] if more > 0 else []
    return _wrapped(lines)


def _wrapped(lines: Sequence[str]) -> str:
    """Lines no wider than the terminal, what follows indented below the text."""
    width = shutil.get_terminal_size((100, 0)).columns
    fill = partial(textwrap.fill, width=width, subsequent_indent=" " * 12, break_long_words=False)
    return "\n".join(map(partial(fill, break_on_hyphens=False), lines)) + "\n"


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
