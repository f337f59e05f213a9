"""The newest version of every engine on every system: finite answers that make sense together."""

import copy

import numpy as np
import pytest

from paretoserve.experiments.loading import Source, read_mapping
from paretoserve.experiments.plan import make_plan
from paretoserve.experiments.resolving import resolve_all
from paretoserve.inprocess import run_in_process
from paretoserve.models.catalog import find_model
from paretoserve.operators.kernels import Kernels
from paretoserve.perfdb import manifest
from paretoserve.perfdb.catalogue import ENGINES, Catalogue
from paretoserve.perfdb.tables import PerfTables

CATALOGUE = Catalogue()
SMALL = find_model("LLAMA3.1_8B")
SYSTEMS = sorted({key[0] for key in manifest.load().tables})
NEWEST = [
    (system, backend, CATALOGUE.versions(system, backend, SMALL)[-1])
    for system in SYSTEMS
    for backend in ENGINES
    if CATALOGUE.versions(system, backend, SMALL)
]


def answer(system, backend, **changes):
    """Throughput (0 without an answer) of an aggregated Llama-3.1-8B, and the run's status."""
    asked = {
        "serving_mode": "agg",
        "model_name": "LLAMA3.1_8B",
        "total_gpus": 8,
        "system_name": system,
        "backend_name": backend,
        "isl": 2000,
        "osl": 200,
        "ttft": 2000,
        "tpot": 40,
    } | changes
    raw = read_mapping({"agg": copy.deepcopy(asked)}, Source("test.yaml"))
    found = run_in_process(make_plan(resolve_all(raw, CATALOGUE)), None)
    (status,) = found.status.to_pylist()
    best = found.best["tokens_per_s_per_gpu"].to_pylist()
    return (best[0] if best else 0.0), status


@pytest.mark.parametrize("engine", NEWEST, ids=".".join)
def test_gemm_is_finite_wherever_it_is_asked(engine):
    """In and out of every table's range, at measured shapes and between them."""
    gemm = Kernels(PerfTables(*engine)).gemm
    random = np.random.default_rng(11)
    m = np.r_[random.integers(1, 70_000, 300), np.full(100, 32_768)]
    n = np.r_[random.integers(32, 70_000, 200), np.full(200, 65_536)]
    k = np.r_[random.integers(32, 30_000, 300), np.full(100, 2048)]
    for dtype in {gemm for gemm, _, _ in CATALOGUE.precisions(*engine, SMALL)}:
        found = gemm.latency(dtype, m, n, k)
        assert np.isfinite(found.ms).all()
        assert (found.ms > 0).all()


@pytest.mark.parametrize("engine", NEWEST, ids=".".join)
def test_a_small_model_is_answered(engine):
    system, backend, _ = engine
    throughput, status = answer(system, backend)
    # The 24 GB of a B60 hold the model in 8 bits; nothing else is too small for it.
    assert throughput > 0, status["reason"]
    looser, _ = answer(system, backend, ttft=4000, tpot=80)
    assert looser >= throughput
    longer, _ = answer(system, backend, isl=4000)
    assert longer < throughput


@pytest.mark.parametrize("backend", ENGINES)
def test_default_precision_is_no_slower_than_sixteen_bits(backend):
    for system in ("h200_sxm", "b200_sxm"):
        default, _ = answer(system, backend, model_name="QWEN3_32B")
        sixteen, _ = answer(system, backend, model_name="QWEN3_32B", profiles=["float16_default"])
        assert default >= sixteen


@pytest.mark.parametrize("backend", ENGINES)
def test_newer_gpus_serve_more(backend):
    by_system = [answer(s, backend)[0] for s in ("a100_sxm", "h100_sxm", "h200_sxm", "b200_sxm")]
    assert by_system == sorted(by_system)
