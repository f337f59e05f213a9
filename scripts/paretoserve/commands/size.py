"""`paretoserve size`: the fewest GPUs that serve a request rate within the SLA."""

import argparse
import json
import math
import shutil
from typing import Any

from paretoserve.commands.common import ANSWERED, NO_ANSWER, add_debug, add_mode, wants_color
from paretoserve.commands.fields import DEFAULT_MODE_TPOT_MS, add_field, allowed, spec_of
from paretoserve.experiments.loading import (
    COMMAND_LINE,
    RawExperiment,
    default_mode_experiments,
    read_mapping,
)

FIELDS = ("model_name", "backend_name", "backend_version", "isl", "osl", "ttft", "tpot")


def add(doors: Any) -> None:
    """Add the command to the parser's choices."""
    door = add_mode(doors, "size", "find the fewest GPUs that serve a request rate")
    door.add_argument(
        "--request_rate",
        type=_rate,
        required=True,
        metavar="REQUESTS/S",
        help="Requests per second of the whole cluster.",
    )
    known = " ".join(allowed("system_name", spec_of("system_name")))
    door.add_argument(
        "--system",
        nargs="+",
        required=True,
        metavar="SYSTEM",
        help=f"GPU systems, each an answer of its own. {known}",
    )
    for field in FIELDS:
        default = DEFAULT_MODE_TPOT_MS if field == "tpot" else None
        add_field(door, field, COMMAND_LINE.flags[field], default)
    door.add_argument("--json", action="store_true", help="Print a JSON list.")
    add_debug(door)
    door.set_defaults(run=_run)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"got '{text}', must be a number of requests/s above 0")
    return rate


def _run(arguments: argparse.Namespace) -> int:
    from paretoserve.models.catalog import find_model
    from paretoserve.prices import load_prices
    from paretoserve.report.sizes import render_sizes
    from paretoserve.report.terminal import NO_TERMINAL_WIDTH
    from paretoserve.size import size, size_json

    found = size(_questions(arguments), arguments.request_rate, load_prices())
    told = size_json(found, arguments.request_rate)
    if arguments.json:
        print(json.dumps(told, indent=1))
    else:
        model = find_model(arguments.model).name
        load = {
            name: getattr(arguments, name) or spec_of(name)["default"]
            for name in ("isl", "osl", "ttft", "tpot")
        }
        heading = (
            f"Fewest GPUs for {arguments.request_rate:g} requests/s of {model}: "
            f"ISL / OSL {load['isl']} / {load['osl']} tokens, "
            f"TTFT <= {load['ttft']:g} ms, TPOT <= {load['tpot']:g} ms"
        )
        width = shutil.get_terminal_size((NO_TERMINAL_WIDTH, 0)).columns
        print(render_sizes(heading, model, told, width=width, color=wants_color()), end="")
    return ANSWERED if any(one.row for one in found) else NO_ANSWER


def _questions(arguments: argparse.Namespace) -> tuple[RawExperiment, ...]:
    """Both modes of each system, on as many GPUs as an experiment may have."""
    most = spec_of("total_gpus")["maximum"]
    flags = {COMMAND_LINE.flags[field].removeprefix("--") for field in FIELDS}
    shared = {flag: getattr(arguments, flag) for flag in flags}
    mapping = {
        f"{system}.{mode}": fields
        for system in dict.fromkeys(arguments.system)
        for mode, fields in default_mode_experiments(
            total_gpus=most, system=system, **shared
        ).items()
    }
    return read_mapping(mapping, COMMAND_LINE)
