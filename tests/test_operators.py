"""Operators against the measured tables themselves and against hand-written rooflines."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from paretoserve import paths
from paretoserve.errors import InputError
from paretoserve.hardware import load_system
from paretoserve.interpolation import (
    EXTRAPOLATED,
    MEASURED,
    SPEED_OF_LIGHT,
    SUBSTITUTED,
)
from paretoserve.operators.collectives import hand_over_ms
from paretoserve.operators.elementwise import memory_ms
from paretoserve.operators.kernels import Kernels
from paretoserve.perfdb.tables import PerfTables

ENGINES = [("h200_sxm", "1.0.0rc3"), ("h200_sxm", "1.3.0rc20"), ("b200_sxm", "1.3.0rc20")]
POINTS = 400


@pytest.fixture(scope="module", params=ENGINES, ids=lambda engine: "-".join(engine))
def engine(request):
    system, version = request.param
    return Kernels(PerfTables(system, "trtllm", version), strict=True), system, version


def sample(system: str, version: str, operator: str) -> dict[str, np.ndarray]:
    """Random rows of a table as stored, read without the library's look-ups."""
    table = pq.read_table(paths.table_file(system, "trtllm", version, operator))
    rows = np.sort(np.random.default_rng(7).choice(table.num_rows, POINTS, replace=False))
    return {name: np.array(table[name].take(rows).to_pylist()) for name in table.column_names}


def is_measured(found, latency_ms) -> bool:
    """Equal to the stored value, or raised because it is faster than light, and marked so."""
    raised = found.provenance == SPEED_OF_LIGHT
    equal = np.isclose(found.ms, latency_ms, rtol=1e-6)
    assert (found.ms[raised] > latency_ms[raised]).all()
    return bool((equal | raised).all() and ((found.provenance == MEASURED) | raised).all())


def test_gemm_returns_measured_points(engine):
    kernels, system, version = engine
    rows = sample(system, version, "gemm")
    for dtype in np.unique(rows["dtype"]):
        of = {name: column[rows["dtype"] == dtype] for name, column in rows.items()}
        found = kernels.gemm.latency(dtype, of["m"], of["n"], of["k"])
        assert is_measured(found, of["latency_ms"])


def test_the_quantisation_that_vllm_fuses_is_taken_off_its_measured_gemms():
    """Two measured points of (n, k) = (7168, 16384), the kernel of quantisation by hand."""
    table = pq.read_table(paths.table_file("b200_sxm", "vllm", "0.24.0", "gemm")).to_pylist()
    stored = {
        row["m"]: row["latency_ms"]
        for row in table
        if (row["dtype"], row["n"], row["k"]) == ("fp8", 7168, 16384)
    }
    tables = PerfTables("b200_sxm", "vllm", "0.24.0")
    m = np.array([128, 8192])
    asked = "fp8", m, np.full(2, 7168), np.full(2, 16384)
    bandwidth = tables.system.memory_bandwidth * tables.system.memory_bandwidth_efficiency
    kernel_ms = np.array([2**21 * 3, 2**27 * 3]) / bandwidth * 1e3 + 0.003
    measured_ms = np.array([stored[rows] for rows in m.tolist()])
    found = Kernels(tables).gemm.latency(*asked)
    assert found.ms == pytest.approx(measured_ms - kernel_ms)
    assert (found.provenance != MEASURED).all()
    assert Kernels(tables, strict=True).gemm.latency(*asked).ms == pytest.approx(measured_ms)


def test_that_quantisation_stays_where_vllm_s_gemms_stand_in():
    """TensorRT-LLM's own are screened on h200_sxm, and it quantises by a kernel of its own."""
    asked = "fp8", np.array([128, 8192]), np.full(2, 7168), np.full(2, 16384)
    measured, stood_in = (
        Kernels(PerfTables("h200_sxm", *engine), strict=strict).gemm.latency(*asked)
        for engine, strict in ((("vllm", "0.24.0"), True), (("trtllm", "1.3.0rc20"), False))
    )
    assert stood_in.ms == pytest.approx(measured.ms)
    assert (stood_in.provenance == SUBSTITUTED).all()


def test_a_gemm_far_above_both_its_neighbours_is_no_measurement():
    """Such points of one table by hand; all others of their curves are returned as they are, less
    the quantisation in them."""
    table = pq.read_table(paths.table_file("b200_sxm", "vllm", "0.24.0", "gemm"))
    raw = {name: np.array(table[name].to_pylist()) for name in table.column_names}
    kernels = Kernels(PerfTables("b200_sxm", "vllm", "0.24.0"))
    spikes = 0
    for n, k in ((1024, 10240), (512, 12288), (768, 51200)):
        mine = (raw["dtype"] == "fp8") & (raw["n"] == n) & (raw["k"] == k)
        m = np.unique(raw["m"][mine])
        ms = np.array([raw["latency_ms"][mine & (raw["m"] == rows)].min() for rows in m])
        above = [
            ms[i] > 1.35 * max(ms[max(i - 1, 0)] if i else 0, ms[i + 1]) for i in range(len(m) - 1)
        ]
        above = np.array([*above, False])
        spikes += above.sum()
        found = kernels.gemm.latency("fp8", m, np.full(len(m), n), np.full(len(m), k))
        stored_ms = ms - memory_ms(kernels.system, 3 * m * k)
        assert (found.ms[above] < stored_ms[above]).all()
        assert found.ms[~above] == pytest.approx(stored_ms[~above])
    assert spikes > 5


def test_attention_returns_measured_points(engine):
    kernels, system, version = engine
    rows = sample(system, version, "context_attention")
    for i in range(0, POINTS, 10):
        key = (*(str(rows[k][i]) for k in ("attn_dtype", "kv_dtype")),)
        key += (*(int(rows[k][i]) for k in ("head_dim", "window")),)
        query = [np.array([rows[k][i]]) for k in ("heads", "kv_heads", "isl", "batch")]
        found = kernels.context_attention.latency(*key, *query)
        assert is_measured(found, rows["latency_ms"][[i]])
    rows = sample(system, version, "generation_attention")
    for i in range(0, POINTS, 10):
        key = str(rows["kv_dtype"][i]), int(rows["head_dim"][i]), int(rows["window"][i])
        query = [np.array([rows[k][i]]) for k in ("heads", "kv_heads", "batch", "kv_len")]
        found = kernels.generation_attention.latency(*key, *query)
        assert is_measured(found, rows["latency_ms"][[i]])


def test_all_reduce_returns_measured_points(engine):
    kernels, system, version = engine
    table = pq.read_table(paths.table_file(system, "trtllm", version, "custom_allreduce"))
    gpus, elements = (table[name].to_numpy() for name in ("num_gpus", "elements"))
    found = kernels.all_reduce.latency(gpus, elements)
    assert is_measured(found, table["latency_ms"].to_numpy().astype(float))


def test_nothing_beats_light(engine):
    """Rooflines written out again here, at random places in and out of the tables."""
    kernels, system, _ = engine
    random = np.random.default_rng(3)
    spec = load_system(system)
    m = random.integers(1, 60_000, 500)
    n, k = random.integers(64, 40_000, (2, 500))
    ms = kernels.gemm.latency("fp8", m, n, k).ms / 1e3
    assert (ms >= 2.0 * m * n * k / spec.tensor_flops_per_s["fp8"] * 0.999).all()
    assert (ms >= 1.0 * n * k / spec.memory_bandwidth * 0.999).all()

    batch, kv_len = random.integers(1, 3000, 500), random.integers(1, 200_000, 500)
    heads = np.full(500, 16)
    found = kernels.generation_attention.latency("fp8", 128, 0, heads, heads // 8, batch, kv_len)
    cache = 2.0 * batch * kv_len * 2 * 128
    assert (found.ms / 1e3 >= cache / spec.memory_bandwidth * 0.999).all()


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        # Values that the guide's-era peer returns at measured points of h200_sxm 1.0.0rc3.
        (lambda k: k.gemm.latency("fp8_block", 1, 10240, 5120), 0.0187765),
        (lambda k: k.gemm.latency("float16", 64, 128, 4096), 0.00637867),
        (lambda k: k.all_reduce.latency(np.array([8]), np.array([20.48e6])), 0.22554),
        (
            lambda k: k.generation_attention.latency(
                "fp8", 128, 0, *(np.array([x]) for x in (16, 2, 16, 3001))
            ),
            0.0158161,
        ),
    ],
)
def test_published_values(call, expected):
    kernels = Kernels(PerfTables("h200_sxm", "trtllm", "1.0.0rc3"), strict=True)
    assert call(kernels).ms == pytest.approx([expected], rel=1e-4)


def test_larger_group_than_measured_pays_for_the_slower_link():
    kernels = Kernels(PerfTables("h200_sxm", "trtllm", "1.0.0rc3"), strict=True)
    one = kernels.all_reduce.latency(np.array([8, 16]), np.array([1e6, 1e6]))
    # Ring: 2 (g-1)/g; NVLink 450 GB/s inside a node, 50 GB/s between nodes.
    assert one.ms[1] / one.ms[0] == pytest.approx((15 / 16) / (7 / 8) * 450 / 50)
    assert one.provenance[1] == EXTRAPOLATED


def test_missing_table_is_a_reason_not_a_number():
    kernels = Kernels(PerfTables("h200_sxm", "trtllm", "1.0.0rc3"), strict=True)
    found = kernels.generation_attention.latency(
        "fp8", 128, 0, *(np.array(x) for x in ([16, 16], [2, 3], [1, 1], [64, 64]))
    )
    assert np.isfinite(found.ms).tolist() == [True, False]
    ((mask, sentence),) = found.reasons
    assert mask.tolist() == [False, True]
    assert "3 KV heads" in sentence
    with pytest.raises(InputError, match=r"no gemm was measured for dtype nvfp4; measured: .*fp8"):
        kernels.gemm.latency("nvfp4", 1, 128, 128)


def test_kernels_that_only_move_memory():
    # 3.84 MB at 80 % of 4.8 TB/s is 1 us, and a launch is 3 us.
    assert memory_ms(load_system("h200_sxm"), 3.84e6) == pytest.approx(0.004)


def test_stages_hand_over_inside_and_between_nodes():
    system = load_system("h200_sxm")
    tp, pp, elements = np.array([8, 4, 1]), np.array([2, 2, 1]), np.full(3, 25e6)
    # 50 MB: 1 ms between nodes (50 GB/s), 1/9 ms inside (450 GB/s), each after 10 us; one stage: 0.
    assert hand_over_ms(system, tp, pp, elements) == pytest.approx([1.01, 1 / 9 + 0.01, 0])
