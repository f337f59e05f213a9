"""For which engine and which Dynamo release files are written."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from packaging.version import Version

from paretoserve.deploy.definitions import Definition, definition, parsed
from paretoserve.deploy.settings import deploy_settings
from paretoserve.errors import InputError
from paretoserve.experiments.experiment import Experiment, Worker

# First releases whose operator serves v1beta1 of DynamoGraphDeployment, whose v1alpha1 has
# subComponentType, and whose vLLM module wants the KV transfer's configuration in vLLM's own words.
V1BETA1_SINCE = Version("1.2.0")
SUB_COMPONENT_TYPE_SINCE = Version("0.6.0")
TRANSFER_CONFIG_SINCE = Version("1.3.0")


@dataclass(frozen=True)
class Target:
    """An engine's version, and the Dynamo release to run it with."""

    backend: str
    version: str
    release: str

    @property
    def engine(self) -> Definition:
        """Keys (trtllm) or flags (vllm, sglang) of the engine."""
        return definition(self.backend)

    @cached_property
    def known(self) -> str:
        """Version of the definition that stands for `version`."""
        return self.engine.nearest(self.version)

    @property
    def module(self) -> Definition:
        """Flags of the Dynamo module that runs the engine."""
        return definition("dynamo", self.backend)

    @property
    def frontend(self) -> Definition:
        """Flags of Dynamo's frontend."""
        return definition("dynamo", "frontend")

    @property
    def api(self) -> str:
        """API of DynamoGraphDeployment that the release's operator prefers."""
        return "v1beta1" if Version(self.release) >= V1BETA1_SINCE else "v1alpha1"

    @property
    def has_sub_component_type(self) -> bool:
        """Whether v1alpha1 tells prefill from decode workers."""
        return Version(self.release) >= SUB_COMPONENT_TYPE_SINCE

    @property
    def names_transfer(self) -> bool:
        """Whether Dynamo's vLLM module leaves --kv-transfer-config to its user."""
        return Version(self.release) >= TRANSFER_CONFIG_SINCE

    @property
    def image(self) -> str:
        """Image of the release."""
        return f"{deploy_settings().images[self.backend]}:{self.release}"

    def has(self, name: str) -> bool:
        """Whether the engine knows a key or flag."""
        return self.engine.knows(name, self.known)

    def module_has(self, flag: str) -> bool:
        """Whether the Dynamo module knows a flag of its own."""
        return self.module.knows(flag, self.release)

    def choices(self, name: str) -> tuple[str, ...]:
        """Values that the engine allows for a key or flag; () for any."""
        return tuple((self.engine.find(name, self.known) or {}).get("choices", ()))

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the head of the files: what they are for, and what stands in for what."""
        name, told = self.engine.name, []
        asked, known = parsed(self.version), parsed(self.known)
        of_series = len(asked.release) == 2 and asked.release == known.release[:2]  # such as 1.3
        if known != asked and not of_series:
            told.append(
                f"There is no template for {name} {self.version}: the newest older one is used, "
                f"for {self.known}."
            )
        return tuple(told)


def target_of(experiment: Experiment, worker: Worker) -> Target:
    """Return what a worker's files are written for; InputError if no template is old enough."""
    version = experiment.generated_config_version or worker.version
    target = Target(worker.backend, version, _release(worker.backend, version))
    target.engine.nearest(version)
    return target


def require_templates(experiments: Iterable[Experiment]) -> None:
    """Raise InputError if files cannot be written for an experiment's engine version."""
    for experiment in experiments:
        for worker in experiment.workers:
            try:
                target_of(experiment, worker)
            except InputError as error:
                raise InputError(f"experiment '{experiment.name}': {error}") from error


def image_target(target: Target) -> Target:
    """Return the target that the image of the same release holds, as Kubernetes runs it."""
    carried = deploy_settings().releases[target.release][target.backend]
    return Target(target.backend, carried, target.release)


def version_notes(experiment: Experiment) -> tuple[str, ...]:
    """Sentences on files that are for another version than the estimate, or by another template."""
    told = {}
    for worker in experiment.workers:
        target = target_of(experiment, worker)
        if target.version != worker.version:
            name = target.engine.name
            told[f"Estimated with {name} {worker.version}, files for {name} {target.version}."] = 1
        told |= dict.fromkeys(target.notes, 1)
    return tuple(told)


def _release(backend: str, version: str) -> str:
    """The newest release that carries this engine or an older one, if possible of its series."""
    wanted = parsed(version)
    carried = {
        release: Version(engines[backend])
        for release, engines in deploy_settings().releases.items()
        # The image's own engine must have a template, too.
        if Version(engines[backend]) >= Version(definition(backend).versions[0])
    }
    older = [r for r, v in carried.items() if Version(str(v).partition(".post")[0]) <= wanted]
    same_series = [r for r, v in carried.items() if v.release[:2] == wanted.release[:2]]
    if older and (older[-1] in same_series or not same_series):
        return older[-1]
    return (same_series or list(carried))[0]
