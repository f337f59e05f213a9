"""What a node runs for its part of a worker: processes, their GPUs, ports and flags."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from paretoserve.deploy.engine import Engine
from paretoserve.deploy.placement import Need, Part
from paretoserve.deploy.settings import deploy_settings
from paretoserve.deploy.target import Target

# Ports between the rendezvous of two workers of a node: an engine also takes some of those above.
RENDEZVOUS_STRIDE = 32

# Renders a backend's flags: (template, what it reads) -> arguments.
Render = Callable[..., list[str]]


@dataclass(frozen=True)
class Launch:
    """One process of a node script. A value with a $ is expanded where the script runs."""

    name: str
    comment: str
    command: tuple[str, ...]
    gpus: tuple[int, ...] = ()
    env: dict[str, str] = field(default_factory=dict)


def address(node: int) -> str:
    """Variable that holds a node's address in every script."""
    return f"$NODE_{node}_IP" if node else "$HEAD_NODE_IP"


def addressed_nodes(parts: Sequence[Part], target: Target) -> list[int]:
    """Nodes but the head whose addresses a node needs for the workers that it shares."""
    wanted = {0}
    for part in parts:
        if len(part.nodes) == 1:
            continue
        if target.backend == "trtllm":
            wanted |= set(part.nodes) if part.rank == 0 else set()
        else:
            wanted.add(part.leader)
    return sorted(wanted - {0})


def launches(
    part: Part,
    index: int,
    system_index: int,
    side_channel: int,
    target: Target,
    engine: Engine,
    render: Render,
) -> list[Launch]:
    """Return the processes of one part of a worker.

    Parameters
    ----------
    part
        The worker's GPUs on this node.
    index, system_index
        Number of the part on its node, and among all nodes.
    side_channel
        First port of vLLM's KV transfer on this node that no earlier part uses.
    target, engine
        What to run, and its settings.
    render
        Renders a template of the backend into arguments.
    """
    ports = deploy_settings().ports
    env = {"DYN_SYSTEM_PORT": str(ports["system"] + system_index % ports["system_count"])}
    command = ["python3", "-m", f"dynamo.{target.backend}", *render("worker.args.j2")]
    extra = _multinode(part, target, render)
    comment = _told(part)
    if target.backend == "trtllm":
        if len(part.nodes) > 1:
            return [_mpi_launch(part, command, env, comment)]
    elif target.backend == "sglang":
        if part.need.role == "prefill":
            extra += ["--disaggregation-bootstrap-port", str(ports["bootstrap"] + index)]
        if len(part.nodes) == 1:
            port = ports["rendezvous"] + RENDEZVOUS_STRIDE * index
            extra += ["--dist-init-addr", f"127.0.0.1:{port}"]
    else:
        if part.need.role != "agg":
            env["VLLM_NIXL_SIDE_CHANNEL_HOST"] = "$NODE_IP"
            env["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(side_channel)
        if len(part.nodes) > 1 and "ray" in extra:
            return _ray_launches(part, [*command, *extra], env, comment)
        if part.rank and not target.module_has("--headless"):
            plain = render("worker.args.j2", plain=True)
            command = ["vllm", "serve", "$MODEL_PATH", *plain, "--headless"]
    return [Launch(part.need.name, comment, (*command, *extra), part.gpus, env)]


def side_channel_ports(target: Target, engine: Engine) -> int:
    """Ports that one vLLM worker takes for the side channel of its KV transfer."""
    by_rank = target.has("--nnodes")  # until 0.11, each tensor-parallel rank has its own
    return engine.dp if by_rank else engine.dp * engine.tp


def _told(part: Part) -> str:
    need: Need = part.need
    told = f"{need.role} worker {need.number} of replica {need.replica}"
    if len(part.nodes) > 1:
        told += f", part {part.rank + 1} of {len(part.nodes)}, led by node {part.leader}"
    return told


def _multinode(part: Part, target: Target, render: Render) -> list[str]:
    if len(part.nodes) == 1 or target.backend == "trtllm":
        return []
    return render(
        "multinode.args.j2",
        rank=part.rank,
        nodes=len(part.nodes),
        per_node=len(part.gpus),
        leader=address(part.leader),
    )


def _mpi_launch(part: Part, command: Sequence[str], env: dict[str, str], comment: str) -> Launch:
    """The leader starts all ranks by mpirun; the others only keep their GPUs for it."""
    if part.rank:
        comment += ": its mpirun starts the ranks here, over ssh"
        return Launch(f"{part.need.name}_ranks", comment, ("sleep", "infinity"), part.gpus)
    hosts = ",".join(f"{address(node)}:{len(part.gpus)}" for node in part.nodes)
    passed = ("ETCD_ENDPOINTS", "NATS_SERVER", "CUDA_VISIBLE_DEVICES", *env)
    mpirun = ["mpirun", "--allow-run-as-root", "--bind-to", "none"]
    mpirun += ["-np", str(part.need.gpus), "--host", hosts]
    mpirun += [word for name in passed for word in ("-x", name)]
    whole = (*mpirun, "trtllm-llmapi-launch", *command)
    return Launch(part.need.name, comment, whole, part.gpus, env)


def _ray_launches(
    part: Part, command: Sequence[str], env: dict[str, str], comment: str
) -> list[Launch]:
    """vLLM before 0.12 reaches other nodes by Ray only."""
    port = deploy_settings().ports["ray"]
    ray = ("ray", "start", "--block", f"--num-gpus={len(part.gpus)}")
    leader = f"{address(part.leader)}:{port}"
    if part.rank:
        name = f"{part.need.name}_ray"
        return [Launch(name, comment, (*ray, f"--address={leader}"), part.gpus)]
    head = Launch(f"{part.need.name}_ray", f"Ray for {comment}", (*ray, "--head", f"--port={port}"))
    env = {**env, "RAY_ADDRESS": leader}
    return [head, Launch(part.need.name, comment, tuple(command), part.gpus, env)]
