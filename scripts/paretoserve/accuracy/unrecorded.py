"""What measured runs do not record, as `calibration.assumed` has it.

Flattened disagg runs, whose workers are not told, are of recipes that differ by engine:

TensorRT-LLM  decode workers that the clients can be spread over evenly, each with a power of two
              of slots and a few clients more than slots; prefill as much as keeps them busy
SGLang        on servers one prefill worker; on an NVLink rack, beside decode wider than a node,
              half as many GPUs as decode for short prompts, for long ones the rest of the rack
"""

from math import ceil, log2

from paretoserve.accuracy.measurements import NODE_GPUS, Measurement
from paretoserve.calibration import Assumed, Calibration
from paretoserve.hardware import load_system
from paretoserve.models.catalog import find_model

BLACKWELL = 100  # its first SM version
ROUND = 32  # clients
OTHER_COUNTS = (3, 5)  # of decode workers, where clients are no multiple of the usual one


def drafts(run: Measurement, calibration: Calibration) -> int:
    """Draft tokens of a step: what is assumed, as no run records them."""
    assumed = calibration.assumed
    flattened = run.mode == "disagg" and not run.counted
    if not flattened or run.backend != "trtllm" or not find_model(run.model).mtp_layers:
        return 0
    _, _, dp, _, moe_ep = run.pools["decode"].layout
    if dp > 1:
        many = run.concurrency > assumed.many_clients
        return round(assumed.draft_tokens_many if many else assumed.draft_tokens)
    if moe_ep > 1 and assumed.drafts_above < run.concurrency <= assumed.drafts_below:
        return round(assumed.draft_tokens)
    return 0


def decode_workers(run: Measurement, assumed: Assumed) -> int:
    """Decode workers of a flattened run."""
    wide = run.pools["decode"].layout[2] > 1
    # A prefill worker keeps fewer of them busy where prompts are long.
    if run.on_servers and (wide or run.isl > run.osl):
        return round(assumed.server_decode_workers)
    if wide:
        return round(assumed.dp_decode_workers)
    usual = round(assumed.tp_decode_workers)
    counts = (usual, *OTHER_COUNTS) if run.backend == "trtllm" else ()
    return next((count for count in counts if run.concurrency % count == 0), usual)


def prefill_workers(run: Measurement, assumed: Assumed) -> float | None:
    """Prefill workers of a flattened run; None where it is so many as its decode workers need."""
    prefill, decode = run.pools["prefill"], run.pools["decode"]
    if run.on_servers:
        return assumed.server_prefill_workers
    if run.backend != "sglang" or decode.gpus <= NODE_GPUS:
        return None
    rest = load_system(run.system).gpus_per_rack - decode.gpus
    return max((rest if run.isl > run.osl else decode.gpus / 2) / prefill.gpus, 1.0)


def slots(run: Measurement, workers: int, calibration: Calibration) -> int:
    """Requests that a decode rank of a disagg run may hold, one of so many workers.

    All that come to it, but for models with experts of TensorRT-LLM on the dashboards: there a
    power of two, if clients are not many more. Wide decode for a round number of clients has a slot
    for each.
    """
    assumed, ranks = calibration.assumed, run.pools["decode"].layout[2]
    each = run.concurrency / workers / ranks
    recipe = run.of_dashboard and run.backend == "trtllm" and find_model(run.model).is_moe
    bound = run.concurrency % ROUND if ranks > 1 else each >= assumed.slots_from
    if recipe and bound:
        power = 2 ** int(log2(max(each, 1)))
        if each <= power * assumed.clients_per_slot:
            return power
    return ceil(each)


def poll_steps(run: Measurement, calibration: Calibration) -> float:
    """Steps from one look for new requests to the next: dashboards run SGLang with rarer ones."""
    assumed = calibration.assumed
    if run.backend != "sglang" or not run.of_dashboard:
        return calibration.engines[run.backend].poll_steps
    many = run.concurrency >= assumed.poll_many_from
    blackwell = (load_system(run.system).sm_version or 0) >= BLACKWELL
    return assumed.poll_steps_many if many and blackwell else assumed.poll_steps
