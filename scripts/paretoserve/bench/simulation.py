"""Closed-loop simulations: a worker's surface, and benchmarks of many clients on it."""

import statistics
from functools import partial

import numpy as np
from prettytable import PrettyTable

from paretoserve.bench.accuracy import HELD_OUT
from paretoserve.bench.processes import times
from paretoserve.layout import Layout, Precision
from paretoserve.models.catalog import find_model
from paretoserve.operators.kernels import Kernels
from paretoserve.perfdb.tables import PerfTables
from paretoserve.serving.closed_loop import Disagg, Engine, Load, simulate
from paretoserve.serving.surfaces import Limits, Surface, surface


def simulation(runs: int) -> str:
    """A worker's surface and closed loops on it: QWEN3_32B, 2 GPUs, 1,024 + 1,024 tokens."""
    model, kernels = find_model("QWEN3_32B"), Kernels(PerfTables(*HELD_OUT))
    layout = Layout(*(np.array([size]) for size in (2, 1, 1, 1, 1)))
    precision = Precision(*["fp8"] * 4)

    def price() -> Surface:
        return surface(model, precision, layout, kernels, Limits(8192, 1024, 1024, 2048))

    engine = Engine(price(), max_batch=1024, kv_capacity_tokens=1.5e6, token_budget=8192)
    replica = Disagg(engine, engine, prefill_workers=2, decode_workers=2)
    timed = {"surface": times(price, runs)}
    for clients in (16, 256, 1024):
        load = Load(clients, 1024, 1024)
        for name, system in (("agg", engine), ("disagg", replica)):
            timed[f"{name}, {clients} clients"] = times(partial(simulate, load, system), runs)
    table = PrettyTable(["closed loop, 10 requests a client", "median ms", "min ms"], align="r")
    table.align["closed loop, 10 requests a client"] = "l"
    for name, seconds in timed.items():
        table.add_row([name, *(f"{f(seconds) * 1e3:.1f}" for f in (statistics.median, min))])
    return f"{table}\n"
