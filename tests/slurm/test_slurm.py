"""The workflow by profiles/slurm on a real Slurm of one node: `make test-slurm`."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tests.slurm.cluster import Cluster, cluster

from paretoserve import paths

pytestmark = pytest.mark.slurm

LOAD = {"isl": 1024, "osl": 128, "ttft": 500, "tpot": 20, "total_gpus": 8, "backend_name": "trtllm"}
MODELS = ("QWEN3_32B", "LLAMA3.1_8B", "QWEN2.5_7B")
SYSTEMS = ("h200_sxm", "h100_sxm")
GROUPS = len(MODELS) * len(SYSTEMS)
TOGETHER = 4  # profiles/slurm
MEMORY_OF_GROUP_MB = 602  # rules/common.smk, for a group of one work
# No accounting and no accounts in this cluster, and short waits, for a test.
LAB = (
    "--slurm-no-account --slurm-status-command squeue --latency-wait 10 "
    "--slurm-init-seconds-before-status-checks 1 --seconds-between-status-checks 1"
)


@pytest.fixture(scope="module")
def slurm():
    with cluster() as made:
        yield made


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> dict[str, bytes]:
    """What the run leaves when it runs here."""
    folder = tmp_path_factory.mktemp("local")
    done = subprocess.run(
        [*snakemake(folder, "default"), "--cores", "2"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return content(folder)


def snakemake(folder: Path, profile: str) -> list[str]:
    """Command that runs six groups of works in a folder."""
    asked = {}
    for model in MODELS:
        for system in SYSTEMS:
            name = re.sub(r"\W", "", f"{model}_{system}")
            asked[name] = {
                "model_name": model,
                "system_name": system,
                "serving_mode": "agg",
                **LOAD,
            }
    file = folder / "asked.yaml"
    file.write_text(yaml.safe_dump(asked))
    return [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(paths.ROOT / "Snakefile")),
        *("--workflow-profile", str(paths.ROOT / "profiles" / profile)),
        *("--directory", str(folder), "--config", f"experiments={file}"),
    ]


def content(folder: Path) -> dict[str, bytes]:
    """Every file of the results but logs and benchmarks, hidden ones too."""
    names = {path: path.relative_to(folder / "results") for path in folder.rglob("results/**/*")}
    return {
        str(name): path.read_bytes()
        for path, name in sorted(names.items())
        if path.is_file() and name.parts[0] not in ("logs", "benchmarks")
    }


def start(slurm: Cluster, folder: Path) -> subprocess.Popen:
    with (folder / "printed").open("w") as printed:
        return subprocess.Popen(
            slurm.inside(*snakemake(folder, "slurm"), *LAB.split()),
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_for_job(slurm: Cluster, process: subprocess.Popen) -> str:
    """Id of a job that Slurm has begun to run."""
    while process.poll() is None:
        if running := slurm.jobs("running"):
            return min(running)
        time.sleep(0.2)
    raise AssertionError("the run ended before a job of it was seen")


def test_killed_job_is_submitted_again_and_the_bytes_are_those_of_a_local_run(
    slurm, local, tmp_path
):
    process = start(slurm, tmp_path)
    killed = wait_for_job(slurm, process)
    # Groups that go together, or what is left of them: side by side, with the memory of all.
    asked = slurm.ask("squeue", "--noheader", "--format=%C %m", f"--jobs={killed}").split()
    assert asked in [[f"{n}", f"{n * MEMORY_OF_GROUP_MB}M"] for n in (TOGETHER, GROUPS % TOGETHER)]
    slurm.ask("scancel", "--signal=KILL", "--full", killed)
    code, printed = process.wait(), (tmp_path / "printed").read_text()
    assert code == 0, printed + slurm.logs()
    assert "Trying to restart" in printed
    assert content(tmp_path) == local
    # Few jobs of several groups or chunks each, one of them submitted twice.
    submitted = set(re.findall(r"SLURM jobid (\d+)", printed))
    chunks = int(re.search(r"^pareto +(\d+)$", printed, re.MULTILINE)[1])
    assert len(submitted) == math.ceil(GROUPS / TOGETHER) + math.ceil(chunks / TOGETHER) + 1


def test_killed_call_is_taken_up(slurm, local, tmp_path):
    process = start(slurm, tmp_path)
    wait_for_job(slurm, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # Slurm knows nothing of that: its jobs go on until somebody cancels them.
    slurm.cancel()
    process = start(slurm, tmp_path)
    assert process.wait() == 0, (tmp_path / "printed").read_text() + slurm.logs()
    assert content(tmp_path) == local


def test_kubernetes_profile_is_understood(tmp_path):
    """No more than that: there is no Kubernetes here."""
    command = [*snakemake(tmp_path, "kubernetes"), "--dry-run"]
    command += ["--default-storage-prefix", str(tmp_path / "volume")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Group job work" in done.stdout + done.stderr
    assert "This was a dry-run" in done.stdout + done.stderr
