"""Sweeps of growing size through the workflow: time and memory, again unchanged, and with more."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import yaml
from prettytable import PrettyTable

from paretoserve import paths
from paretoserve.bench.processes import Took, own, run

# How much of each axis of config/sweeps/ten_thousand.yaml makes a sweep of so many.
CUTS = {
    10: {"model_name": 1, "system_name": 1, "backend_name": 1, "workload": 1},
    1_000: {"model_name": 1},
    10_000: {},
}
ONE_MORE_SLA = [1500, 35]


def sweeps(sizes: list[int]) -> str:
    """Return a table with a row for each size."""
    table = PrettyTable(
        [
            *("experiments", "jobs", "planned s", "wall s", "CPU s", "per minute and core"),
            *("peak MiB", "unchanged s", "plan s", "one SLA more s"),
        ],
        align="r",
    )
    table.title = f"snakemake --cores {os.cpu_count()}, files of no experiment"
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="paretoserve-bench-") as folder:
            table.add_row(_row(size, Path(folder)))
    return f"{table}\n"


def _row(size: int, folder: Path) -> list[Any]:
    sweep = yaml.safe_load((paths.SWEEPS / "ten_thousand.yaml").read_text())
    for axis, count in CUTS[size].items():
        sweep["axes"][axis] = sweep["axes"][axis][:count]
    _write(folder, sweep)
    plan = run([own("paretoserve"), "plan", "sweep.yaml", "--json", "--generate", "none"], folder)
    planned = json.loads(plan.output)
    first, again = _snakemake(folder), _snakemake(folder)
    sweep["axes"]["sla"].append(ONE_MORE_SLA)
    _write(folder, sweep)
    more = _snakemake(folder)
    return [
        f"{planned['experiments']:,}",
        sum(planned["jobs"].values()),
        f"{planned['seconds']:.0f}",
        f"{first.wall_s:.1f}",
        f"{first.cpu_s:.1f}",
        f"{planned['experiments'] / first.cpu_s * 60:,.0f}",
        f"{first.rss_mib:.0f}",
        f"{again.wall_s:.1f}",
        f"{plan.wall_s:.1f}",
        f"{more.wall_s:.1f}",
    ]


def _write(folder: Path, sweep: dict[str, Any]) -> None:
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))


def _snakemake(folder: Path) -> Took:
    command = [own("snakemake"), "--snakefile", str(paths.ROOT / "Snakefile")]
    command += ["--cores", str(os.cpu_count()), "--config"]
    return run([*command, "experiments=sweep.yaml", "generate=none"], folder)
