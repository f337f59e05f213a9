"""`paretoserve explain`: one configuration of a run, from its operators to tokens/s/gpu."""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from paretoserve.commands.common import ANSWERED, add_debug, add_mode, wants_color


def add(doors: Any) -> None:
    """Add the command to the parser's choices."""
    door = add_mode(
        doors, "explain", "show the arithmetic of one configuration of a run, and its tables", ""
    )
    door.add_argument(
        "result", type=Path, metavar="RESULT", help="Folder of a run, or of an experiment in it."
    )
    door.add_argument(
        "row",
        type=_row,
        nargs="?",
        default=(None, 1),
        metavar="ROW",
        help="Which: EXPERIMENT:RANK such as disagg:1, EXPERIMENT, or RANK. Default: the first.",
    )
    door.add_argument(
        "--frontier",
        action="store_true",
        help="RANK counts the frontier, from 0, instead of the best configurations, from 1.",
    )
    door.add_argument("--json", action="store_true", help="Print JSON with every measured point.")
    add_debug(door)
    door.set_defaults(run=_run)


def _row(text: str) -> tuple[str | None, int]:
    name, colon, rank = text.rpartition(":")
    if not colon and not text.isdecimal():
        name, rank = text, "1"
    if not rank.isdecimal():
        raise argparse.ArgumentTypeError(f"got '{text}', must be EXPERIMENT:RANK")
    return name or None, int(rank)


def _run(arguments: argparse.Namespace) -> int:
    from paretoserve.explain import explain
    from paretoserve.report.explanation import render_explanation
    from paretoserve.report.terminal import NO_TERMINAL_WIDTH

    told = explain(arguments.result, *arguments.row, frontier=arguments.frontier)
    if arguments.json:
        print(json.dumps(told, indent=1))
    else:
        width = shutil.get_terminal_size((NO_TERMINAL_WIDTH, 0)).columns
        print(render_explanation(told, width=width, color=wants_color()), end="")
    return ANSWERED
