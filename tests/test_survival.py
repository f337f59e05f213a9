"""What is left when a run is killed, and that the next call ends with the same bytes.

Real Snakemake processes, really killed. Times and damages are random, by a fixed seed.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from paretoserve import paths

CORES = 2
SEED = 20261128
SYSTEMS = ("h200_sxm", "h100_sxm")
MODELS = ("QWEN3_32B", "LLAMA3.1_8B")
LOAD = {"isl": 1024, "osl": 128, "ttft": 500, "total_gpus": 8, "backend_name": "trtllm"}
# A job per process, as on a cluster; with the default profile, jobs are threads.
PROCESSES = "--workflow-profile none --scheduler greedy --keep-going --rerun-incomplete --nolock"


@dataclass(frozen=True)
class Call:
    """One call of Snakemake that has ended."""

    code: int
    printed: str
    seconds: float

    @property
    def started(self) -> list[str]:
        """Messages of the jobs that it started, but the target's."""
        messages = re.findall(r"^Job \d+: (.*)$", self.printed, re.MULTILINE)
        return [message for message in messages if not message.startswith("answered in")]


@dataclass(frozen=True)
class Place:
    """A working directory with an experiment file, where Snakemake is started."""

    folder: Path

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def start(self, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "snakemake", "--cores", str(CORES)]
        command += ["--snakefile", str(paths.ROOT / "Snakefile"), "--directory", str(self.folder)]
        command += [*arguments, "--config", f"experiments={self.folder / 'asked.yaml'}"]
        with (self.folder / "printed").open("w") as printed:
            return subprocess.Popen(
                command, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True
            )

    def end(self, process: subprocess.Popen, start: float) -> Call:
        code = process.wait()
        seconds = time.monotonic() - start
        return Call(code, (self.folder / "printed").read_text(), seconds)

    def run(self, *arguments: str) -> Call:
        start = time.monotonic()
        return self.end(self.start(*arguments), start)

    def run_killed(self, seconds: float, kill, *arguments: str) -> Call:
        """Start, and after some seconds let `kill` do what it does to the process."""
        start = time.monotonic()
        process = self.start(*arguments)
        time.sleep(seconds)
        kill(process.pid)
        return self.end(process, start)

    def content(self) -> dict[str, bytes]:
        """Every file of the results but logs and benchmarks, hidden ones too."""
        names = {path: path.relative_to(self.results) for path in self.results.rglob("*")}
        return {
            str(name): path.read_bytes()
            for path, name in sorted(names.items())
            if path.is_file() and name.parts[0] not in ("logs", "benchmarks")
        }

    def tables(self) -> list[Path]:
        return sorted(self.results.rglob("*.parquet"))


def experiments() -> dict:
    """Eight experiments on four groups of works."""
    asked = {}
    for model in MODELS:
        for system in SYSTEMS:
            for mode in ("agg", "disagg"):
                fields = {"serving_mode": mode, "model_name": model, "system_name": system}
                asked[f"{model}_{system}_{mode}".replace(".", "")] = {**fields, **LOAD, "tpot": 20}
    return asked


def kill_call(process: int) -> None:
    os.kill(process, signal.SIGKILL)


def kill_group(process: int) -> None:
    os.killpg(process, signal.SIGKILL)


@pytest.fixture
def place(tmp_path) -> Place:
    (tmp_path / "asked.yaml").write_text(yaml.safe_dump(experiments()))
    return Place(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Place, Call]:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "asked.yaml").write_text(yaml.safe_dump(experiments()))
    call = Place(folder).run()
    assert call.code == 0, call.printed
    assert len(call.started) > 10
    assert len(Place(folder).tables()) > 10
    return Place(folder), call


@pytest.fixture
def finished(undisturbed, tmp_path) -> Place:
    """A finished run to damage, with Snakemake's own records."""
    shutil.copytree(undisturbed[0].folder, tmp_path / "copy", copy_function=shutil.copy2)
    (tmp_path / "copy" / "asked.yaml").write_text(yaml.safe_dump(experiments()))
    return Place(tmp_path / "copy")


def assert_resumes(place: Place, killed: list[Call], undisturbed: tuple[Place, Call]) -> Call:
    """The next call ends as if nothing had happened, and repeats at most one job per core."""
    call = place.run()
    assert call.code == 0, call.printed
    for before in killed:
        repeated = set(before.started) & set(call.started)
        assert len(repeated) <= CORES, repeated
    assert place.content() == undisturbed[0].content()
    assert "Nothing to be done" in place.run().printed
    return call


def test_killed_run_is_taken_up(place, undisturbed):
    """The whole process group is killed while it estimates."""
    process, start = place.start(), time.monotonic()
    while not list(place.results.glob("work/*/estimates.parquet")):
        assert process.poll() is None
        assert time.monotonic() - start < 60
        time.sleep(0.01)
    kill_group(process.pid)
    killed = place.end(process, start)
    assert killed.code == -signal.SIGKILL
    assert killed.started
    assert_resumes(place, [killed], undisturbed)


@pytest.mark.slow
def test_run_killed_at_any_time_is_taken_up(tmp_path, undisturbed):
    """Twelve runs, each killed up to three times before it may end."""
    chance = random.Random(SEED)
    for number in range(12):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "asked.yaml").write_text(yaml.safe_dump(experiments()))
        place, calls = Place(folder), []
        for _ in range(chance.randint(1, 3)):
            after = chance.uniform(0.3, undisturbed[1].seconds)
            calls.append(place.run_killed(after, chance.choice((kill_call, kill_group))))
        for earlier, later in pairwise(calls):
            assert len(set(earlier.started) & set(later.started)) <= CORES
        assert_resumes(place, calls[-1:], undisturbed)


@pytest.mark.slow
def test_killed_worker_costs_its_job_only(place, undisturbed):
    def kill_worker(process: int) -> None:
        for _ in range(600):
            tasks = Path(f"/proc/{process}/task").glob("*/children")
            if workers := " ".join(file.read_text() for file in tasks).split():
                os.kill(int(workers[0]), signal.SIGKILL)
                return
            time.sleep(0.1)
        raise AssertionError("no worker was started")

    call = place.run_killed(1.0, kill_worker, *PROCESSES.split())
    assert call.code == 1
    assert_resumes(place, [call], undisturbed)


def cut(file: Path, chance: random.Random) -> None:
    """As a power cut leaves a file that had not reached the disk."""
    os.truncate(file, chance.randrange(file.stat().st_size))


def flip(file: Path, chance: random.Random) -> None:
    """As a failing disk does, without a new date."""
    before, content = file.stat(), bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def exchange(file: Path, chance: random.Random) -> None:
    """As somebody does who copies a file from one folder to another."""
    same_name, same_folder = file.parents[1].glob(f"*/{file.name}"), file.parent.glob("*.parquet")
    others = [other for other in (*same_name, *same_folder) if other != file]
    shutil.copy2(chance.choice(others), file)


def test_damaged_tables_are_made_anew(finished, undisturbed):
    """One cut, one with a changed bit, one from another group, and an empty script."""
    chance = random.Random(SEED)
    works = sorted((finished.results / "work").iterdir())
    cut(works[0] / "candidates.parquet", chance)
    flip(works[1] / "estimates.parquet", chance)
    exchange(works[2] / "estimates.parquet", chance)
    scripts = sorted(finished.results.rglob("bench_run.sh"))
    os.truncate(scripts[0], 0)
    call = finished.run()
    assert call.code == 0, call.printed
    assert "checksum does not hold" in call.printed
    assert f"enumerate the candidates of {works[0].name}" in call.started
    assert f"estimate the candidates of {works[3].name}" not in call.started
    assert finished.content() == undisturbed[0].content()


@pytest.mark.slow
def test_a_table_of_every_kind_is_made_anew_if_damaged(finished, undisturbed):
    """One after the other, each in one of three ways. The report's tables are of one kind."""
    chance, kinds = random.Random(SEED), {}
    for table in finished.tables():
        folders = table.relative_to(finished.results).parts[:-1]
        kind = "report" if "report" in folders else (len(folders), folders[0], table.name)
        kinds.setdefault(kind, table)
    assert len(kinds) > 10
    for table in kinds.values():
        chance.choice((cut, flip, exchange))(table, chance)
        call = finished.run()
        assert call.code == 0, call.printed
        assert f"removed: {table.relative_to(finished.folder)}" in call.printed
        assert finished.content() == undisturbed[0].content(), table


@pytest.mark.slow
def test_power_cut_may_take_snakemakes_records_too(finished, undisturbed):
    """All of them cut, and with them one file in four of the results."""
    chance = random.Random(SEED)
    records = [file for file in (finished.folder / ".snakemake").rglob("*") if file.is_file()]
    outputs = [file for file in finished.results.rglob("*") if file.is_file()]
    for file in (*records, *chance.sample(outputs, len(outputs) // 4)):
        os.truncate(file, 0)
    call = finished.run()
    assert call.code == 0, call.printed
    assert finished.content() == undisturbed[0].content()


def test_damaged_table_is_never_read(finished):
    """Asked for a stage by name, Snakemake looks at no other file; the stage itself refuses."""
    work = sorted((finished.results / "work").iterdir())[0]
    (work / "candidates.parquet").write_bytes(b"PAR1" * 100)
    (work / "estimates.parquet").unlink()
    call = finished.run(str((work / "estimates.parquet").relative_to(finished.folder)))
    assert call.code == 1
    assert "candidates.parquet is not as paretoserve wrote it" in call.printed
    assert not (work / "estimates.parquet").exists()


def test_two_calls_do_not_write_at_once(place):
    process, start = place.start(), time.monotonic()
    while not paths.lock_file(place.results).exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        other = place.run()
    finally:
        kill_group(process.pid)
        place.end(process, start)
    assert other.code == 1
    assert "another snakemake is writing there" in other.printed
    assert "Traceback" not in other.printed


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk to fill")
@pytest.mark.parametrize("kib", [64, 256, 512])
def test_full_disk_leaves_no_half_and_the_run_goes_on_when_there_is_room(place, undisturbed, kib):
    place.results.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "paretoserve", str(place.results)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        full = place.run()
        assert full.code == 1
        assert "No space left on device" in full.printed
        left = place.content()
        whole = undisturbed[0].content()
        assert {name: whole.get(name) for name in left} == left
        more = ["mount", "-o", "remount,size=64m", str(place.results)]
        subprocess.run(more, check=True)
        assert_resumes(place, [], undisturbed)
    finally:
        subprocess.run(["umount", str(place.results)], check=True)
