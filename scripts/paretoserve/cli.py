"""The command line: `paretoserve cli default`, `paretoserve cli exp`, and the other commands.

Starting takes longer than answering, so what a call may not need is imported where it is needed.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from paretoserve import __version__
from paretoserve.commands import import_table, support
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
from paretoserve.commands.fields import allowed, experiment_schema, spec_of
from paretoserve.errors import InputError, did_you_mean
from paretoserve.experiments.loading import (
    COMMAND_LINE,
    RawExperiment,
    default_mode_experiments,
    load_files,
    read_mapping,
)
from paretoserve.paths import WorkPaths

if TYPE_CHECKING:
    from paretoserve.experiments.plan import Plan
    from paretoserve.inprocess import RunResult

# The guide's default mode asks for 20 ms, its commented experiment file for 40.
DEFAULT_MODE_TPOT_MS = 20.0

TYPES = {"integer": int, "number": float, "string": str}


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
    return _answer(arguments.experiments(arguments), arguments.save_dir)


def _answer(raws: Sequence[RawExperiment], save_dir: Path | None) -> int:
    from paretoserve.deploy.target import require_templates
    from paretoserve.experiments.plan import make_plan
    from paretoserve.experiments.resolving import resolve_all
    from paretoserve.perfdb.catalogue import Catalogue
    from paretoserve.report.terminal import NO_TERMINAL_WIDTH, render_report

    experiments = resolve_all(raws, Catalogue())
    require_templates(experiments)
    result = _run(make_plan(experiments), save_dir)
    # What the terminal cannot show (in an old locale, the frame of the plot) becomes "?".
    sys.stdout.reconfigure(errors="replace")
    report = render_report(
        experiments,
        result.frontier,
        result.best,
        result.status,
        width=shutil.get_terminal_size((NO_TERMINAL_WIDTH, 0)).columns,
        color=wants_color(),
    )
    print(report, end="", flush=True)
    if save_dir is not None:
        print(f"results: {save_dir / result.folder.name}", file=sys.stderr)
    return ANSWERED if "ok" in result.status["status"].to_pylist() else NO_ANSWER


def _run(plan: "Plan", save_dir: Path | None) -> "RunResult":
    """Answer the plan; all its files appear in `save_dir` at once, or none does."""
    from paretoserve.inprocess import run_in_process

    if save_dir is None:
        return _usable(run_in_process(plan, None))
    # On the disk that the results will be on, so that finished folders are only renamed.
    nearest = next(folder for folder in (save_dir, *save_dir.parents) if folder.exists())
    with tempfile.TemporaryDirectory(prefix=".paretoserve-", dir=nearest) as unfinished:
        result = _usable(run_in_process(plan, Path(unfinished)))
        groups = (WorkPaths(Path(unfinished), group.id).folder for group in plan.groups)
        for finished in (*groups, result.folder):
            place = save_dir / finished.relative_to(unfinished)
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.exists():
                shutil.rmtree(place)
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
        _add_field(mode, field, flag)
    _add_shared(mode)
    mode.set_defaults(experiments=_from_flags)

    mode = add_mode(modes, "exp", "compare the experiments of a YAML file")
    mode.add_argument(
        "--yaml_path",
        type=Path,
        required=True,
        metavar="FILE",
        help="Experiments; config/README.md explains the fields.",
    )
    _add_shared(mode)
    mode.set_defaults(experiments=lambda arguments: load_files([arguments.yaml_path]))

    for command in (support, import_table):
        command.add(doors)
    return parser


def _add_shared(mode: argparse.ArgumentParser) -> None:
    mode.add_argument(
        "--save_dir",
        type=_folder,
        metavar="DIR",
        help="Write the results into a new folder of DIR. Default: write nothing.",
    )
    add_debug(mode)
    mode.set_defaults(run=_cli)


def _folder(name: str) -> Path:
    if not name:
        raise argparse.ArgumentTypeError("must name a folder")
    return Path(name)


def _add_field(mode: argparse.ArgumentParser, field: str, flag: str) -> None:
    """Add the flag of a field. Its range is told here but checked, as in files, by the schema."""
    spec = spec_of(field)
    default = DEFAULT_MODE_TPOT_MS if field == "tpot" else spec.get("default")
    told = [
        re.sub(r"\w+", lambda word: COMMAND_LINE.flags.get(word[0], word[0]), spec["description"]),
        *allowed(field, spec),
        *([] if default is None else [f"Default: {default}."]),
    ]
    mode.add_argument(
        flag,
        type=TYPES[spec.get("type", "string")],
        required=field in experiment_schema()["required"],
        default=DEFAULT_MODE_TPOT_MS if field == "tpot" else None,
        metavar=spec.get("unit", flag.removeprefix("--").split("_")[-1]).upper(),
        help=" ".join(told).replace("%", "%%"),
    )


def _from_flags(arguments: argparse.Namespace) -> Sequence[RawExperiment]:
    flags = (flag.removeprefix("--") for flag in COMMAND_LINE.flags.values())
    mapping = default_mode_experiments(**{flag: getattr(arguments, flag) for flag in flags})
    return read_mapping(mapping, COMMAND_LINE)
