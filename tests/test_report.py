"""The report, the plot and the CSV files, against the example in the user's guide."""

import csv
import io
import re
import struct
from dataclasses import replace

import pyarrow as pa
import pytest
import yaml

from paretoserve import schemas
from paretoserve.deploy.generator_config import generator_config
from paretoserve.experiments.experiment import Experiment, Replica, Tuning, Worker
from paretoserve.report.csvfiles import best_csv, pareto_csv
from paretoserve.report.plots import pareto_png
from paretoserve.report.terminal import render_report


def worker(role: str) -> Worker:
    sizes = (1, 2, 4, 8)
    return Worker(
        role, "h200_sxm", "trtllm", "1.0.0rc3", "fp8_block", "fp8_block", "fp8", "fp8", "half",
        sizes, sizes, (1,), (1,), (1,), (1,), 512,
    )  # fmt: skip


AGG = Experiment(
    name="agg",
    serving_mode="agg",
    model_name="QWEN3_32B",
    model_digest="",
    total_gpus=32,
    isl=3000,
    osl=512,
    ttft_ms=1000.0,
    tpot_ms=10.0,
    enable_wide_ep=False,
    nextn=0,
    nextn_accept_rates=(),
    workers=(worker("agg"),),
    replica=None,
    tuning=Tuning(0.9, 0.92),
    top_n=5,
)
DISAGG = replace(
    AGG,
    name="disagg",
    serving_mode="disagg",
    workers=(worker("prefill"), worker("decode")),
    replica=Replica(None, 128, 32, 32),
)


def deployment(experiment: Experiment, rank: int, speeds: tuple, size: tuple, **roles: tuple):
    """A row of the guide's tables: (tokens/s/gpu, /user, TTFT), (concurrency, replicas, G), and for
    each role (workers, tp, bs)."""
    per_gpu, per_user, ttft = speeds
    concurrency, replicas, gpus = size
    row = {
        "experiment": experiment.name,
        "serving_mode": experiment.serving_mode,
        "rank": rank,
        "tokens_per_s_per_gpu": per_gpu,
        "tokens_per_s_per_user": per_user,
        "ttft_ms": ttft,
        "tpot_ms": 1000 / per_user,
        "request_rate_per_s": per_gpu * experiment.total_gpus / experiment.osl,
        "concurrency": concurrency * replicas,
        "concurrency_per_replica": concurrency,
        "total_gpus": experiment.total_gpus,
        "gpus_used": replicas * gpus,
        "replicas": replicas,
        "gpus_per_replica": gpus,
        "meets_sla": True,
    }
    for role, (workers, tp, batch_size) in roles.items():
        cells = {"workers": workers, "tp": tp, "gpus_per_worker": tp, "batch_size": batch_size}
        cells |= {"pp": 1, "dp": 1, "moe_tp": 1, "moe_ep": 1, "ctx_tokens": 3000}
        cells |= {"memory_gib": 19.887, "seq_per_s_per_worker": 14.37}
        cells |= {"measured_share": 0.371, "interpolated_share": 0.629}
        cells |= {"extrapolated_share": 0.0, "substituted_share": 0.0}
        cells |= {"speed_of_light_share": 0.0}
        row |= {f"{role}_{name}": value for name, value in cells.items()}
    return row


# The rows as printed in the guide.
DISAGG_ROWS = [
    deployment(DISAGG, rank, speeds, size, prefill=prefill, decode=decode)
    for rank, speeds, size, prefill, decode in [
        (1, (913.82, 123.92, 202.65), (64, 4, 8), (4, 1, 1), (1, 4, 64)),
        (2, (873.07, 126.28, 202.65), (60, 4, 8), (4, 1, 1), (1, 4, 60)),
        (3, (852.77, 133.94, 202.65), (240, 1, 32), (12, 1, 1), (5, 4, 48)),
        (4, (568.51, 148.82, 202.65), (72, 2, 16), (4, 1, 1), (3, 4, 24)),
        (5, (434.77, 145.12, 123.20), (104, 1, 24), (4, 2, 1), (4, 4, 26)),
    ]
]
AGG_ROWS = [
    deployment(AGG, rank, speeds, size, agg=agg)
    for rank, speeds, size, agg in [
        (1, (638.28, 100.97, 187.72), (28, 8, 4), (1, 4, 28)),
        (2, (612.50, 101.49, 274.98), (14, 16, 2), (1, 2, 14)),
        (3, (594.71, 108.14, 149.46), (24, 8, 4), (1, 4, 24)),
        (4, (592.60, 111.22, 199.08), (24, 8, 4), (1, 4, 24)),
        (5, (544.17, 119.83, 149.25), (20, 8, 4), (1, 4, 20)),
    ]
]

GUIDE_SUMMARY = """\
    Model: QWEN3_32B (is_moe: False)
    Total GPUs: 32
"""
GUIDE_CHOICE = "    Best Experiment Chosen: disagg at 913.82 tokens/s/gpu (1.43x better)\n"
GUIDE_BEST = """\
  Overall Best Configuration:
    - Best Throughput: 913.82 tokens/s/gpu
    - User Throughput: 123.92 tokens/s/user
    - TTFT: 202.65ms
    - TPOT: 8.07ms
"""
GUIDE_DISAGG = """\
disagg Top Configurations: (Sorted by tokens/s/gpu)
+------+--------------+---------------+--------+-------------+------------------+----------+----------------+------------+----------------+-------------+-------+------------+----------------+-------------+-------+
| Rank | tokens/s/gpu | tokens/s/user |  TTFT  | concurrency | total_gpus(used) | replicas |  gpus/replica  | (p)workers | (p)gpus/worker | (p)parallel | (p)bs | (d)workers | (d)gpus/worker | (d)parallel | (d)bs |
+------+--------------+---------------+--------+-------------+------------------+----------+----------------+------------+----------------+-------------+-------+------------+----------------+-------------+-------+
|  1   |    913.82    |     123.92    | 202.65 |  256(=64x4) |   32 (32=4x8)    |    4     |  8 (=4x1+1x4)  |     4      |    1 (=1x1)    |    tp1pp1   |   1   |     1      |    4 (=4x1)    |    tp4pp1   |   64  |
|  2   |    873.07    |     126.28    | 202.65 |  240(=60x4) |   32 (32=4x8)    |    4     |  8 (=4x1+1x4)  |     4      |    1 (=1x1)    |    tp1pp1   |   1   |     1      |    4 (=4x1)    |    tp4pp1   |   60  |
|  3   |    852.77    |     133.94    | 202.65 | 240(=240x1) |   32 (32=1x32)   |    1     | 32 (=12x1+5x4) |     12     |    1 (=1x1)    |    tp1pp1   |   1   |     5      |    4 (=4x1)    |    tp4pp1   |   48  |
|  4   |    568.51    |     148.82    | 202.65 |  144(=72x2) |   32 (32=2x16)   |    2     | 16 (=4x1+3x4)  |     4      |    1 (=1x1)    |    tp1pp1   |   1   |     3      |    4 (=4x1)    |    tp4pp1   |   24  |
|  5   |    434.77    |     145.12    | 123.20 | 104(=104x1) |   32 (24=1x24)   |    1     | 24 (=4x2+4x4)  |     4      |    2 (=2x1)    |    tp2pp1   |   1   |     4      |    4 (=4x1)    |    tp4pp1   |   26  |
+------+--------------+---------------+--------+-------------+------------------+----------+----------------+------------+----------------+-------------+-------+------------+----------------+-------------+-------+
"""  # noqa: E501
GUIDE_AGG = """\
agg Top Configurations: (Sorted by tokens/s/gpu)
+------+--------------+---------------+--------+-------------+------------------+----------+--------------+-------------+----------+----+
| Rank | tokens/s/gpu | tokens/s/user |  TTFT  | concurrency | total_gpus(used) | replicas | gpus/replica | gpus/worker | parallel | bs |
+------+--------------+---------------+--------+-------------+------------------+----------+--------------+-------------+----------+----+
|  1   |    638.28    |     100.97    | 187.72 |  224(=28x8) |   32 (32=8x4)    |    8     |      4       |   4 (=4x1)  |  tp4pp1  | 28 |
|  2   |    612.50    |     101.49    | 274.98 | 224(=14x16) |   32 (32=16x2)   |    16    |      2       |   2 (=2x1)  |  tp2pp1  | 14 |
|  3   |    594.71    |     108.14    | 149.46 |  192(=24x8) |   32 (32=8x4)    |    8     |      4       |   4 (=4x1)  |  tp4pp1  | 24 |
|  4   |    592.60    |     111.22    | 199.08 |  192(=24x8) |   32 (32=8x4)    |    8     |      4       |   4 (=4x1)  |  tp4pp1  | 24 |
|  5   |    544.17    |     119.83    | 149.25 |  160(=20x8) |   32 (32=8x4)    |    8     |      4       |   4 (=4x1)  |  tp4pp1  | 20 |
+------+--------------+---------------+--------+-------------+------------------+----------+--------------+-------------+----------+----+
"""  # noqa: E501


def table(rows: list[dict], schema: pa.Schema = schemas.DEPLOYMENTS) -> pa.Table:
    return pa.Table.from_pylist(rows, schema)


def status(**reasons: str) -> pa.Table:
    rows = [
        {"experiment": name, "status": "no_feasible" if reason else "ok", "reason": reason}
        for name, reason in reasons.items()
    ]
    return table(rows, schemas.STATUS)


BEST = table(DISAGG_ROWS + AGG_ROWS)
# The guide's curves read off its plot, roughly: tokens/s/user and tokens/s/gpu.
DISAGG_CURVE = [(30, 1590), (70, 1250), (123.92, 913.82), (200, 340)]
AGG_CURVE = [(10, 1850), (60, 1000), (100.97, 638.28), (218, 300)]
FRONTIER = table(
    [
        {**rows[0], "rank": i, "tokens_per_s_per_user": user, "tokens_per_s_per_gpu": gpu}
        for rows, curve in ((DISAGG_ROWS, DISAGG_CURVE), (AGG_ROWS, AGG_CURVE))
        for i, (user, gpu) in enumerate(curve)
    ]
)
BOTH_OK = status(disagg="", agg="")


def report(experiments=(DISAGG, AGG), frontier=FRONTIER, best=BEST, told=BOTH_OK, **how) -> str:
    return render_report(experiments, frontier, best, told, **how)


def without_ansi(text: str) -> str:
    return re.sub(r"\033\[[0-9;]*m", "", text)


def test_wide_report_is_the_guides_example():
    text = report(width=None)
    for part in (GUIDE_SUMMARY, GUIDE_CHOICE, GUIDE_BEST, GUIDE_DISAGG, GUIDE_AGG):
        assert part in text
    assert text.index("Overall Best") < text.index("Pareto Frontier:") < text.index("Deployment D")
    assert text.index("disagg Top Configurations") < text.index("agg Top Configurations")
    assert "TTFT <= 1000 ms, TPOT <= 10 ms (>= 100 tokens/s/user)" in text
    assert "h200_sxm (trtllm 1.0.0rc3)" in text
    assert "Step time of rank 1: (p) measured 37%, interpolated 63%" in text


def cells_of(text: str, experiment: str) -> dict[str, dict[str, str]]:
    """Cells of an experiment's table by rank and column, from all the parts it is shown in."""
    _, _, below = text.partition(f"\n{experiment} Top Configurations: ")
    found: dict[str, dict[str, str]] = {}
    header: list[str] = []
    for line in below.split("\n\n")[0].splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if cells[0] == "Rank":
                header = cells
            else:
                found.setdefault(cells[0], {}).update(zip(header, cells, strict=True))
    return found


@pytest.mark.parametrize("width", [80, 100])
def test_narrow_report_keeps_every_cell_whole(width):
    narrow = report(width=width)
    assert max(map(len, narrow.splitlines())) <= width
    for experiment in ("disagg", "agg"):
        cells = cells_of(narrow, experiment)
        assert len(cells) == 5
        assert cells == cells_of(report(width=None), experiment)


def test_plot_has_the_guides_frame_series_and_best_point():
    lines = report(width=None).split("  Pareto Frontier:\n")[1].splitlines()[:31]
    assert lines[0].strip() == "QWEN3_32B Pareto Frontier: tokens/s/gpu vs tokens/s/user"
    assert lines[29].split() == ["tokens/s/gpu", "tokens/s/user"]
    assert max(map(len, lines[:30])) == 80
    assert [int(line[:4]) for line in lines if "┤" in line and line[:4].strip()] == [
        2250, 1875, 1500, 1125, 750, 375, 0,
    ]  # fmt: skip
    assert lines[28].split() == ["0", "60", "120", "180", "240"]
    canvas = [line[5:79] for line in lines[2:27]]
    assert [line.strip() for line in canvas[:3]] == ["•• disagg", "ff agg", "xx disagg best"]
    [(row, column)] = [(r, line.index("x")) for r, line in enumerate(canvas[3:], 3) if "x" in line]
    # 123.92 of 240 tokens/s/user over 74 columns, 913.82 of 2250 tokens/s/gpu over 25 rows
    assert column == pytest.approx(123.92 / 240 * 73, abs=1)
    assert row == pytest.approx((1 - 913.82 / 2250) * 24, abs=1)


def test_color_marks_and_changes_nothing_else():
    plain, marked = report(width=None), report(width=None, color=True)
    assert "\033" not in plain
    assert "256(=\033[4m64\033[0mx\033[4m4\033[0m)" in marked
    legend = ("numbers behind the equals signs", "underlined numbers")
    unmarked = "\n".join(line.rstrip() for line in without_ansi(marked).split("\n"))
    assert unmarked == plain.replace(*legend)


def test_more_than_two_experiments_are_compared_with_the_second_best():
    third = replace(AGG, name="agg_fp8", tpot_ms=12.0)
    rows = [deployment(third, 1, (800.0, 101.0, 200.0), (28, 8, 4), agg=(1, 4, 28))]
    best = table(DISAGG_ROWS + AGG_ROWS + rows)
    text = report((AGG, third, DISAGG), best=best, told=status(agg="", agg_fp8="", disagg=""))
    assert "disagg at 913.82 tokens/s/gpu (1.14x better than agg_fp8)" in text
    assert "    SLA: agg: TTFT <= 1000 ms, TPOT <= 10 ms" in text


def test_agg_can_be_the_better_one():
    rows = [row | {"tokens_per_s_per_gpu": 2 * row["tokens_per_s_per_gpu"]} for row in AGG_ROWS]
    text = report(best=table(DISAGG_ROWS + rows))
    assert "Best Experiment Chosen: agg at 1276.56 tokens/s/gpu (1.40x better)" in text
    assert "xx agg best" in text


def test_experiment_without_answer_is_told_with_its_reason():
    told = status(disagg="tpot 3 ms binds: raise tpot to 5 ms", agg="")
    text = report(best=table(AGG_ROWS), told=told)
    assert "Best Experiment Chosen: agg at 638.28 tokens/s/gpu\n" in text
    assert "  No answer for disagg: tpot 3 ms binds: raise tpot to 5 ms\n" in text
    assert "disagg Top Configurations" not in text


def test_no_answer_at_all():
    told = status(disagg="no decode worker fits in memory", agg="no agg worker fits in memory")
    text = report(frontier=table([]), best=table([]), told=told)
    assert "Best Experiment Chosen: none" in text
    assert "No answer for disagg: no decode worker fits in memory" in text
    assert "Top Configurations" not in text


def test_moe_workers_are_told_by_all_their_parallelism():
    moe = replace(AGG, model_name="QWEN3_235B")
    row = deployment(moe, 1, (300.0, 60.0, 500.0), (256, 4, 8), agg=(1, 1, 32))
    row |= {"agg_dp": 8, "agg_moe_ep": 8, "agg_gpus_per_worker": 8}
    text = report((moe,), frontier=table([row]), best=table([row]), told=status(agg=""))
    assert "Model: QWEN3_235B (is_moe: True)" in text
    cells = cells_of(text, "agg")["1"]
    assert cells["gpus/worker"] == "8 (=1x1x8)"
    assert cells["parallel"] == "tp1pp1dp8etp1ep8"


# Columns as ../shared/reference/method_v030.md lists them for the guide's era; those that this
# program has no number for (how full a mixed step is) are left out.
AGG_COLUMNS = (
    "model isl osl concurrency request_rate bs global_bs ttft tpot seq/s seq/s/gpu tokens/s "
    "tokens/s/gpu tokens/s/user num_total_gpus tp pp dp moe_tp moe_ep parallel gemm kvcache fmha "
    "moe comm memory ctx_tokens backend version system"
)
DISAGG_COLUMNS = (
    "model isl osl concurrency request_rate (p)bs (p)global_bs (p)workers (d)bs (d)global_bs "
    "(d)workers ttft tpot seq/s seq/s/gpu tokens/s tokens/s/gpu tokens/s/user (p)seq/s/worker "
    "(d)seq/s/worker num_total_gpus "
    "(p)tp (p)pp (p)dp (p)moe_tp (p)moe_ep (p)parallel (p)gemm (p)kvcache (p)fmha (p)moe (p)comm "
    "(p)memory (p)backend (p)version (p)system "
    "(d)tp (d)pp (d)dp (d)moe_tp (d)moe_ep (d)parallel (d)gemm (d)kvcache (d)fmha (d)moe (d)comm "
    "(d)memory (d)backend (d)version (d)system"
)


@pytest.mark.parametrize(
    ("experiment", "columns"), [(AGG, AGG_COLUMNS), (DISAGG, DISAGG_COLUMNS)], ids=["agg", "disagg"]
)
def test_csv_files_have_the_guides_columns(experiment, columns):
    best = list(csv.reader(io.StringIO(best_csv(experiment, BEST))))
    assert " ".join(best[0]) == f"{columns} tokens/s/gpu_cluster"
    assert len(best) == 1 + 5
    pareto = list(csv.reader(io.StringIO(pareto_csv(experiment, FRONTIER))))
    assert " ".join(pareto[0]) == f"index {columns}"
    assert [row[0] for row in pareto[1:]] == ["0", "1", "2", "3"]
    nothing = pareto_csv(experiment, table([]))
    assert nothing.splitlines() == [",".join(pareto[0])]


def test_csv_rows_are_of_one_replica():
    row = list(csv.DictReader(io.StringIO(best_csv(DISAGG, BEST))))[4]
    # rank 5 leaves 8 of 32 GPUs idle: 434.77 tokens/s/gpu of 32 come from 24
    assert row["tokens/s/gpu_cluster"] == "434.77"
    assert float(row["tokens/s/gpu"]) == pytest.approx(434.77 * 32 / 24)
    assert float(row["tokens/s"]) == pytest.approx(434.77 * 32)
    assert float(row["seq/s"]) == pytest.approx(434.77 * 32 / 512)
    first = next(csv.DictReader(io.StringIO(best_csv(DISAGG, BEST))))
    assert float(first["seq/s"]) == pytest.approx(913.82 * 8 / 512)
    assert (first["concurrency"], first["num_total_gpus"]) == ("64", "8")
    assert (first["(p)parallel"], first["(d)parallel"]) == ("tp1pp1", "tp4pp1")
    assert (first["(d)gemm"], first["(p)version"]) == ("fp8_block", "1.0.0rc3")


def test_png_is_the_same_for_the_same_tables_only():
    png = pareto_png((DISAGG, AGG), FRONTIER, BEST)
    assert png == pareto_png((DISAGG, AGG), FRONTIER, BEST)
    assert png != pareto_png((DISAGG, AGG), FRONTIER, table(AGG_ROWS))
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", png[16:24]) == (8 * 150, 5 * 150)
    assert b"tEXt" not in png  # neither date nor version of what drew it


def test_png_of_nothing_is_an_empty_plot():
    assert pareto_png((DISAGG, AGG), table([]), table([])).startswith(b"\x89PNG")


def test_generator_config_holds_what_the_guide_lists():
    config = generator_config(DISAGG, DISAGG_ROWS[0])
    assert yaml.safe_load(yaml.safe_dump(config, sort_keys=False)) == config
    assert config["serving_mode"] == "disagg"
    assert config["decode_system_name"] == "h200_sxm"
    assert config["replicas"] == 4
    assert config["disagg_decode_worker_config"] == {
        "gemm_quant_mode": "fp8_block",
        "moe_quant_mode": "fp8_block",
        "kvcache_quant_mode": "fp8",
        "fmha_quant_mode": "fp8",
        "comm_quant_mode": "half",
        "bs": 64,
        "workers": 1,
        "tp": 4,
        "pp": 1,
        "dp": 1,
        "moe_tp": 1,
        "moe_ep": 1,
        "memory": 19.887,
    }
    assert config["disagg_prefill_worker_config"]["workers"] == 4
    assert config["exp_config"]["tps_per_gpu"] == 913.82
    assert config["exp_config"]["concurrency_per_replica"] == 64

    config = generator_config(AGG, AGG_ROWS[0])
    assert config["decode_system_name"] is None
    assert config["agg_worker_config"]["ctx_tokens"] == 3000
    assert "disagg_decode_worker_config" not in config
