"""Ask Snakemake what it would run: the one module of the library that knows how it is called."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from paretoserve import paths
from paretoserve.errors import InputError


@dataclass(frozen=True)
class DryRun:
    """Jobs that would run, by rule; and why, as pairs of (what a job does, Snakemake's reason)."""

    jobs: dict[str, int]
    reasons: tuple[tuple[str, str], ...]

    def causes(self, digests: Mapping[str, str]) -> dict[str, int]:
        """How many jobs run for each cause, the most frequent first.

        `digests` says what the digests stand for that are among the parameters of jobs.
        """
        counted: Counter[str] = Counter()
        for _, reason in self.reasons:
            counted.update(set(_causes(reason, digests)))
        return dict(counted.most_common())


def _causes(reason: str, digests: Mapping[str, str]) -> Iterator[str]:
    for part in reason.split("; "):
        kind, _, detail = part.partition(":")
        if not kind.startswith("Params have changed"):
            yield kind.strip().lower()
            continue
        for digest in re.findall("'([0-9a-f]{16})'", detail.rpartition("now:")[2]):
            yield f"{digests.get(digest, 'question')} changed"


def dry_run(config: dict[str, str | int]) -> DryRun:
    """Return what `snakemake --config ...` would run here; InputError if it refuses to."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1", "--quiet", "host"]
    command += ["--snakefile", str(paths.ROOT / "Snakefile"), "--config"]
    command += [f"{key}={value}" for key, value in config.items()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    printed = done.stdout + done.stderr
    if done.returncode:
        told = re.findall(r"^error: (.*)", printed, re.MULTILINE)
        raise InputError("\n".join(told) or f"snakemake --dry-run failed:\n{printed.strip()}")
    table = printed.partition("Job stats:")[2].partition("\n\n")[0]
    counts = dict(re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE))
    reasons = re.findall(r"^Job \d+: (.*)\nReason: (.*)$", printed, re.MULTILINE)
    jobs = {rule: int(count) for rule, count in counts.items() if rule != "total"}
    return DryRun(jobs, tuple(reasons))
