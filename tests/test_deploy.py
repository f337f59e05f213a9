"""Deployment files: right for every engine and version, exact in GPUs, and scripts that behave."""

import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import jsonschema
import pytest
import yaml
from packaging.version import Version
from tests.deployments import VERSIONS, random_answer

from paretoserve import paths
from paretoserve.deploy import checking
from paretoserve.deploy.deployment import Deployment
from paretoserve.deploy.engine import graph_sizes
from paretoserve.deploy.placement import Need, nodes_of_worker, place
from paretoserve.deploy.target import image_target, target_of, version_notes
from paretoserve.errors import InputError
from paretoserve.experiments.loading import COMMAND_LINE, default_mode_experiments, read_mapping
from paretoserve.experiments.plan import make_plan
from paretoserve.experiments.resolving import resolve_all
from paretoserve.hardware import load_system
from paretoserve.inprocess import run_in_process
from paretoserve.perfdb.catalogue import Catalogue
from paretoserve.stages.generating import generate

ENGINES = paths.ROOT.parent / "shared" / "data" / "engines"
ALL = [(backend, version) for backend, versions in VERSIONS.items() for version in versions]
# What the shared lists do not hold: of `vllm serve` itself.
SERVER_FLAGS = {"--headless"}


def written(seed: int, backend: str, version: str, mode: str | None = None):
    deployment = Deployment(*random_answer(seed, backend, version, mode))
    return deployment, deployment.files()


def prove(seeds, pairs) -> None:
    """Our own checks, the stage's; then those against the shared definitions, if they are there."""
    scripts = {}
    for seed, (backend, version) in itertools.product(seeds, pairs):
        deployment, files = written(seed, backend, version)
        checking.check(deployment, files)
        exact_gpus(deployment, files)
        if ENGINES.is_dir():
            second_check(deployment, files)
        own = {n: t for n, t in files.items() if n.endswith(".sh")}
        scripts |= {f"{backend} {version} {seed} {name}": text for name, text in own.items()}
    checking.check_scripts(scripts)


@pytest.mark.parametrize("backend", VERSIONS)
def test_random_answers_give_files_that_pass(backend):
    prove(range(2), [pair for pair in ALL if pair[0] == backend])


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "version"), ALL)
def test_300_random_answers_give_files_that_pass(backend, version):
    prove(range(100, 400), [(backend, version)])


def test_shared_definitions_are_here():
    if not ENGINES.is_dir():
        pytest.skip(f"no {ENGINES}: files are checked against the project's own definitions only")
    assert sorted(path.name for path in ENGINES.iterdir()) == ["crd", "flags", "llmd", "trtllm"]


# The second check: from the raw lists and custom resource definitions, without the library.


def nearest(pattern: str, version: str) -> Path:
    """The file of the newest version that is not newer; of the oldest if there is none."""
    folder, name = pattern.split("/")
    before, after = name.split("*")
    found = {
        Version(path.name.removeprefix(before).removesuffix(after)): path
        for path in (ENGINES / folder).glob(name)
        if re.fullmatch(r"[0-9][0-9a-z.]*", path.name.removeprefix(before).removesuffix(after))
    }
    older = [v for v in found if v <= Version(version)]
    return found[max(older) if older else min(found)]


@cache
def raw(path: Path):
    return json.loads(path.read_text())


def second_check(deployment, files) -> None:
    for name, text in files.items():
        if name.endswith("_config.yaml"):
            target = deployment.targets[name.removesuffix("_config.yaml")]
            raw_engine_file(yaml.safe_load(text), target.version)
        elif name == "bench_run.sh":
            flags = set(itertools.chain(*raw(ENGINES / "flags" / "aiperf_0.13.0.json").values()))
            used = [w for w in checking.benchmark_arguments(text) if w.startswith("-")]
            assert used
            assert set(used) <= flags
        elif name.endswith("_run.sh"):
            for process in checking.processes(text):
                raw_command(process, deployment)
    documents = list(yaml.safe_load_all(files["k8s_deploy.yaml"]))
    release = deployment.target.release
    raw_custom_resource(documents[-1], release)
    for role, pods in checking.components(documents).items():
        target = deployment.image_targets[role]
        raw_arguments(pods.arguments, deployment.target.backend, target.version, release)
        if pods.engine:
            raw_engine_file(yaml.safe_load(pods.engine), target.version)
    if "llmd_values.yaml" in files:
        schema = raw(ENGINES / "llmd" / "modelservice_v0.4.12_values.schema.json")
        values = yaml.safe_load(files["llmd_values.yaml"])
        errors = [e.message for e in jsonschema.Draft7Validator(schema).iter_errors(values)]
        assert errors == []


def raw_command(process, deployment) -> None:
    words = process.command
    if "-m" not in words:
        assert words[0] in ("sleep", "ray", "vllm"), words
        return
    at = words.index("-m")
    module = words[at + 1].removeprefix("dynamo.")
    role = process.name.split("_")[0]
    target = deployment.targets.get(role, deployment.target)
    raw_arguments(words[at + 2 :], module, target.version, target.release)


def raw_arguments(arguments, module: str, version: str, release: str) -> None:
    own = raw(nearest("flags/dynamo_*.json", release))[module]
    path = None if module in ("frontend", "trtllm") else nearest(f"flags/{module}_*.json", version)
    engine = raw(path)["flags"] if path else {}
    for flag, values in grouped(arguments).items():
        spec = own.get(flag) or engine.get(flag)
        assert spec is not None or flag in SERVER_FLAGS, (module, version, release, flag)
        spec = spec or {}
        if isinstance(spec.get("choices"), list):
            assert set(values) <= {str(choice) for choice in spec["choices"]}, (flag, values)
        if spec.get("type") == "int":
            assert all("$" in value or int(value) is not None for value in values), (flag, values)
        if spec.get("nargs") == "0":
            assert values == [], (flag, values)


def grouped(arguments) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for word in arguments:
        if word.startswith("-") and not word.removeprefix("-").isdigit():
            assert word not in found, word
            found[word] = []
        else:
            found[list(found)[-1]].append(word)
    return found


def raw_engine_file(content, version: str) -> None:
    # 1.0.0rc4 has no list of its own; its dialect is that of 1.0.0rc6.
    spec = raw(nearest("trtllm/*.json", "1.0.0rc6" if version == "1.0.0rc4" else version))
    kinds = {"int": int, "float": (int, float), "bool": bool, "str": str, "list[int]": list}
    kinds |= {"dict": dict, "object": dict, "any": object}

    def fits(value, kind):
        if isinstance(kind, list):
            return value in kind
        return isinstance(value, kinds[kind]) and (kind == "bool") == isinstance(value, bool)

    for key, value in content.items():
        assert key in spec["top"], (version, key)
        assert fits(value, spec["top"][key]), (version, key, value)
        for inner, its_value in value.items() if isinstance(value, dict) else ():
            assert inner in spec["nested"][key], (version, key, inner)
            assert fits(its_value, spec["nested"][key][inner]), (version, key, inner, its_value)


@cache
def custom_resource(path: Path, version: str) -> jsonschema.Draft202012Validator:
    definition = yaml.load(path.read_text(), yaml.CSafeLoader)
    served = {v["name"]: v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"]}
    return jsonschema.Draft202012Validator(strict(served[version]))


def strict(schema):
    """JSON Schema of an OpenAPI v3 schema, with unknown fields refused as `kubectl` does."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    kept = {}
    for key, part in schema.items():
        if key == "properties":
            kept[key] = {name: strict(inner) for name, inner in part.items()}
        elif key in ("type", "enum", "required", "minimum", "minItems", "maxItems", "pattern"):
            kept[key] = part
        elif key in ("items", "additionalProperties", "allOf", "anyOf", "oneOf"):
            kept[key] = strict(part)
    open_ended = "additionalProperties" in schema or schema.get(
        "x-kubernetes-preserve-unknown-fields"
    )
    if schema.get("type") == "object" and "properties" in schema and not open_ended:
        kept["additionalProperties"] = False
    return kept


def raw_custom_resource(document, release: str) -> None:
    path = nearest("crd/dgd_v*.yaml", release)
    version = document["apiVersion"].split("/")[1]
    body = {key: value for key, value in document.items() if key != "metadata"}
    errors = [e.message for e in custom_resource(path, version).iter_errors(body)]
    assert errors == [], (release, errors)


# GPUs: independent sums over what the files say.


def exact_gpus(deployment, files) -> None:
    row = deployment.row
    wanted = row["gpus_per_replica"] * row["replicas"]
    *_, manifest = yaml.safe_load_all(files["k8s_deploy.yaml"])
    spec = manifest["spec"]
    asked = 0
    for one in spec.get("components") or spec["services"].values():
        limits = one.get("resources", {}).get("limits", {})
        for container in one.get("podTemplate", {}).get("spec", {}).get("containers", ()):
            limits = container.get("resources", {}).get("limits", {})
        nodes = one.get("multinode", {}).get("nodeCount", 1)
        asked += int(limits.get("gpu", limits.get("nvidia.com/gpu", 0))) * nodes * one["replicas"]
    assert asked == wanted

    started = 0
    systems = {w.system: load_system(w.system).gpus_per_node for w in deployment.workers.values()}
    of_worker: dict[str, Counter] = {}
    for name, text in files.items():
        if not re.fullmatch(r"node_\d+_run\.sh", name):
            continue
        lists = re.findall(r"^CUDA_VISIBLE_DEVICES=([\d,]+) .*?launch (\w+?_\d+_\d+)", text, re.M)
        gpus = [int(gpu) for listed, _ in lists for gpu in listed.split(",")]
        assert len(gpus) == len(set(gpus)), name
        size, system = re.search(r"^# Node \d+ of \d+, (\d+) x (\w+)\.", text, re.M).groups()
        assert int(size) == systems[system]
        assert max(gpus) < int(size), name
        started += len(gpus)
        for listed, worker in lists:
            of_worker.setdefault(worker, Counter())[name] += len(listed.split(","))
    assert started == wanted
    workers = sum(row[f"{role}_workers"] for role in deployment.workers) * row["replicas"]
    assert len(of_worker) == workers
    for worker, parts in of_worker.items():
        role = worker.split("_")[0]
        tp = row[f"{role}_tp"]
        node = load_system(deployment.workers[role].system).gpus_per_node
        assert parts.total() == row[f"{role}_gpus_per_worker"]
        if parts.total() <= node and node % tp == 0 and tp <= node:
            assert len(parts) == 1, worker
        if tp <= node:  # no tensor-parallel group is split
            assert all(size % tp == 0 for size in parts.values()), worker


def need(replica: int, number: int, gpus: int, role: str = "agg") -> Need:
    return Need(role, "h200_sxm", replica, number, gpus, gpus, 8)


def test_replicas_that_fit_a_node_stay_together():
    needs = [
        need(replica, number, gpus, role)
        for replica in range(4)
        for role, number, gpus in [("decode", 0, 4), *[("prefill", i, 1) for i in range(4)]]
    ]
    nodes = place(needs)
    assert len(nodes) == 4
    for node in nodes:
        assert len({part.need.replica for part in node.parts}) == 1
        assert not node.idle


def test_replicas_are_split_where_that_saves_nodes():
    """Five replicas of 4 + 2 GPUs: 30 GPUs, whole replicas would take five nodes of 8."""
    sizes = {"decode": 4, "prefill": 2}
    needs = [need(replica, 0, sizes[role], role) for replica in range(5) for role in sizes]
    nodes = place(needs)
    assert len(nodes) == 4
    for node in nodes:
        for part in node.parts:
            assert part.gpus[0] % len(part.gpus) == 0


@pytest.mark.parametrize(
    ("gpus", "tp", "node", "nodes"),
    [(8, 8, 8, 1), (16, 8, 8, 2), (12, 4, 8, 3), (16, 16, 8, 2), (16, 16, 4, 4), (6, 2, 4, 3)],
)
def test_workers_span_nodes_in_equal_parts(gpus, tp, node, nodes):
    assert nodes_of_worker(gpus, tp, node) == nodes


def test_graphs_reach_exactly_the_batch():
    assert graph_sizes(1) == (1,)
    assert graph_sizes(20) == (*range(1, 17), 20)
    for batch in (64, 100, 511, 513, 2000):
        sizes = graph_sizes(batch)
        assert sizes[-1] == batch
        assert list(sizes) == sorted(set(sizes))
        assert len(sizes) < 80


# What is written for which version.


@pytest.mark.parametrize(
    ("backend", "version", "known", "release", "carried"),
    [
        ("trtllm", "1.0.0rc3", "1.0.0rc3", "0.5.0", "1.0.0rc6"),
        ("trtllm", "1.0.0rc6", "1.0.0rc6", "0.5.0", "1.0.0rc6"),
        ("trtllm", "1.1", "1.1.0", "0.6.1", "1.1.0rc5"),
        ("trtllm", "1.2.0rc5", "1.2.0rc2", "0.7.1", "1.2.0rc3"),
        ("trtllm", "1.3", "1.3.0rc23", "1.6.1", "1.3.0rc29"),
        ("vllm", "0.14.0", "0.12.0", "0.9.1", "0.14.1"),
        ("vllm", "0.24.0", "0.24.0", "1.3.0.post1", "0.23.0"),
        ("sglang", "0.5.10", "0.5.9", "1.1.1", "0.5.10.post1"),
    ],
)
def test_version_chooses_template_release_and_image(backend, version, known, release, carried):
    experiment, _ = random_answer(0, backend, version, "agg")
    experiment = replace(experiment, generated_config_version=version)
    target = target_of(experiment, experiment.workers[0])
    assert (target.known, target.release) == (known, release)
    assert image_target(target).version == carried
    notes = " ".join(version_notes(experiment))
    # "1.3" asks for the newest of its series.
    stands_in = Version(known) != Version(version) and version != "1.3"
    assert ("no template for" in notes) == stands_in


def test_version_older_than_every_template_is_refused():
    experiment, _ = random_answer(0, "vllm", "0.11.0", "agg")
    experiment = replace(experiment, generated_config_version="0.9.0")
    with pytest.raises(InputError, match=r"no template for vLLM 0\.9\.0; the oldest is for 0\.11"):
        target_of(experiment, experiment.workers[0])


def test_stand_in_is_told_in_every_file():
    _, files = written(1, "trtllm", "1.2.0rc5", "agg")
    del files["verify.md"], files["k8s_deploy.yaml"]  # the manifest is for what the image holds
    for name, text in files.items():
        flat = re.sub(r"\n# *", " ", text)
        assert "no template for TensorRT-LLM 1.2.0rc5: the newest older one is used" in flat, name


def engine_file(version: str, role: str = "decode", seed: int = 3):
    _, files = written(seed, "trtllm", version, "agg" if role == "agg" else "disagg")
    return yaml.safe_load(files[f"{role}_config.yaml"])


def test_dialects_of_tensorrt_llm():
    """The differences that ../shared/reference/deploy.md (b.1) lists."""
    oldest = engine_file("0.20.0")
    assert {"kv_cache_dtype", "use_cuda_graph"} <= oldest["pytorch_backend_config"].keys()
    assert "padding_enabled" in engine_file("1.0.0rc3")["cuda_graph_config"]
    assert "kv_cache_dtype" in engine_file("1.0.0rc3")
    for version in ("1.0.0rc4", "1.0.0rc6"):
        assert engine_file(version)["cache_transceiver_config"]["backend"] == "default"
        assert "enable_padding" in engine_file(version)["cuda_graph_config"]
        assert "tokens_per_block" not in engine_file(version)["kv_cache_config"]
    for version in ("1.0.0", "1.1", "1.2", "1.3"):
        assert engine_file(version)["cache_transceiver_config"]["backend"] == "DEFAULT"
    assert "tokens_per_block" not in engine_file("1.0.0")["kv_cache_config"]
    assert "tokens_per_block" in engine_file("1.1")["kv_cache_config"]


@pytest.mark.parametrize("seed", range(12))
def test_promise_reaches_the_files(seed):
    """Batch, parallel sizes, KV type and memory fraction of the row, in each engine's own words."""
    for backend, version in (("trtllm", "1.2"), ("vllm", "0.19.0"), ("sglang", "0.5.14")):
        deployment, files = written(seed, backend, version)
        row, experiment = deployment.row, deployment.experiment
        fraction = {"trtllm": 0.9, "vllm": 0.9, "sglang": 0.88}[backend]  # config/backends.yaml
        for role, worker in deployment.workers.items():
            tp, pp, dp = (row[f"{role}_{name}"] for name in ("tp", "pp", "dp"))
            batch, fp8 = row[f"{role}_batch_size"], worker.kvcache_quant_mode == "fp8"
            if backend == "trtllm":
                told = yaml.safe_load(files[f"{role}_config.yaml"])
                assert told["tensor_parallel_size"] == tp * dp
                assert told["pipeline_parallel_size"] == pp
                assert told.get("enable_attention_dp", False) == (dp > 1)
                assert told["max_batch_size"] == batch
                kv_cache = told["kv_cache_config"]
                assert kv_cache["free_gpu_memory_fraction"] == fraction
                assert kv_cache["dtype"] == ("fp8" if fp8 else "auto")
                drafts = told.get("speculative_config", {}).get("num_nextn_predict_layers", 0)
                tokens, length = told["max_num_tokens"], told["max_seq_len"]
            else:
                scripts = [t for n, t in files.items() if n.startswith("node_")]
                found = next(
                    process
                    for text in scripts
                    for process in checking.processes(text)
                    if process.name.startswith(role) and "-m" in process.command
                )
                told = grouped(found.command[found.command.index("-m") + 2 :])
                one = {flag: values[0] for flag, values in told.items() if values}
                assert one["--pipeline-parallel-size"] == str(pp)
                if backend == "vllm":
                    assert one["--tensor-parallel-size"] == str(tp)
                    assert one["--max-num-seqs"] == str(batch)
                    assert one["--gpu-memory-utilization"] == str(fraction)
                    assert one["--kv-cache-dtype"] == ("fp8" if fp8 else "auto")
                    tokens = int(one["--max-num-batched-tokens"])
                    length = int(one["--max-model-len"])
                    speculation = json.loads(one.get("--speculative-config", "{}"))
                    drafts = speculation.get("num_speculative_tokens", 0)
                    assert max(map(int, told["--cudagraph-capture-sizes"])) == batch * (1 + drafts)
                else:
                    assert one["--tensor-parallel-size"] == str(tp * dp)
                    assert ("--enable-dp-attention" in told) == (dp > 1)
                    assert one["--max-running-requests"] == str(batch * dp)
                    assert one["--mem-fraction-static"] == str(fraction)
                    assert one["--kv-cache-dtype"] == ("fp8_e4m3" if fp8 else "auto")
                    tokens, length = int(one["--max-prefill-tokens"]), int(one["--context-length"])
                    drafts = int(one.get("--speculative-num-steps", 0))
            assert drafts == experiment.nextn
            assert length >= experiment.isl + experiment.osl + experiment.nextn
            if role == "prefill":
                assert tokens >= batch * experiment.isl
            elif backend != "sglang":
                assert tokens >= batch * (1 + experiment.nextn) + (row[f"{role}_ctx_tokens"] or 0)


def test_names_fit_the_operator():
    for seed in range(30):
        _, files = written(seed, "sglang", "0.5.14")
        *_, manifest = yaml.safe_load_all(files["k8s_deploy.yaml"])
        name = manifest["metadata"]["name"]
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name)
        for one in manifest["spec"]["components"]:
            pods = len(name) + len(one["name"])
            pods += len(one["name"] + "-ldr") if "multinode" in one else 0
            assert pods <= 45


def test_engine_that_cannot_run_a_layout_is_told():
    experiment, row = random_answer(0, "trtllm", "1.2", "agg")
    worker = replace(experiment.workers[0], backend="vllm", version="0.19.0")
    experiment = replace(
        experiment, workers=(worker,), model_name="DEEPSEEK_V3", generated_config_version=None
    )
    row |= {"agg_tp": 8, "agg_dp": 1, "agg_moe_tp": 2, "agg_moe_ep": 4}
    with pytest.raises(InputError, match="vLLM spreads experts over all GPUs or none"):
        Deployment(experiment, row)


def test_refused_row_leaves_nothing_half_written(tmp_path, monkeypatch):
    """A fault in the last of the files: the first are not there either."""
    mapping = default_mode_experiments("QWEN3_32B", 8, "h200_sxm", tpot=20.0)
    experiments = resolve_all(read_mapping(mapping, COMMAND_LINE), Catalogue())
    result = run_in_process(make_plan(experiments), None)
    monkeypatch.setattr(Deployment, "_verify", lambda self: "None\n")
    for experiment in experiments:
        folder = paths.ExperimentPaths(tmp_path / experiment.name)
        with pytest.raises(InputError, match="holds 'None', where a value belongs"):
            generate(experiment, result.frontier, result.best, folder)
        assert not folder.folder.exists()


# Mutations: each must be found, with the key or flag and the version in the sentence.


def faults_of(deployment, files) -> str:
    with pytest.raises(InputError) as caught:
        checking.check(deployment, files)
    return str(caught.value)


def mutated(deployment, files, name: str, old: str, new: str) -> str:
    assert old in files[name], (name, old)
    return faults_of(deployment, {**files, name: files[name].replace(old, new, 1)})


@pytest.mark.parametrize(
    ("version", "old", "new", "sentence"),
    [
        (
            "1.0.0rc6",
            "enable_padding",
            "padding_enabled",
            "cuda_graph_config.padding_enabled is unknown to TensorRT-LLM 1.0.0rc6 "
            "(1.0.0rc3 know it)",
        ),
        (
            "1.1",
            "max_num_tokens",
            "max_num_token",
            "max_num_token is unknown to TensorRT-LLM 1.1.0 (did you mean 'max_num_tokens'?)",
        ),
        (
            "1.2",
            "pipeline_parallel_size: ",
            "pipeline_parallel_size: x",
            "TensorRT-LLM 1.2.0 requires an integer",
        ),
        ("1.0.0", "backend: DEFAULT", "backend: default", "allows DEFAULT, UCX, NIXL, MPI"),
        ("1.3", "  backend: DEFAULT\n", "", "cache_transceiver_config.backend is missing"),
        ("1.1", "[1, ", "[3, ", "CUDA graph batch sizes must rise"),
    ],
)
def test_wrong_engine_file_is_found(version, old, new, sentence):
    deployment, files = written(3, "trtllm", version, "disagg")
    assert sentence in mutated(deployment, files, "decode_config.yaml", old, new)


@pytest.mark.parametrize(
    ("backend", "version", "old", "new", "sentence"),
    [
        (
            "vllm",
            "0.19.0",
            "--cudagraph-capture-sizes",
            "--cuda-graph-sizes",
            "--cuda-graph-sizes is unknown to vLLM 0.19.0 (0.11.0, 0.12.0 know it)",
        ),
        (
            "sglang",
            "0.5.21",
            "--cuda-graph-bs-decode",
            "--cuda-graph-bs",
            "--cuda-graph-bs is unknown to SGLang 0.5.21 (0.5.0rc2 to 0.5.16 know it)",
        ),
        (
            "sglang",
            "0.5.14",
            "--kv-cache-dtype fp8_e4m3",
            "--kv-cache-dtype fp8",
            "--kv-cache-dtype is 'fp8', SGLang 0.5.14 allows",
        ),
        (
            "vllm",
            "0.16.0",
            "--max-num-seqs ",
            "--max-num-seqs many",
            "vLLM 0.16.0 requires an integer",
        ),
        ("trtllm", "1.3", "--model-path", "--model-paths", "did you mean '--model-path'"),
        ("trtllm", "1.3", "--http-port", "--htp-port", "unknown to Dynamo's frontend module 1.6.1"),
    ],
)
def test_wrong_flag_is_found(backend, version, old, new, sentence):
    for seed in range(20):
        deployment, files = written(seed, backend, version, "agg")
        if old in files["node_0_run.sh"]:
            break
    assert sentence in mutated(deployment, files, "node_0_run.sh", old, new)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("replicas: ", "replica: ", "'replicas' is a required property"),
        ("nvidia.com/v1beta1", "nvidia.com/v1", "apiVersion nvidia.com/v1 is unknown to Dynamo"),
        ("      type: worker\n", "      type: workers\n", "'workers' is not one of"),
        ("replicas: 1", "replicas: one", "'one' is not of type 'integer'"),
        ("backendFramework: sglang", "backendFramework: None", "holds 'None'"),
    ],
)
def test_wrong_manifest_is_found(old, new, sentence):
    deployment, files = written(5, "sglang", "0.5.14", "agg")
    assert sentence in mutated(deployment, files, "k8s_deploy.yaml", old, new)


def test_wrong_gpus_are_found():
    deployment, files = written(5, "sglang", "0.5.14", "agg")
    found = re.search(r"CUDA_VISIBLE_DEVICES=[\d,]+ ", files["node_0_run.sh"])[0]
    sentence = mutated(deployment, files, "node_0_run.sh", found, "CUDA_VISIBLE_DEVICES=0,0 ")
    assert "a GPU is given to two workers" in sentence
    assert re.search(r"node scripts: asks for \d+ GPUs, the answer has \d+", sentence)


def test_script_that_bash_or_shellcheck_refuses_is_found():
    with pytest.raises(InputError, match=r"broken\.sh: line 2: syntax error"):
        checking.check_scripts({"broken.sh": "#!/usr/bin/env bash\nif then\n"})
    with pytest.raises(InputError, match=r"careless\.sh:2:.*SC2164"):
        checking.check_scripts({"careless.sh": "#!/usr/bin/env bash\ncd /nowhere\n"})


# The scripts, run: a stand-in for python3 notes how it was called, then serves or dies.

STAND_IN = """#!/bin/bash
echo "$CUDA_VISIBLE_DEVICES|$ETCD_ENDPOINTS|$NATS_SERVER|$DYN_SYSTEM_PORT|$*" > "$NOTES/$$"
trap 'echo ended > "$NOTES/$$.ended"; exit 0' TERM
[[ "$*" == *"$DIES"* ]] && { echo "out of memory"; exit 7; }
for ((i = 0; i < 300; i++)); do sleep 0.05; done
"""


@pytest.fixture
def run_node(tmp_path):
    """Start a node's script with stand-ins for all that it runs; the caller ends it."""
    tools, notes = tmp_path / "tools", tmp_path / "notes"
    for folder in (tools, notes):
        folder.mkdir()
    for tool in ("python3", "etcd", "nats-server"):
        (tools / tool).write_text(STAND_IN)
        (tools / tool).chmod(0o755)
    # The ports of etcd and NATS do not answer here: no time is spent on waiting for them.
    (tools / "timeout").write_text("#!/bin/sh\nexit 0\n")
    (tools / "timeout").chmod(0o755)
    started = []

    def start(text: str, dies: str = "nothing") -> subprocess.Popen:
        script = tmp_path / "node.sh"
        script.write_text(text)
        environment = {"PATH": f"{tools}:/usr/bin:/bin", "NOTES": str(notes), "DIES": dies}
        environment |= {"HEAD_NODE_IP": "10.1.2.3", "HOME": str(tmp_path)}
        process = subprocess.Popen(
            ["bash", str(script)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    start.notes = notes
    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def calls(notes: Path, count: int) -> list[list[str]]:
    """What the stand-ins noted, once there are so many notes."""
    deadline = time.monotonic() + 20
    while True:
        found = [p.read_text().strip() for p in notes.iterdir() if p.suffix != ".ended"]
        found = [text.split("|") for text in found if text]
        if len(found) >= count or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def small_disagg():
    experiment, row = random_answer(0, "trtllm", "1.0.0rc6", "disagg")
    workers = [replace(worker, system="h200_sxm") for worker in experiment.workers]
    experiment = replace(experiment, model_name="QWEN3_32B", workers=tuple(workers), nextn=0)
    ones = {f"{role}_{name}": 1 for role in ("prefill", "decode") for name in ("pp", "dp")}
    row |= ones | {"prefill_tp": 1, "decode_tp": 4, "prefill_workers": 4, "decode_workers": 1}
    row |= {"prefill_gpus_per_worker": 1, "decode_gpus_per_worker": 4, "replicas": 1}
    row |= {"gpus_per_replica": 8, "gpus_used": 8, "total_gpus": 8}
    return Deployment(experiment, row).files()["node_0_run.sh"]


def test_script_starts_every_worker_and_ends_cleanly_on_a_signal(run_node):
    process = run_node(small_disagg())
    found = calls(run_node.notes, 6)
    assert len(found) == 6
    by_module = Counter(shlex.split(call[4])[1] for call in found)
    assert by_module == {"dynamo.frontend": 1, "dynamo.trtllm": 5}
    gpus = [gpu for call in found for gpu in call[0].split(",") if gpu]
    assert sorted(gpus) == [str(gpu) for gpu in range(8)]
    assert {call[1] for call in found} == {"http://10.1.2.3:2379"}
    assert {call[2] for call in found} == {"nats://10.1.2.3:4222"}
    ports = [call[3] for call in found if call[0]]
    assert len(set(ports)) == len(ports) == 5
    process.send_signal(signal.SIGTERM)
    _, complaints = process.communicate(timeout=20)
    assert process.returncode == 143
    assert complaints == ""
    assert len(list(run_node.notes.glob("*.ended"))) == 6


def test_worker_that_dies_fails_its_script(run_node):
    process = run_node(small_disagg(), dies="decode_config.yaml")
    _, complaints = process.communicate(timeout=20)
    assert process.returncode == 7
    assert "decode_0_0 ended" in complaints
    assert "out of memory" in complaints


def test_followers_insist_on_the_head():
    folders = (written(seed, "sglang", "0.5.14")[1] for seed in range(100))
    files = next(files for files in folders if "node_1_run.sh" in files)
    process = subprocess.run(
        ["bash", "-c", files["node_1_run.sh"]],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode != 0
    assert "HEAD_NODE_IP: set it to the address of node 0" in process.stderr
