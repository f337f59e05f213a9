"""How many step latencies a core predicts in a second, with the tables at hand."""

import time

import numpy as np
from prettytable import PrettyTable

from paretoserve.estimator import Step, step_latency
from paretoserve.layout import Layout, Precision
from paretoserve.models.catalog import find_model
from paretoserve.operators.kernels import Kernels
from paretoserve.perfdb.tables import PerfTables

ENGINE = ("h200_sxm", "trtllm", "1.3.0rc20")
PRECISION = Precision("fp8_block", "fp8_block", "fp8", "fp8")
CASES = (
    *(("QWEN3_32B", step) for step in ("prefill", "decode", "mixed")),
    *(("QWEN3_235B", step) for step in ("prefill", "decode", "mixed")),
    ("DEEPSEEK_V3", "decode"),
)
COUNTS = (1_000, 20_000, 200_000)


def predictions() -> str:
    """Return a table of predictions per second of CPU time, by model, kind of step and count."""
    kernels = Kernels(PerfTables(*ENGINE))
    table = PrettyTable(["step", *(f"{count:,} at once" for count in COUNTS)], align="r")
    table.align["step"] = "l"
    table.title = f"step latencies per second and core, {' '.join(ENGINE)}"
    for model, kind in CASES:
        rates = [f"{_rate(model, kind, count, kernels):,.0f}" for count in COUNTS]
        table.add_row([f"{model}, {kind}", *rates])
    return f"{table}\n"


def _rate(model: str, kind: str, count: int, kernels: Kernels) -> float:
    """Best of a few calls, each of `count` different steps."""
    layout, step = _steps(model, kind, count)
    seconds = []
    for _ in range(max(3, 50_000 // count)):
        start = time.process_time()
        step_latency(find_model(model), PRECISION, layout, step, kernels)
        seconds.append(time.process_time() - start)
    return count / min(seconds)


def _steps(model: str, kind: str, count: int) -> tuple[Layout, Step]:
    """Random layouts of up to 8 GPUs, prompts of 200 to 8,000 tokens, up to 256 requests."""
    random = np.random.default_rng(0)
    tp, one = random.choice([1, 2, 4, 8], count), np.ones(count, np.int64)
    dp = 8 // tp if find_model(model).is_moe else one
    layout = Layout(tp, one, dp, one, tp * dp if find_model(model).is_moe else one)
    isl, none = random.integers(200, 8000, count), np.zeros(count)
    requests = random.integers(1, 256, count).astype(float)
    kv_len = (isl + 100.0)[:, None]
    contents = {
        "prefill": (isl, one.astype(float), none),
        "decode": (none, none, requests),
        "mixed": (np.full(count, 2048), 2048 / isl, requests),
    }
    tokens, prompts, decoding = contents[kind]
    return layout, Step(tokens, prompts, isl, decoding, kv_len)
