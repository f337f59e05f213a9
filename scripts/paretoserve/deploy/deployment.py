"""The files that start one answer: engine settings, manifests, scripts, benchmark, verify.md."""

import re
from dataclasses import dataclass, replace
from functools import cached_property, partial

from paretoserve import __version__, paths
from paretoserve.deploy.definitions import parsed
from paretoserve.deploy.engine import Engine, Row, checked, engine_of
from paretoserve.deploy.launch import Launch, addressed_nodes, launches, side_channel_ports
from paretoserve.deploy.placement import Need, Node, nodes_of_worker, place
from paretoserve.deploy.rendering import comment, render, render_arguments
from paretoserve.deploy.settings import deploy_settings
from paretoserve.deploy.target import Target, image_target, target_of
from paretoserve.experiments.experiment import Experiment, Worker
from paretoserve.experiments.plan import label
from paretoserve.hardware import load_system
from paretoserve.models.catalog import checkpoints, find_model
from paretoserve.schemas import LAYOUT
from paretoserve.settings import estimation

# Where pods find the engine's settings.
ENGINE_FOLDER = "/etc/paretoserve"

# How each engine names the KV cache's precision.
KV_DTYPES = {
    "trtllm": {"float16": "auto"},
    "vllm": {"float16": "auto"},
    "sglang": {"float16": "auto", "fp8": "fp8_e4m3"},
}
COMPONENT_NAMES = {"agg": "agg", "prefill": "pre", "decode": "dec"}
# What the operator adds to the names of a multi-node worker's pods.
POD_SUFFIX = "-ldr"


@dataclass(frozen=True)
class Component:
    """All workers of one role, as Kubernetes runs them."""

    name: str
    role: str
    replicas: int
    nodes: int
    gpus_per_pod: int
    product: str | None
    engine: Engine
    arguments: tuple[str, ...]
    plain_arguments: tuple[str, ...]  # of the engine's own server (llm-d)
    pod_ip_env: str | None
    config: str | None  # name of the ConfigMap with the engine's settings
    engine_file: str
    engine_text: str

    @property
    def gpus(self) -> int:
        """GPUs of all pods."""
        return self.gpus_per_pod * self.nodes * self.replicas


class Deployment:
    """One row of the best table with all that its files say.

    Raises InputError where the engine cannot run the row, or no template is old enough.
    """

    def __init__(self, experiment: Experiment, row: Row) -> None:
        self.experiment, self.row = experiment, row
        self.workers: dict[str, Worker] = {w.role: w for w in experiment.workers}
        self.engines = {
            role: checked(engine_of(experiment, role, row), worker.backend)
            for role, worker in self.workers.items()
        }
        self.targets = {role: target_of(experiment, w) for role, w in self.workers.items()}
        self.settings = deploy_settings()

    @property
    def target(self) -> Target:
        """Target of the frontend, and of the workers where all have the same."""
        return max(self.targets.values(), key=lambda target: parsed(target.release))

    @cached_property
    def image_targets(self) -> dict[str, Target]:
        """What the image holds, for each role: one release serves a whole Kubernetes deployment."""
        return {
            role: image_target(replace(target, release=self.target.release))
            for role, target in self.targets.items()
        }

    @cached_property
    def nodes(self) -> list[Node]:
        """The machines, with the workers of all replicas on them."""
        needs = [
            Need(
                role,
                worker.system,
                replica,
                number,
                self.engines[role].gpus,
                self.engines[role].tp,
                load_system(worker.system).gpus_per_node,
            )
            for replica in range(self.row["replicas"])
            for role, worker in self.workers.items()
            for number in range(self.row[f"{role}_workers"])
        ]
        return place(needs)

    @cached_property
    def _checkpoint(self) -> tuple[str, bool]:
        return _checkpoint(self.experiment)

    @property
    def model(self) -> str:
        """Hugging Face id or folder to load."""
        return self._checkpoint[0]

    @property
    def quantise_on_load(self) -> bool:
        """Whether the engine has to quantise the weights, no checkpoint being known."""
        mode = self.experiment.workers[0].gemm_quant_mode
        return mode == "fp8" and not self._checkpoint[1]

    @cached_property
    def served(self) -> str:
        """Name of the model in requests."""
        return self.model if checkpoints(self.experiment.model_name) else label(self.model)

    @property
    def checkpoint_note(self) -> str:
        """What to know about the checkpoint, where none with the estimate's precision is known."""
        mode = self.experiment.workers[0].gemm_quant_mode
        if self._checkpoint[1]:
            return ""
        if self.quantise_on_load and self.target.backend != "trtllm":
            return f"{self.model} is quantised to {mode} when it is loaded."
        return (
            f"The estimate is for {mode} weights, of which no published checkpoint is known here: "
            f"set MODEL_PATH to one, {self.model} is something else."
        )

    @property
    def name(self) -> str:
        """Name of the Kubernetes deployment, within the operator's limit."""
        mode = self.experiment.serving_mode
        longest = max(len(name) for name in COMPONENT_NAMES.values())
        room = self.settings.kubernetes["name_length"] - 2 * longest - len(POD_SUFFIX)
        model = re.sub(r"[^a-z0-9]+", "-", label(self.experiment.model_name).lower())
        return f"{model[: room - len(mode) - 1].strip('-') or 'model'}-{mode}"

    def head(self, target: Target, *more: str) -> str:
        """The first comment of a file: what it is for, and what stands in for what."""
        row, experiment = self.row, self.experiment
        workers = " + ".join(
            f"{row[f'{role}_workers']} {role} "
            f"({_layout(row, role)}, bs {row[f'{role}_batch_size']})"
            for role in self.workers
        )
        sentences = [
            f"{experiment.model_name}, {experiment.name}, rank {row['rank']}: "
            f"{row['replicas']} x [{workers}] on {row['gpus_used']} GPUs.",
            f"For {target.engine.name} {target.version} and Dynamo {target.release}. "
            f"Written by paretoserve {__version__}.",
            *target.notes,
            *([self.checkpoint_note] if self.checkpoint_note else []),
            *more,
        ]
        return comment(sentences)

    def files(self) -> dict[str, str]:
        """Return the text of every file of the folder, by name."""
        files: dict[str, str] = {}
        if self.target.backend == "trtllm":
            for role, target in self.targets.items():
                text = f"{self.head(target)}\n{self.engine_text(role, target)}"
                files[paths.engine_file(role)] = text
        files[paths.K8S_DEPLOYMENT] = self._k8s()
        if self.makes_llmd:
            files[paths.LLMD_VALUES] = self._llmd()
        files |= self._node_scripts()
        files[paths.BENCHMARK_SCRIPT] = self._benchmark()
        files[paths.VERIFY] = self._verify()
        return files

    def engine_text(self, role: str, target: Target) -> str:
        """TensorRT-LLM's settings of a role."""
        template = _newest_template(target)
        kv_dtype = _kv_dtype(self.engines[role], target)
        return render(template, engine=self.engines[role], target=target, kv_dtype=kv_dtype)

    def arguments(self, role: str, target: Target, template: str, **more: object) -> list[str]:
        """Flags of a role's workers."""
        values: dict[str, object] = {
            "engine": self.engines[role],
            "target": target,
            "kv_dtype": _kv_dtype(self.engines[role], target),
            "quantise_on_load": self.quantise_on_load and target.backend != "trtllm",
            "ports": self.settings.ports,
            "model_path": "$MODEL_PATH",
            "served_name": "$SERVED_MODEL_NAME",
            "engine_file": paths.engine_file(role),
            "plain": "",
        }
        return render_arguments(f"{target.backend}/{template}", **{**values, **more})

    @cached_property
    def components(self) -> list[Component]:
        """The roles as Kubernetes runs them, with the image's engine."""
        mixed = len({worker.system for worker in self.workers.values()}) > 1
        return [self._component(role, mixed) for role in self.workers]

    def _component(self, role: str, mixed: bool) -> Component:
        worker, engine, target = self.workers[role], self.engines[role], self.image_targets[role]
        nodes = nodes_of_worker(engine.gpus, engine.tp, load_system(worker.system).gpus_per_node)
        with_file = target.backend == "trtllm"
        transfers = target.backend == "vllm" and role != "agg"
        arguments = self.arguments(
            role, target, "worker.args.j2", engine_file=f"{ENGINE_FOLDER}/{paths.engine_file(role)}"
        )
        plain = (
            self.arguments(role, target, "worker.args.j2", plain="llmd")
            if target.backend == "vllm"
            else []
        )
        named = {"$MODEL_PATH": self.model, "$SERVED_MODEL_NAME": self.served}
        return Component(
            name=COMPONENT_NAMES[role],
            role=role,
            replicas=self.row[f"{role}_workers"] * self.row["replicas"],
            nodes=nodes,
            gpus_per_pod=engine.gpus // nodes,
            product=self.settings.kubernetes["products"].get(worker.system) if mixed else None,
            engine=engine,
            arguments=tuple(named.get(argument, argument) for argument in arguments),
            plain_arguments=tuple(plain),
            pod_ip_env="VLLM_NIXL_SIDE_CHANNEL_HOST" if transfers else None,
            config=f"{self.name}-{COMPONENT_NAMES[role]}" if with_file else None,
            engine_file=paths.engine_file(role),
            engine_text=self.engine_text(role, target) if with_file else "",
        )

    def _k8s(self) -> str:
        target = next(iter(self.image_targets.values()))
        more = [
            f"The image of Dynamo {target.release} holds {image.engine.name} {image.version}, not "
            f"{own.version}: this file is for the image."
            for image, own in zip(self.image_targets.values(), self.targets.values(), strict=True)
            if parsed(image.version) != parsed(own.version)
        ]
        return render(
            f"common/k8s_{target.api}.yaml.j2",
            header=self.head(target, *dict.fromkeys(more)),
            target=target,
            name=self.name,
            components=self.components,
            ports=self.settings.ports,
            kubernetes=self.settings.kubernetes,
            engine_folder=ENGINE_FOLDER,
        )

    @property
    def makes_llmd(self) -> bool:
        """llm-d's chart runs vLLM; how it splits a worker over nodes is not ours to say."""
        return self.target.backend == "vllm" and all(part.nodes == 1 for part in self.components)

    def _llmd(self) -> str:
        target = next(iter(self.image_targets.values()))
        return render(
            "vllm/llmd_values.yaml.j2",
            header=self.head(target),
            components=self.components,
            disagg=self.experiment.serving_mode == "disagg",
            model=self.model,
            served=self.served,
            image=f"{self.settings.images['llmd_vllm']}:v{target.version}",
            ports=self.settings.ports,
            kubernetes=self.settings.kubernetes,
        )

    def _node_scripts(self) -> dict[str, str]:
        scripts, started = {}, 0
        for node in self.nodes:
            processes = self._launches(node, started)
            started += len(node.parts)
            target = self.targets[node.parts[0].need.role]
            scripts[paths.node_script(node.index)] = render(
                "common/node_run.sh.j2",
                header=self.head(target),
                node=node,
                nodes=self.nodes,
                launches=processes,
                addressed=addressed_nodes(node.parts, target),
                needs_own_address=any("$NODE_IP" in one.env.values() for one in processes),
                model=self.model,
                served=self.served,
                checkpoint_note=self.checkpoint_note,
                ports=self.settings.ports,
                start_timeout=self.settings.start_timeout_s,
                stop_timeout=self.settings.stop_timeout_s,
            )
        return scripts

    def _launches(self, node: Node, started: int) -> list[Launch]:
        processes: list[Launch] = []
        side_channel = self.settings.ports["nixl"]
        for index, part in enumerate(node.parts):
            role = part.need.role
            target, engine = self.targets[role], self.engines[role]
            flags = partial(self.arguments, role, target)
            processes += launches(part, index, started + index, side_channel, target, engine, flags)
            side_channel += side_channel_ports(target, engine)
        return processes

    def _benchmark(self) -> str:
        experiment, row, benchmark = self.experiment, self.row, self.settings.benchmark
        shared = {"isl": experiment.isl, "osl": experiment.osl}
        command = render_arguments(
            "common/bench.args.j2",
            **shared,
            seed=benchmark["seed"],
        )
        return render(
            "common/bench_run.sh.j2",
            **shared,
            header=self.head(self.target),
            command=command,
            aiperf=benchmark["aiperf"],
            requests_per_concurrency=benchmark["requests_per_concurrency"],
            warmup_per_concurrency=benchmark["warmup_per_concurrency"],
            concurrency=row["concurrency"],
            model=self.model,
            served=self.served,
            ports=self.settings.ports,
            ttft=round(row["ttft_ms"], 3),
            tpot=round(row["tpot_ms"], 3),
            throughput=round(row["tokens_per_s_per_gpu"] * row["total_gpus"], 3),
            request_rate=round(row["request_rate_per_s"], 4),
        )

    def _verify(self) -> str:
        sentences = [line.lstrip("# ") for line in self.head(self.target).splitlines()]
        return render(
            "common/verify.md.j2",
            experiment=self.experiment,
            row=self.row,
            simulated_load=estimation().simulation.told,
            sentences=sentences,
            target=self.target,
            image_target=next(iter(self.image_targets.values())),
            nodes=self.nodes,
            folder=self.experiment.serving_mode,
            llmd=self.makes_llmd,
            name=self.name,
        )


def _layout(row: Row, role: str) -> str:
    sizes = ((name, row[f"{role}_{name}"]) for name in LAYOUT)
    return " ".join(f"{name} {size}" for name, size in sizes if size > 1) or "1 GPU"


def _checkpoint(experiment: Experiment) -> tuple[str, bool]:
    """Return the checkpoint to load, and whether it has the precision of the estimate."""
    worker = experiment.workers[0]
    mode = worker.gemm_quant_mode if worker.moe_quant_mode == "float16" else worker.moe_quant_mode
    ids = checkpoints(experiment.model_name)
    if not ids:  # a folder: the user knows what it holds
        own = find_model(experiment.model_name).checkpoint_quant_mode
        return experiment.model_name, (own or "float16") == mode
    wanted = None if mode == "float16" else mode
    fitting = [id for id, own in ids.items() if (own and own.quant_mode) == wanted]
    unquantised = [id for id, quantised in ids.items() if quantised is None]
    candidates = fitting or unquantised or list(ids)
    # Requests come as chats, which a base model has no template for.
    for_chat = [id for id in candidates if re.search("instruct|chat", id, re.IGNORECASE)]
    return (for_chat or candidates)[0], bool(fitting)


def _kv_dtype(engine: Engine, target: Target) -> str:
    return KV_DTYPES[target.backend].get(engine.kv_mode, engine.kv_mode)


def _newest_template(target: Target) -> str:
    """The template of TensorRT-LLM's settings that begins with the newest version not newer."""
    files = paths.TEMPLATES.glob("trtllm/engine_*.yaml.j2")
    begins = {file.name.removeprefix("engine_").removesuffix(".yaml.j2"): file for file in files}
    older = [version for version in begins if parsed(version) <= parsed(target.known)]
    return f"trtllm/{begins[max(older, key=parsed)].name}"
