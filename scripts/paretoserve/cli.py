"""The command line: `paretoserve cli default`, `paretoserve cli exp`, and the other commands.

Starting takes longer than answering, so what a call may not need is imported where it is needed.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from paretoserve import __version__
from paretoserve.commands import accuracy, explain, import_table, pack, plan, size, support
from paretoserve.commands.common import (
    ANSWERED,
    INPUT_ERROR,
    INTERRUPTED,
    MACHINE_ERROR,
    NO_ANSWER,
    add_debug,
    add_mode,
    fail,
    wants_color,
)
from paretoserve.commands.fields import DEFAULT_MODE_TPOT_MS, add_field
from paretoserve.errors import InputError, did_you_mean
from paretoserve.experiments.loading import COMMAND_LINE, default_mode_experiments
from paretoserve.paths import ChunkPaths, RunPaths, WorkPaths

if TYPE_CHECKING:
    from paretoserve.experiments.plan import Plan
    from paretoserve.inprocess import RunResult
    from paretoserve.question import Question


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code (`EXIT_CODES` explains it)."""
    parser = _parser()
    spelt = _guide_spelling(sys.argv[1:] if argv is None else argv)
    arguments, unknown = parser.parse_known_args(spelt)
    if unknown:
        flags = [f"--{name}" for name in vars(arguments)]
        parser.error(f"unknown argument {unknown[0]}{did_you_mean(unknown[0], flags)}")
    try:
        return arguments.run(arguments)
    except InputError as error:
        return fail(str(error), INPUT_ERROR, arguments.debug)
    except BrokenPipeError:
        # The reader of the report has left (`| head`). Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return MACHINE_ERROR
    except OSError as error:
        # Results are built in a hidden folder, whose files mean nothing to the user.
        file = getattr(arguments, "save_dir", None) or error.filename
        where = file if error.filename else "standard output"
        return fail(f"{where}: {error.strerror or error}", MACHINE_ERROR, arguments.debug)
    except KeyboardInterrupt:
        return INTERRUPTED


def _cli(arguments: argparse.Namespace) -> int:
    from paretoserve.experiments.plan import make_plan
    from paretoserve.report.baseline import baseline_files
    from paretoserve.report.plain import report_json
    from paretoserve.report.summary import render_run
    from paretoserve.report.terminal import NO_TERMINAL_WIDTH
    from paretoserve.resuming import keep_asked

    if arguments.baseline is not None:
        if arguments.save_dir is None:
            raise InputError("--baseline needs --save_dir: the comparison is in the written report")
        baseline_files(arguments.baseline)
    plan = make_plan(*arguments.question(arguments))
    save_dir, result = arguments.save_dir, _run(plan, arguments.save_dir, arguments.baseline)
    answer = plan.ask.experiments, result.frontier, result.best, result.status
    if arguments.json:
        print(json.dumps(report_json(*answer), indent=1), flush=True)
    else:
        # What the terminal cannot show (in an old locale, the frame of the plot) becomes "?".
        sys.stdout.reconfigure(errors="replace")
        width = shutil.get_terminal_size((NO_TERMINAL_WIDTH, 0)).columns
        print(render_run(*answer, width=width, color=wants_color()), end="", flush=True)
    if save_dir is not None:
        asked = arguments.asked(arguments)
        keep_asked(save_dir, result.folder.name, *asked, arguments.baseline)
        run = RunPaths(save_dir, result.folder.name)
        print(f"results: {run.folder}", file=sys.stderr)
        print(f"report: {run.report_html}", file=sys.stderr)
    return ANSWERED if "ok" in result.status["status"].to_pylist() else NO_ANSWER


def _run(plan: "Plan", save_dir: Path | None, baseline: Path | None) -> "RunResult":
    """Answer the plan; all its files appear in `save_dir` at once, or none does."""
    from paretoserve.inprocess import parts_of, run_in_process
    from paretoserve.progress import progress
    from paretoserve.records import unfinished_folder

    if save_dir is None:
        with progress(parts_of(plan, written=False)) as advance:
            return _usable(run_in_process(plan, None, advance))
    # On the disk that the results will be on, so that finished folders are only renamed.
    nearest = next(folder for folder in (save_dir, *save_dir.parents) if folder.exists())
    with unfinished_folder(nearest) as unfinished:
        with progress(parts_of(plan, written=True)) as advance:
            result = _usable(run_in_process(plan, unfinished, advance, baseline))
        groups = (WorkPaths(unfinished, group.id).folder for group in plan.groups)
        chunks = (ChunkPaths(unfinished, chunk.id).folder for chunk in plan.chunks)
        for number, finished in enumerate((*groups, *chunks, result.folder)):
            place = save_dir / finished.relative_to(unfinished)
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.exists():
                place.replace(unfinished / f"replaced{number}")
            finished.replace(place)
    return result


def _usable(result: "RunResult") -> "RunResult":
    """Return the result; InputError if every experiment failed, instead of finding no answer."""
    told = result.status.to_pylist()
    if all(row["status"] == "error" for row in told):
        raise InputError("\n".join(dict.fromkeys(row["reason"] for row in told)))
    return result


def _guide_spelling(argv: Sequence[str]) -> list[str]:
    """Spell flags with underscores, as the guide does: --save-dir=a-b is --save_dir=a-b."""

    def spelt(argument: str) -> str:
        flag, equals, value = argument.partition("=")
        return flag[:2] + flag[2:].replace("-", "_") + equals + value

    return [spelt(argument) if argument.startswith("--") else argument for argument in argv]


class _OneSentence(argparse.ArgumentParser):
    """Says what is wrong with the flags as it says what is wrong with their values."""

    def error(self, message: str) -> NoReturn:
        sys.exit(fail(f"{message}; see {self.prog} -h", INPUT_ERROR, debug=False))


def _parser() -> argparse.ArgumentParser:
    invoked = Path(sys.argv[0]).stem
    parser = _OneSentence(
        prog="paretoserve" if invoked == "__main__" else invoked,
        description="Plan LLM serving deployments from measured operator latencies.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    doors = parser.add_subparsers(required=True, metavar="command")
    door = doors.add_parser("cli", help="answer in the terminal", allow_abbrev=False)
    modes = door.add_subparsers(required=True, metavar="mode")

    mode = add_mode(modes, "default", "compare agg and disagg serving of one model")
    for field, flag in COMMAND_LINE.flags.items():
        add_field(mode, field, flag, DEFAULT_MODE_TPOT_MS if field == "tpot" else None)
    _add_shared(mode)
    mode.set_defaults(question=_from_flags, asked=_asked_by_flags)

    mode = add_mode(modes, "exp", "compare the experiments of a YAML file")
    mode.add_argument(
        "--yaml_path",
        type=Path,
        required=True,
        metavar="FILE",
        help="Experiments; config/README.md explains the fields.",
    )
    _add_shared(mode)
    mode.set_defaults(
        question=_from_file,
        asked=lambda arguments: (arguments.yaml_path.name, arguments.yaml_path.read_bytes()),
    )

    for command in (plan, explain, size, support, accuracy, import_table, pack):
        command.add(doors)
    return parser


def _add_shared(mode: argparse.ArgumentParser) -> None:
    mode.add_argument(
        "--save_dir",
        type=_folder,
        metavar="DIR",
        help="Write the results into a new folder of DIR. Default: write nothing.",
    )
    mode.add_argument(
        "--json", action="store_true", help="Print the answer as JSON instead of the report."
    )
    mode.add_argument(
        "--baseline",
        type=_folder,
        metavar="DIR",
        help="Folder of an earlier run: the report tells what changed since. Needs --save_dir.",
    )
    add_debug(mode)
    mode.set_defaults(run=_cli)


def _folder(name: str) -> Path:
    if not name:
        raise argparse.ArgumentTypeError("must name a folder")
    return Path(name)


def _from_flags(arguments: argparse.Namespace) -> "Question":
    from paretoserve.perfdb.catalogue import Catalogue
    from paretoserve.question import question_of

    return question_of(_mapping(arguments), COMMAND_LINE, Catalogue())


def _from_file(arguments: argparse.Namespace) -> "Question":
    from paretoserve.perfdb.catalogue import Catalogue
    from paretoserve.question import read_question

    return read_question(arguments.yaml_path, Catalogue())


def _mapping(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what an experiment file with these flags would hold."""
    flags = (flag.removeprefix("--") for flag in COMMAND_LINE.flags.values())
    return default_mode_experiments(**{flag: getattr(arguments, flag) for flag in flags})


def _asked_by_flags(arguments: argparse.Namespace) -> tuple[str, bytes]:
    import yaml

    return "command_line.yaml", yaml.safe_dump(_mapping(arguments), sort_keys=False).encode()
