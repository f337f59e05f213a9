"""What kernel tables cannot tell of a running engine: fitted numbers of config/calibration.yaml.

A step of an engine is its kernels, which run a little slower side by side than alone
(`*_kernel_scale`), or the host that prepares it, whichever takes longer. Beside the steps a request
spends time in the server (`request_ms`), and in disaggregated serving its cache travels.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from paretoserve import paths
from paretoserve.errors import InputError, did_you_mean


@dataclass(frozen=True)
class EngineTimes:
    """Of one backend; units in brackets.

    decode_kernel_scale (ratio) : time of kernels in the engine over their time alone, in steps
        without prompts
    prefill_kernel_scale (ratio) : the same in steps with prompts
    dp_prefill_scale (ratio) : what attention data parallelism makes of it in steps with prompts
    decode_step_ms (ms/step) : host time of a step (scheduler, sampling)
    prefill_launch_us (us/kernel) : more of it for every kernel in a step with prompts, which are
        launched one by one
    per_request_us (us/request) : more of it for every request in the batch of a rank
    per_prompt_ms (ms/prompt) : more of it for every prompt in the step
    poll_steps (steps) : from one look for new requests to the next
    request_ms (ms/request) : server, tokeniser and router, before the scheduler
    per_prompt_token_us (us/token) : more of it for every token of the prompt
    hand_over_ms (ms/request) : disagg, from the end of prefill to decode, beside the transfer
    transfer_gb_per_s (GB/s) : disagg, rate at which one prefill worker sends its cache in a rack
    network_gb_per_s (GB/s) : the same where servers share no rack's links
    """

    decode_kernel_scale: float
    prefill_kernel_scale: float
    dp_prefill_scale: float
    decode_step_ms: float
    prefill_launch_us: float
    per_request_us: float
    per_prompt_ms: float
    poll_steps: float
    request_ms: float
    per_prompt_token_us: float
    hand_over_ms: float
    transfer_gb_per_s: float
    network_gb_per_s: float


@dataclass(frozen=True)
class Assumed:
    """What measured runs of public dashboards do not record (docs/accuracy.md); units in brackets.

    attention_dp_from (clients) : from here on flattened runs decode with attention data parallelism
    accept_rate (share) : of a draft token, where drafts are used
    long_accept_rate (share) : the same where answers have `long_answer_from` tokens or more
    long_answer_from (tokens) : see there
    tp_decode_workers (workers) : decode workers of a flattened run with tensor parallel attention
    dp_decode_workers (workers) : the same with attention data parallelism
    prefill_utilisation (share) : of the prefill pool that such a run was given
    early_hand_over_ms (ms/request) : hand_over_ms of runs of TensorRT-LLM under Dynamo before 0.8
    poll_steps (steps) : from one look for new requests to the next, of SGLang in dashboards' runs
    poll_steps_many (steps) : the same on GPUs from Blackwell on, from `poll_many_from` clients on
    poll_many_from (clients) : see there
    """

    attention_dp_from: float
    accept_rate: float
    long_accept_rate: float
    long_answer_from: float
    tp_decode_workers: float
    dp_decode_workers: float
    prefill_utilisation: float
    early_hand_over_ms: float
    poll_steps: float
    poll_steps_many: float
    poll_many_from: float


@dataclass(frozen=True)
class Calibration:
    """All of config/calibration.yaml."""

    engines: Mapping[str, EngineTimes]
    assumed: Assumed

    def names(self) -> list[str]:
        """Dotted names of all fitted numbers."""
        found = [f"{e}.{f.name}" for e in self.engines for f in fields(EngineTimes)]
        return found + [f"assumed.{f.name}" for f in fields(Assumed)]

    def value(self, name: str) -> float:
        """The number of this dotted name."""
        part, field = name.split(".")
        return getattr(self.assumed if part == "assumed" else self.engines[part], field)

    def with_values(self, values: Mapping[str, float]) -> "Calibration":
        """The same with other numbers under their dotted names."""
        engines, assumed = dict(self.engines), self.assumed
        for name, value in values.items():
            part, field = name.split(".")
            if part == "assumed":
                assumed = replace(assumed, **{field: value})
            else:
                engines[part] = replace(engines[part], **{field: value})
        return Calibration(engines, assumed)

    def plain(self) -> dict[str, Any]:
        """As the file holds it."""
        return {
            "engines": {name: asdict(times) for name, times in self.engines.items()},
            "assumed": asdict(self.assumed),
        }


@cache
def calibration(file: Path = paths.CALIBRATION) -> Calibration:
    """Read the fitted numbers; InputError where one is missing, unknown or not a number."""
    try:
        spec = yaml.load(file.read_bytes(), yaml.CSafeLoader)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{file}: is not valid YAML: {error}".replace("\n", " ")) from error
    parts = ("engines", "assumed")
    if not isinstance(spec, Mapping) or any(not isinstance(spec.get(p), Mapping) for p in parts):
        raise InputError(f"{file}: must hold the mappings {' and '.join(parts)}")
    engines = {
        name: _numbers(EngineTimes, times, f"{file}: engines.{name}")
        for name, times in spec["engines"].items()
    }
    return Calibration(engines, _numbers(Assumed, spec["assumed"], f"{file}: assumed"))


def _numbers(kind: type, values: Mapping[str, Any], where: str) -> Any:
    known = [field.name for field in fields(kind)]
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: got {values!r}, must be a mapping of {', '.join(known)}")
    for name, value in values.items():
        if name not in known:
            raise InputError(f"{where}: unknown key '{name}'{did_you_mean(name, known)}")
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise InputError(f"{where}.{name}: got {value!r}, must be a number")
    if missing := [name for name in known if name not in values]:
        raise InputError(f"{where}: {', '.join(missing)} missing")
    return kind(**{name: float(value) for name, value in values.items()})
