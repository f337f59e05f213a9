"""`paretoserve pack` and `paretoserve verify`: a run as one archive, and whether it repeats."""

import argparse
from pathlib import Path
from typing import Any

from paretoserve.commands.common import (
    ANSWERED,
    INPUT_ERROR,
    MACHINE_ERROR,
    NOT_REPEATED,
    add_debug,
    add_mode,
)

PACK_CODES = f"""\
exit codes:
  {ANSWERED}  the archive is written
  {MACHINE_ERROR}  it cannot be written (disk full, no permission)
  {INPUT_ERROR}  the run is not finished, damaged, or made from other code or measurements
"""
VERIFY_CODES = f"""\
exit codes:
  {ANSWERED}  every file has the same bytes
  {INPUT_ERROR}  the file is no archive of a run, or damaged
  {NOT_REPEATED}  some file differs; which, and what the runs were made from, is said
"""
MOST_SHOWN = 20


def add(doors: Any) -> None:
    """Add the commands to the parser's choices."""
    door = add_mode(
        doors, "pack", "put a run with all that it was made from into one archive", PACK_CODES
    )
    door.add_argument(
        "folder", type=Path, metavar="RESULTS", help="Folder of a run, or of results with one run."
    )
    door.add_argument(
        "--output", type=Path, metavar="FILE", help="Archive to write. Default: RUN.zip, here."
    )
    add_debug(door)
    door.set_defaults(run=_pack)

    door = add_mode(
        doors, "verify", "repeat the run of an archive and compare every byte", VERIFY_CODES
    )
    door.add_argument("archive", type=Path, metavar="PACK", help="What `paretoserve pack` wrote.")
    add_debug(door)
    door.set_defaults(run=_verify)


def _pack(arguments: argparse.Namespace) -> int:
    from paretoserve.evidence import find_run, pack

    run = find_run(arguments.folder)
    archive = arguments.output or Path(f"{run.run}.zip")
    description = pack(run, archive)
    kib = archive.stat().st_size / 1024
    print(f"{archive}: {len(description['files'])} files of {run.run}, {kib:.0f} KiB")
    return ANSWERED


def _verify(arguments: argparse.Namespace) -> int:
    from paretoserve.evidence import verify

    verdict = verify(arguments.archive)
    if verdict.same:
        print(f"{verdict.run}: all {verdict.files} files repeated byte for byte")
        for cause in verdict.causes:
            print(f"although here: {cause}")
        return ANSWERED
    print(f"{verdict.run}: {len(verdict.differing)} of {verdict.files} files differ")
    for name, what in list(verdict.differing.items())[:MOST_SHOWN]:
        print(f"  {name} {what}")
    if len(verdict.differing) > MOST_SHOWN:
        print(f"  and {len(verdict.differing) - MOST_SHOWN} more")
    for cause in verdict.causes or ("nothing that the archive names; is the machine the same?",):
        print(f"because of: {cause}")
    return NOT_REPEATED
