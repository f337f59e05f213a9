"""The written scripts really serve: etcd, NATS, Dynamo's frontend and AIPerf are real.

Dynamo's mocker stands in for the GPU engine alone. `make test-e2e` sets up what this needs.
"""

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from paretoserve import paths
from paretoserve.experiments.loading import Source, read_mapping
from paretoserve.experiments.plan import make_plan
from paretoserve.experiments.resolving import resolve_all
from paretoserve.inprocess import run_in_process
from paretoserve.perfdb.catalogue import Catalogue

pytestmark = pytest.mark.e2e

HERE = Path(__file__).parent
TOOLS = paths.ROOT / ".venv" / "e2e"
URL = "http://127.0.0.1:8000"
START_S = 180  # two cores start a dozen processes slowly


def question(mode: str, backend: str, gpus: int, **config) -> dict:
    limits = {"decode_max_batch_size": 4}
    return {
        "serving_mode": mode,
        "model_name": "LLAMA3.1_8B",
        "total_gpus": gpus,
        "system_name": "h200_sxm",
        "backend_name": backend,
        "isl": 300,
        "osl": 40,
        "tpot": 50,
        "top_n": 1,
        "config": {**config, "advanced_tuning_config": limits},
    }


def sizes(gpus: int) -> dict:
    return {"num_gpu_per_worker": [gpus], "tp_list": [gpus]}


QUESTIONS = {
    "agg": question("agg", "vllm", 4, worker_config=sizes(2)),
    "disagg": question(
        "disagg",
        "trtllm",
        8,
        prefill_worker_config=sizes(1),
        decode_worker_config=sizes(4),
        replica_config={"num_gpu_per_replica": [8]},
    ),
    "disagg_over_three_nodes": question(
        "disagg",
        "sglang",
        24,
        prefill_worker_config=sizes(4),
        decode_worker_config=sizes(8),
        replica_config={"num_gpu_per_replica": [24], "max_prefill_worker": 2},
    ),
}


@pytest.fixture(scope="module", params=QUESTIONS)
def written(request, tmp_path_factory) -> tuple[dict, Path]:
    """The best row of a question, and the folder of its files."""
    results = tmp_path_factory.mktemp("results")
    raw = read_mapping({request.param: QUESTIONS[request.param]}, Source("test"))
    result = run_in_process(make_plan(resolve_all(raw, Catalogue())), results)
    [row] = result.best.to_pylist()
    return row, result.folder / request.param / "top1" / row["serving_mode"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("environment")
    tools = folder / "bin"
    tools.mkdir()
    shutil.copy(HERE / "python3", tools)
    python = TOOLS / "dynamo" / "bin" / "python"
    model = folder / "tiny"
    subprocess.run([python, HERE / "tiny_model.py", model], check=True)
    path = [tools, TOOLS / "aiperf" / "bin", TOOLS / "services" / "usr" / "bin"]
    path += [TOOLS / "services" / "usr" / "sbin", "/usr/bin", "/bin"]
    return {
        "PATH": os.pathsep.join(map(str, path)),
        "HOME": str(folder),
        "DYNAMO_PYTHON": str(python),
        "DYN_LOG": "warn",
        "HEAD_NODE_IP": "127.0.0.1",
        "MODEL_PATH": str(model),
        "SERVED_MODEL_NAME": str(model),
        "TOKENIZER": str(model),
    }


@contextmanager
def started(folder: Path, environment: dict[str, str]):
    """All node scripts, as on machines of their own; they must end cleanly on SIGTERM."""
    processes = []
    try:
        for script in sorted(folder.glob("node_*_run.sh")):
            log = (folder / f"{script.stem}.out").open("w")
            processes.append(
                subprocess.Popen(
                    [script],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        yield processes
        for process in processes:
            assert process.poll() is None, Path(process.args[0]).with_suffix(".out").read_text()
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        assert [process.wait(timeout=60) for process in processes] == [143] * len(processes)
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def get(path: str, body: dict | None = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(URL + path, data=data, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def instances() -> Counter:
    """Registered workers, by component."""
    with suppress(OSError):
        found = get("/health").get("instances", ())
        return Counter(one["component"] for one in found if one["endpoint"] == "generate")
    return Counter()


def test_written_scripts_serve(written, environment):
    row, folder = written
    roles = ("agg",) if row["serving_mode"] == "agg" else ("prefill", "decode")
    wanted = sorted(row[f"{role}_workers"] * row["replicas"] for role in roles)
    nodes = len(list(folder.glob("node_*_run.sh")))
    assert nodes == -(-row["gpus_used"] // 8)
    with started(folder, environment):
        deadline = time.monotonic() + START_S
        while sorted(instances().values()) != wanted and time.monotonic() < deadline:
            time.sleep(1)
        assert sorted(instances().values()) == wanted, logs(folder)

        model = environment["SERVED_MODEL_NAME"]
        while model not in [one["id"] for one in get("/v1/models")["data"]]:
            assert time.monotonic() < deadline, logs(folder)
            time.sleep(1)
        body = {"model": model, "max_tokens": 8, "ignore_eos": True}
        body["messages"] = [{"role": "user", "content": "Hello"}]
        answer = get("/v1/chat/completions", body)
        assert answer["usage"]["completion_tokens"] == 8

        bench = [folder / "bench_run.sh"]
        done = subprocess.run(
            bench, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "time_to_first_token" in done.stdout
        export = folder / "benchmark" / "profile_export_aiperf.json"
        measured = json.loads(export.read_text())
        assert measured["output_sequence_length"]["avg"] == 40
        assert measured["request_count"]["avg"] == row["concurrency"] * 10
        assert not (measured.get("error_request_count") or {}).get("avg")


def logs(folder: Path) -> str:
    files = [*folder.glob("*.out"), *folder.glob("logs/*.log")]
    return "\n".join(f"== {file.name}\n{file.read_text()[-600:]}" for file in files)
