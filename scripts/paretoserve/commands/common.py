"""What the commands share: exit codes, parsers, and how they say what is wrong."""

import argparse
import os
import sys
import traceback
from typing import Any

ANSWERED, MACHINE_ERROR, INPUT_ERROR, NO_ANSWER, NOT_REPEATED, INTERRUPTED = 0, 1, 2, 3, 4, 130
EXIT_CODES = f"""\
exit codes:
  {ANSWERED}  at least one experiment has an answer
  {MACHINE_ERROR}  the results cannot be written (disk full, no permission); none are left behind
  {INPUT_ERROR}  a flag, the experiment file or the performance database cannot be used
  {NO_ANSWER}  no experiment meets the SLA; the report says what binds and what would help
"""


def add_mode(
    modes: Any, name: str, summary: str, epilog: str = EXIT_CODES
) -> argparse.ArgumentParser:
    """Add a command or mode to a parser's choices, and return its parser."""
    return modes.add_parser(
        name,
        help=summary,
        description=f"{summary.capitalize()}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_debug(mode: argparse.ArgumentParser) -> None:
    """Add the flag that shows where an error was raised."""
    mode.add_argument(
        "--debug", action="store_true", help="With an error, also show where it was raised."
    )


def fail(sentences: str, code: int, debug: bool) -> int:
    """Print an error, a line for each sentence, and return the exit code."""
    if debug:
        traceback.print_exc()
    for sentence in sentences.splitlines():
        print(f"error: {sentence}", file=sys.stderr)
    return code


def wants_color() -> bool:
    """Whether standard output shows colours and the user wants them."""
    return (
        sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )
