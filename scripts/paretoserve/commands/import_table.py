"""`paretoserve import-table`: a user's own measurements into perf_db."""

import argparse
from pathlib import Path
from typing import Any

from paretoserve.commands.common import ANSWERED, add_debug, add_mode


def add(doors: Any) -> None:
    """Add the command to the parser's choices."""
    door = add_mode(doors, "import-table", "take your own measurements into perf_db", "")
    door.add_argument(
        "file", type=Path, help="CSV or Parquet; docs/data_perf_db.md has the columns."
    )
    for part in ("system", "backend", "version", "operator"):
        door.add_argument(f"--{part}", required=True, metavar="NAME", help=f"Its {part}.")
    door.add_argument(
        "--replace_published",
        action="store_true",
        help="Let it stand in the place of a published table. Default: refuse.",
    )
    add_debug(door)
    door.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from paretoserve.perfdb.user_table import import_user_table

    entry = import_user_table(
        arguments.file,
        arguments.system,
        arguments.backend,
        arguments.version,
        arguments.operator,
        replace_published=arguments.replace_published,
    )
    print(f"{entry['path']}: {entry['rows']} rows")
    return ANSWERED
