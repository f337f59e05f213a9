"""What measured runs do not record, as `calibration.assumed` has it.

Drafts, slots and workers are those of the published recipe that a run is of (see recipes); here is
what no recipe tells, and what is taken where there is none.
"""

from dataclasses import replace
from math import ceil

from paretoserve.accuracy.measurements import Measurement
from paretoserve.calibration import Assumed, Calibration, EngineTimes
from paretoserve.hardware import load_system
from paretoserve.models.catalog import find_model

BLACKWELL = 100  # its first SM version
# Of disaggregated runs of TensorRT-LLM the version told is Dynamo's.
EARLY_DYNAMO = ("0.5.", "0.6.", "0.7.")


def drafts(run: Measurement) -> int:
    """Draft tokens of a step."""
    return run.draft_tokens if find_model(run.model).mtp_layers else 0


def accept_rates(run: Measurement, assumed: Assumed) -> tuple[float, ...]:
    """Of each draft token of a step: long answers to random prompts repeat themselves."""
    long = run.osl >= assumed.long_answer_from
    return (assumed.long_accept_rate if long else assumed.accept_rate,) * drafts(run)


def decode_workers(run: Measurement, assumed: Assumed) -> int:
    """Decode workers of a run that tells none and is of no recipe, by their attention."""
    wide = run.pools["decode"].layout[2] > 1
    return round(assumed.dp_decode_workers if wide else assumed.tp_decode_workers)


def slots(run: Measurement, workers: int) -> int:
    """Requests that a decode rank may hold, one of so many workers: all that come to it unless
    told.
    """
    return run.decode_slots or ceil(run.concurrency / workers / run.pools["decode"].layout[2])


def exchanges(run: Measurement, experts: str) -> bool:
    """Whether attention ranks send tokens to their experts' GPUs, and not all tokens to all GPUs.

    SGLang's recipes name DeepEP on NVLink racks only. TensorRT-LLM's own all-to-all needs a rack,
    and its DeepGEMM experts (block FP8) know none.
    """
    rack = load_system(run.system).gpus_per_rack is not None
    return rack and (run.backend == "sglang" or experts == "nvfp4")


def times_of(run: Measurement, calibration: Calibration) -> EngineTimes:
    """The engine's times as the run had them.

    Dashboards run SGLang with rarer looks for requests, from Blackwell on and with many clients
    more so. Dynamo's early versions handed requests over sooner.
    """
    assumed, times = calibration.assumed, calibration.engines[run.backend]
    if run.backend == "sglang" and run.of_dashboard:
        many = run.concurrency >= assumed.poll_many_from
        blackwell = (load_system(run.system).sm_version or 0) >= BLACKWELL
        steps = assumed.poll_steps_many if many and blackwell else assumed.poll_steps
        return replace(times, poll_steps=steps)
    if run.backend == "trtllm" and run.mode == "disagg" and run.version.startswith(EARLY_DYNAMO):
        return replace(times, hand_over_ms=assumed.early_hand_over_ms)
    return times
