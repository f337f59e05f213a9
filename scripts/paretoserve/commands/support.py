"""`paretoserve support`: which models can be answered on which engines, and from what."""

import argparse
import json
from typing import Any

from paretoserve.commands.common import ANSWERED, add_debug, add_mode
from paretoserve.commands.fields import allowed, spec_of
from paretoserve.experiments.loading import COMMAND_LINE


def add(doors: Any) -> None:
    """Add the command to the parser's choices."""
    door = add_mode(
        doors, "support", "say which models can be answered on which engines, and from what", ""
    )
    for field in ("model_name", "system_name", "backend_name"):
        known = " ".join(allowed(field, spec_of(field)))
        door.add_argument(COMMAND_LINE.flags[field], metavar="NAME", help=f"{known} Default: all.")
    form = door.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="Print a JSON list with all figures.")
    form.add_argument("--markdown", action="store_true", help="Print docs/support.md.")
    add_debug(door)
    door.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from paretoserve.support import support, support_json, support_page, support_text

    found = list(support(arguments.model, arguments.system, arguments.backend))
    if arguments.json:
        print(json.dumps(support_json(found), indent=1))
    elif arguments.markdown:
        print(support_page(found), end="")
    else:
        print(support_text(found), end="")
    return ANSWERED
