"""Run commands as whole processes, and measure what they took."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Took:
    """Wall and CPU seconds of a process and its children, and the largest one's memory."""

    wall_s: float
    cpu_s: float
    rss_mib: float
    output: str


def run(command: Sequence[str], folder: Path | None = None) -> Took:
    """Run a command to its end; CalledProcessError with what it printed if it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    with process.stdout:
        output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output)
    wall = time.perf_counter() - start
    return Took(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, output)


def beside(interpreter: str, command: str) -> str:
    """Path of a command that is installed with an interpreter."""
    return str(Path(interpreter).with_name(command))


def own(command: str) -> str:
    """Path of a command that is installed with this interpreter."""
    return beside(sys.executable, command)


def times(call: Callable[[], object], runs: int, warm: bool = False) -> list[float]:
    """Seconds of each of `runs` calls, after one that does not count unless all is `warm`."""
    seconds = []
    for _ in range(runs if warm else runs + 1):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds if warm else seconds[1:]


def spread(seconds: Sequence[float]) -> list[str]:
    """Median, least and most, for a table."""
    return [f"{of(seconds):.2f}" for of in (statistics.median, min, max)]


def machine() -> str:
    """Processor, cores and load, as they are now."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
    python = sys.version.split()[0]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{name or 'processor unknown'}, {os.cpu_count()} cores, Python {python}, load {load}"
