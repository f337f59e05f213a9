"""Accuracy against measured runs: reading them, predicting, scoring, fitting, the command."""

import csv
import json
import re
from collections import defaultdict
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import yaml

from paretoserve import cli, paths
from paretoserve.accuracy import report
from paretoserve.accuracy.calibrating import (
    CAUCHY,
    OTHER_SPREAD,
    UNITS,
    Linear,
    fitted,
    fitted_names,
)
from paretoserve.accuracy.measurements import read_measurements
from paretoserve.accuracy.predicting import Prediction, Predictor
from paretoserve.accuracy.scoring import (
    concurrency_bucket,
    decisions,
    errors,
    interval_coverage,
)
from paretoserve.accuracy.unrecorded import (
    accept_rates,
    decode_workers,
    exchanges,
    slots,
    times_of,
)
from paretoserve.accuracy.validating import SCHEMES, held_out
from paretoserve.calibration import Assumed, EngineTimes, calibration
from paretoserve.errors import InputError
from paretoserve.serving.mtp import expected_tokens_per_step
from paretoserve.uncertainty import Residuals

SHARED = paths.ROOT.parent / "shared" / "data" / "silicon_train.csv"
PAGE = paths.ROOT / "docs" / "accuracy.md"
ATTENTION_DP_FROM = 600  # clients

DEEPSEEK = {
    "id": "a run",
    "backend": "trtllm",
    "model_path": "deepseek-ai/DeepSeek-R1",
    "system": "h200_sxm",
    "precision": "fp8",
    "mode": "agg",
    "isl": 1024,
    "osl": 1024,
    "concurrency": 64,
    "silicon_ttft_ms": 500.0,
    "silicon_tpot_ms": 20.0,
}
LLAMA = DEEPSEEK | {
    "backend": "vllm",
    "model_path": "meta-llama/Llama-3.1-8B-Instruct",
    "system": "h100_sxm",
    "precision": "bf16",
    "tp_size": 1,
}


def written(folder: Path, rows, suffix=".csv") -> Path:
    """A file of measured runs; a column that a row does not have is empty there."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = folder / f"runs{suffix}"
    with (folder / "runs.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, names)
        writer.writeheader()
        writer.writerows(rows)
    if suffix == ".parquet":
        pq.write_table(pyarrow.csv.read_csv(folder / "runs.csv"), file)
    return file


def read(folder, *rows):
    return read_measurements(written(folder, rows), ATTENTION_DP_FROM)


def one(folder, **changes):
    [run], skipped = read(folder, DEEPSEEK | changes)
    assert skipped == []
    return run


# --- layouts: (tp, pp, dp, moe_tp, moe_ep)


def sizes(tp="", dp="", moe_tp="", moe_ep="", pp="", prefix=""):
    given = {"tp": tp, "pp": pp, "attention_dp": dp, "moe_tp": moe_tp, "moe_ep": moe_ep}
    return {f"{prefix}{name}_size": size for name, size in given.items()}


@pytest.mark.parametrize(
    ("told", "layout"),
    [
        # The traps: products instead of sizes.
        (sizes(tp=64, moe_tp=8, moe_ep=8), (8, 1, 1, 1, 8)),
        (sizes(tp=16, moe_tp=4, moe_ep=4), (4, 1, 1, 1, 4)),
        (sizes(tp=1, dp=64, moe_tp=8, moe_ep=8), (1, 1, 8, 1, 8)),
        (sizes(tp=4, dp=4, moe_tp=1, moe_ep=16), (4, 1, 1, 1, 4)),
        # Sizes as they stand.
        (sizes(tp=8, dp=1, moe_tp=8, moe_ep=1), (8, 1, 1, 8, 1)),
        (sizes(tp=4, dp=2, moe_tp=1, moe_ep=8, pp=2), (4, 2, 2, 1, 8)),
        (sizes(tp=8, dp=1, moe_tp=2, moe_ep=4), (8, 1, 1, 2, 4)),
        # Empty and zero are 1.
        (sizes(tp=8), (8, 1, 1, 8, 1)),
        (sizes(tp=8, dp=0, moe_tp=0, moe_ep=0, pp=0), (8, 1, 1, 8, 1)),
        (sizes(tp=2, moe_ep=8), (2, 1, 4, 1, 8)),
    ],
)
def test_agg_layout_is_recovered(tmp_path, told, layout):
    run = one(tmp_path, **told)
    assert run.pools["agg"].layout == layout
    assert run.gpus == layout[0] * layout[1] * layout[2]


def test_dense_model_has_no_experts(tmp_path):
    run = one(tmp_path, **LLAMA | sizes(tp=4, dp=1, moe_tp=4, moe_ep=1))
    assert run.pools["agg"].layout == (4, 1, 1, 1, 1)


def test_heads_that_tp_does_not_divide(tmp_path):
    """MiniMax-M2.5 has 48 heads, which 32 GPUs cannot share."""
    minimax = {"model_path": "MiniMaxAI/MiniMax-M2.5", "system": "b200_sxm"}
    run = one(tmp_path, **minimax, **sizes(tp=32, moe_tp=1, moe_ep=32))
    assert run.pools["agg"].layout == (1, 1, 32, 1, 32)
    run = one(tmp_path, **minimax, **sizes(tp=8, moe_tp=8))
    assert run.pools["agg"].layout == (8, 1, 1, 8, 1)


def disagg(prefill=None, decode=None, workers=("", ""), **changes):
    roles = zip(("prefill", "decode"), (prefill or {}, decode or {}), workers, strict=True)
    told = {"mode": "disagg"} | changes
    for role, pool, count in roles:
        told |= sizes(**pool, prefix=f"{role}_") | {f"{role}_num_workers": count}
    return told


WIDE = {"tp": 8, "moe_ep": 8}
UNLIKE = {"isl": 2048}  # no published recipe has such a load


@pytest.mark.parametrize(
    ("told", "prefill", "decode"),
    [
        # Counted: as it stands, experts over all GPUs of a worker.
        (
            disagg({"tp": 4, "moe_tp": 4}, {"dp": 8, "moe_ep": 8}, workers=(2, 1)),
            ((4, 1, 1, 4, 1), 2),
            ((1, 1, 8, 1, 8), 1),
        ),
        (disagg(WIDE, {"tp": 8, "moe_ep": 4}, (1, 1)), ((8, 1, 1, 1, 8), 1), ((8, 1, 1, 1, 8), 1)),
        # Flattened: tp is the GPUs of a worker.
        (disagg({"tp": 8}, WIDE, **UNLIKE), ((8, 1, 1, 8, 1), None), ((8, 1, 1, 1, 8), None)),
        (
            disagg(WIDE, WIDE, concurrency=1024, **UNLIKE),
            ((1, 1, 8, 1, 8), None),
            ((1, 1, 8, 1, 8), None),
        ),
        (
            disagg({"tp": 4}, {"tp": 32, "moe_ep": 32}, **UNLIKE),
            ((4, 1, 1, 4, 1), None),
            ((1, 1, 32, 1, 32), None),
        ),
    ],
)
def test_disagg_layout_is_recovered(tmp_path, told, prefill, decode):
    run = one(tmp_path, **told)
    for role, (layout, workers) in (("prefill", prefill), ("decode", decode)):
        assert (run.pools[role].layout, run.pools[role].workers) == (layout, workers)
    counted = prefill[1] is not None
    assert run.counted == counted
    gpus = sum(np.prod(layout[:3]) * workers for layout, workers in (prefill, decode) if workers)
    assert run.gpus == (gpus if counted else 0)


def test_dp_of_a_dense_disagg_model_is_workers(tmp_path):
    told = disagg({"tp": 2, "dp": 2}, {"tp": 4, "dp": 1}, workers=(3, 1))
    run = one(tmp_path, **LLAMA | told)
    assert (run.pools["prefill"].layout, run.pools["prefill"].workers) == ((2, 1, 1, 1, 1), 6)
    assert run.gpus == 6 * 2 + 4


# --- recipes


def test_recipes_tell_the_workers_that_rows_tell(tmp_path):
    """Rows that tell their workers, with these left out, are of recipes with as many."""
    names = ("prefill_num_workers", "decode_num_workers")
    rows = pq.read_table(paths.MEASUREMENTS).to_pylist()
    told = [row for row in rows if row["mode"] == "disagg" and all(row[name] for name in names)]
    told = [row for row in told if row["id"].startswith("dsr1")]
    left_out = written(tmp_path, [row | dict.fromkeys(names, "") for row in told])
    runs, skipped = read_measurements(left_out, ATTENTION_DP_FROM)
    assert not skipped
    found = [tuple(run.pools[role].workers for role in ("prefill", "decode")) for run in runs]
    right = [
        tuple(row[name] for name in names) == one for row, one in zip(told, found, strict=True)
    ]
    assert len(right) > 130
    assert np.mean(right) > 0.93


def test_one_run_told_twice_is_of_one_deployment():
    """Collections tell layouts in different ways; to the microsecond they have the same runs."""
    runs, _ = read_measurements(paths.MEASUREMENTS, ATTENTION_DP_FROM)
    twice = defaultdict(list)
    for run in runs:
        if run.mode == "disagg":
            twice[run.system, round(run.ttft_ms, 3), round(run.tpot_ms, 3)].append(run)
    alike = [run.pools == first.pools for first, *others in twice.values() for run in others]
    assert len(alike) > 350
    assert np.mean(alike) > 0.97


def test_runs_of_recipes_with_drafts_have_shorter_steps():
    """By measured figures: of equal deployments and loads, one with drafts and one without."""
    runs, _ = read_measurements(paths.MEASUREMENTS, ATTENTION_DP_FROM)
    found = defaultdict(lambda: ([], []))
    for run in runs:
        if run.backend == "trtllm" and run.mode == "disagg" and run.settled:
            decode = run.pools["decode"]
            key = (run.system, run.precision, run.isl, run.osl, run.concurrency, decode)
            found[key][run.draft_tokens > 1].append(run.tpot_ms)
    faster = [
        np.median(without) / np.median(drafted)
        for without, drafted in found.values()
        if without and drafted
    ]
    assert len(faster) > 10
    assert np.median(faster) == pytest.approx(1.75, abs=0.25)


def implied_slots(run):
    """Of a closed loop whose clients wait for a slot: C slots / (ttft / answer + 1), about."""
    answer_ms = run.tpot_ms * 0.9 * run.osl
    return run.concurrency / (1 + 0.8 * run.ttft_ms / answer_ms)


def test_clients_beyond_the_slots_of_a_recipe_wait():
    """By measured figures alone: where clients are more than slots, the others wait."""
    runs, _ = read_measurements(paths.MEASUREMENTS, ATTENTION_DP_FROM)
    off = []
    for run in runs:
        if run.backend == "trtllm" and run.decode_slots and run.counted:
            decode = run.pools["decode"]
            all_slots = run.decode_slots * decode.workers * decode.layout[2]
            if run.concurrency > 1.05 * all_slots:
                off.append(implied_slots(run) / all_slots)
    assert len(off) > 150
    assert np.median(off) == pytest.approx(1, abs=0.05)


TEP8 = disagg({"tp": 4, "moe_ep": 4}, {"tp": 8, "moe_ep": 4}, system="gb200", precision="fp4")


def test_runs_that_follow_each_other_settle_their_recipe(tmp_path):
    """gb200, NVFP4: 4 and 8 clients have a recipe with drafts only, 96 one without only."""

    def series(*clients, start):
        return [
            DEEPSEEK | TEP8 | {"id": f"2026_03_25_1024x1024_c{c}_tp4_{start + i}", "concurrency": c}
            for i, c in enumerate(clients)
        ]

    told = {"backend_version": "0.8.1.post2"}
    rows = series(48, 24, 4, start=419) + series(24, 96, 48, start=451) + series(24, start=470)
    runs, _ = read(tmp_path, *(row | told for row in rows))
    assert [run.draft_tokens for run in runs] == [3, 3, 3, 0, 0, 0, 3]
    assert [run.settled for run in runs] == [True] * 6 + [False]
    assert [run.decode_slots for run in runs] == [8, 8, 8, 32, 32, 32, 8]
    assert {run.pools["decode"].workers for run in runs} == {4}


def test_the_recipe_of_the_own_version_and_the_nearest_clients(tmp_path):
    def recipe(clients, version):
        run = one(tmp_path, **TEP8 | {"concurrency": clients, "backend_version": version})
        return run.draft_tokens, run.decode_slots

    assert recipe(144, "0.5.1-rc0.pre3") == (3, 32)
    assert recipe(96, "0.8.1.post2") == (0, 32)
    assert recipe(6, "0.8.1.post2") in ((0, 1), (3, 8))  # 5 and 8 are known
    assert recipe(96, "") == (0, 128)  # of the oldest, where 64 and 128 are known


def test_told_drafts_and_slots_come_before_those_of_a_recipe(tmp_path):
    told = {"draft_tokens": 1, "decode_slots": 7, "backend_version": "0.8.1.post2"}
    run = one(tmp_path, **TEP8 | told | {"concurrency": 96})
    assert (run.draft_tokens, run.decode_slots) == (1, 7)
    run = one(tmp_path, **LLAMA | told)
    assert (run.draft_tokens, run.decode_slots) == (1, 7)


def test_all_gpus_of_a_rack_told_as_one_worker(tmp_path):
    """Three prefill workers of 8 GPUs beside decode over 48."""
    told = {"backend": "sglang", "system": "gb200", "concurrency": 4096}
    run = one(tmp_path, **told, **sizes(tp=72, moe_tp=72))
    assert run.pools["prefill"].layout == (1, 1, 8, 1, 8)
    assert run.pools["decode"].layout == (1, 1, 48, 1, 48)
    assert run.gpus == 72


def test_what_no_recipe_tells(tmp_path):
    """Decode workers, slots of a rank and looks for requests, by hand."""
    numbers = calibration()

    def flattened(clients, **changes):
        return one(tmp_path, **disagg({"tp": 8}, WIDE, concurrency=clients, **UNLIKE, **changes))

    assert [decode_workers(flattened(c), numbers.assumed) for c in (12, 1024)] == [4, 1]
    assert slots(flattened(60), 4) == 15
    assert slots(flattened(1024), 1) == 128
    looks = {
        (system, clients): times_of(
            one(tmp_path, backend="sglang", system=system, concurrency=clients), numbers
        ).poll_steps
        for system in ("h200_sxm", "b200_sxm")
        for clients in (8, 16)
    }
    assert looks == {
        ("h200_sxm", 8): 10,
        ("h200_sxm", 16): 10,
        ("b200_sxm", 8): 10,
        ("b200_sxm", 16): 30,
    }
    assert times_of(one(tmp_path, backend="sglang", isl=2000), numbers).poll_steps == 1
    early, late = (flattened(8, backend_version=version) for version in ("0.7.0", "0.8.1"))
    assert times_of(early, numbers).hand_over_ms == numbers.assumed.early_hand_over_ms
    assert times_of(late, numbers) == numbers.engines["trtllm"]


def test_long_answers_accept_more_drafts(tmp_path):
    """Three drafts of a step: 2.533 tokens, 2.952 where answers have 8,192 tokens."""
    assumed = calibration().assumed

    def tokens_per_step(osl):
        run = replace(one(tmp_path, osl=osl), draft_tokens=3)
        return expected_tokens_per_step(3, accept_rates(run, assumed))

    assert [tokens_per_step(osl) for osl in (1024, 8192)] == pytest.approx([2.533, 2.952])


@pytest.mark.parametrize(
    ("system", "backend", "experts", "found"),
    [
        ("gb300", "trtllm", "nvfp4", True),
        ("gb300", "trtllm", "fp8_block", False),
        ("b200_sxm", "trtllm", "nvfp4", False),
        ("gb200", "sglang", "fp8_block", True),
        ("h200_sxm", "sglang", "fp8_block", False),
    ],
)
def test_who_exchanges_tokens(tmp_path, system, backend, experts, found):
    assert exchanges(one(tmp_path, system=system, backend=backend), experts) is found


@pytest.mark.parametrize(
    ("changes", "clients"),
    [
        ({"concurrency": "", "batch_size": 4}, 4 * 8),  # of each of 8 attention ranks
        ({"concurrency": 64, "batch_size": 2}, 64),  # a dashboard's
        ({"concurrency": 64, "batch_size": 2, "isl": 2000, "osl": 256}, 2 * 8),  # four replicas
        ({"concurrency": 8, "batch_size": 2, "isl": 2000, "osl": 256}, 8),
    ],
)
def test_concurrency_is_that_of_one_deployment(tmp_path, changes, clients):
    run = one(tmp_path, **sizes(dp=8, moe_ep=8) | changes)
    assert run.concurrency == clients


# --- files


def test_csv_and_parquet_are_read_alike(tmp_path):
    rows = [
        DEEPSEEK | sizes(tp=64, moe_tp=8, moe_ep=8),
        DEEPSEEK | disagg({"tp": 4}, WIDE, backend_version="1.0rc3"),
        DEEPSEEK | {"model_path": "no/such", "id": ""},
    ]
    from_csv, from_parquet = (
        read_measurements(written(tmp_path, rows, suffix), ATTENTION_DP_FROM)
        for suffix in (".csv", ".parquet")
    )
    assert from_csv == from_parquet
    assert len(from_csv[0]) == 2


def test_near_duplicates_are_held_out_together(tmp_path):
    """DeepSeek-V3 and R1 are one architecture; load and version make no other family."""
    others = (
        {"model_path": "deepseek-ai/DeepSeek-V3"},
        {"concurrency": 4, "isl": 8192},
        {"backend_version": "0.9", "silicon_tpot_ms": 30.0},
    )
    (first, *alike), _ = read(tmp_path, DEEPSEEK, *(DEEPSEEK | other for other in others))
    assert {run.family for run in alike} == {first.family}
    apart = ({"system": "b200_sxm"}, {"precision": "fp4"}, {"backend": "sglang"}, sizes(tp=16))
    different, _ = read(tmp_path, DEEPSEEK, *(DEEPSEEK | other for other in apart))
    assert len({run.family for run in different}) == 5


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_path": "Qwen/Qwen3-33B"}, "Qwen/Qwen3-33B.*Qwen/Qwen3-32B"),
        ({"model_path": ""}, "model_path is not given"),
        ({"system": "h200"}, "unknown system 'h200' .did you mean 'h200_sxm'"),
        ({"backend": "tgi"}, "backend 'tgi' is not one of trtllm, sglang, vllm"),
        ({"mode": "both"}, "mode 'both' is neither agg nor disagg"),
        ({"silicon_ttft_ms": ""}, "silicon_ttft_ms is None, must be more than 0"),
        ({"silicon_tpot_ms": -1}, "silicon_tpot_ms is -1.0, must be more than 0"),
        ({"osl": "inf"}, "osl is None, must be more than 0"),
        ({"concurrency": ""}, "neither concurrency nor a batch size is given"),
        (sizes(tp=3, moe_ep=8), "tp 3 and dp 1 do not go with moe_tp 1 and moe_ep 8"),
    ],
)
def test_a_row_that_cannot_be_read_is_skipped_with_its_reason(tmp_path, changes, reason):
    runs, [skipped] = read(tmp_path, DEEPSEEK | changes, DEEPSEEK | sizes(tp=8))
    assert [run.row for run in runs] == [1]
    assert skipped.row == 0
    assert re.search(reason, skipped.reason)


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, capsys):
    file = tmp_path / "runs.csv"
    for content, sentence in (
        (None, "cannot be read: .*No such file"),
        ("", "is not a table: Empty CSV"),
        ("id,backend\na,b,c\n", "is not a table: CSV parse error"),
        ("backend,model,system\n", "column 'model_path' is missing"),
        ("backend,model_path,system,mode,isl,osl,silicon_ttft,silicon_tpot_ms\n", "silicon_ttft"),
        (",".join(DEEPSEEK) + "\n" + ",".join(["x"] * len(DEEPSEEK)), "conversion error to double"),
    ):
        if content is not None:
            file.write_text(content)
        assert cli.main(["accuracy", "--measurements", str(file)]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert re.fullmatch(f"error: {re.escape(str(file))}: .*{sentence}.*\n", printed.err)
    other = tmp_path / "runs.parquet"
    other.write_bytes(b"no table")
    assert cli.main(["accuracy", "--measurements", str(other)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {other}: is not a table")


@pytest.mark.skipif(not SHARED.exists(), reason="the shared measurements are not at hand")
def test_committed_measurements_are_the_shared_ones():
    numbers = calibration().assumed.attention_dp_from
    committed = read_measurements(paths.MEASUREMENTS, numbers)
    assert committed == read_measurements(SHARED, numbers)


def test_committed_held_out_predictions_are_of_the_committed_measurements():
    table = pq.read_table(paths.HELD_OUT)
    measured = pq.read_table(paths.MEASUREMENTS, columns=["id", "silicon_tpot_ms"])
    runs, _ = read_measurements(paths.MEASUREMENTS, calibration().assumed.attention_dp_from)
    assert table["id"].to_pylist() == [run.id for run in runs]
    assert table["tpot_ms"].to_numpy() == pytest.approx(
        measured["silicon_tpot_ms"].to_numpy()[[run.row for run in runs]]
    )
    folds = defaultdict(set)
    for run, fold in zip(runs, table["fold"].to_pylist(), strict=True):
        folds[run.family].add(fold)
    assert len(folds) > 100
    assert all(len(of_family) == 1 for of_family in folds.values())


def test_committed_held_out_predictions_are_held_out():
    """A run's two predictions are by calibrations without different runs, so they differ."""
    table = pq.read_table(paths.HELD_OUT)
    for figure in ("ttft", "tpot"):
        family, model = (table[f"{by}_{figure}_ms"].to_numpy() for by in ("family", "model"))
        assert (family != model).mean() > 0.5


# --- scores


def test_errors_by_hand():
    found = errors(np.array([110.0, 90, 200, np.nan]), np.array([100.0, 100, 100, 100]))
    assert (found.count, found.median, found.mean, found.bias) == pytest.approx((3, 0.1, 0.4, 0.1))
    assert errors(np.array([np.nan]), np.array([1.0])).count == 0


def test_interval_coverage_by_hand():
    low, high = np.array([1.0, 1, 1, np.nan]), np.array([2.0, 2, 2, np.nan])
    assert interval_coverage(low, high, np.array([1.0, 1.5, 3, 1])) == pytest.approx(2 / 3)
    assert np.isnan(interval_coverage(low[3:], high[3:], np.ones(1)))


def test_decisions_by_hand():
    configurations = [
        # workload, layout, keeps, predicted rate, measured tpot, measured rate
        ("broken", "a", True, 90, 10, 100),
        ("broken", "b", True, 150, 30, 200),  # taken
        ("slower", "a", True, 50, 10, 100),
        ("slower", "b", True, 60, 15, 80),  # taken: gives 20 % away
        ("slower", "c", False, 300, 25, 300),
        ("right", "a", True, 10, 20, 10),  # taken: at the target is within it
        ("right", "b", False, 99, 21, 99),
        ("none kept", "a", False, 10, 10, 10),
        ("none kept", "b", False, 10, 30, 10),
        ("all keep", "a", True, 10, 10, 10),
        ("all keep", "b", True, 10, 10, 10),
        ("none keeps", "a", True, 10, 30, 10),
        ("none keeps", "b", True, 10, 30, 10),
        ("one", "a", True, 10, 10, 10),
        ("one rate unknown", "a", True, 10, 10, 10),
        ("one rate unknown", "b", True, 10, 30, np.nan),
    ]
    workload, layout, *numbers = zip(*configurations, strict=True)
    found = decisions(workload, layout, *map(np.array, numbers), target_ms=20)
    assert (found.workloads, found.answered) == (4, 3)
    assert found.violations == pytest.approx(1 / 3)
    assert found.same_layout == pytest.approx(1 / 3)
    assert found.given_away == pytest.approx(0.2 / 3)


def test_buckets_of_clients():
    told = {1: "1-4", 4: "1-4", 5: "5-16", 16: "5-16", 17: "17-64", 256: "65-256", 257: "257-1024"}
    assert {clients: concurrency_bucket(clients) for clients in told} == told


def test_rates_are_those_of_the_loop(tmp_path):
    """10 clients, each an answer of 91 tokens in 100 + 90 * 10 ms, on 2 GPUs: 455 tokens/s/gpu."""
    times = {"silicon_ttft_ms": 100, "silicon_tpot_ms": 10, "concurrency": 10, "tp_size": 2}
    runs, skipped = read(
        tmp_path,
        LLAMA | times | {"isl": 500, "osl": 91},
        LLAMA | times | {"osl": 1024},  # a dashboard's: 0.9 of the nominal at the mean
        LLAMA | {"model_path": "no/such"},
    )
    predictions = [Prediction(100, 20, 1), Prediction(reason="too large")]
    nothing = Residuals(*(np.empty(0) for _ in fields(Residuals)))
    scored = report.scored_runs(runs, skipped, predictions, nothing)
    osl = 1024 * 0.9
    by_hand = 10 * osl / 2 / (100 + 10 * (osl - 1)) * 1e3
    assert scored.rate("measured").tolist() == pytest.approx([455, by_hand])
    found = report.score(scored)
    assert (found["rows"], found["coverage"]) == (3, pytest.approx(1 / 3))
    assert list(found["reasons"]) == ["too large", skipped[0].reason]
    assert found["overall"]["tpot"]["mean"] == pytest.approx(1)  # 20 for 10
    assert found["overall"]["ttft"]["mean"] == 0
    assert found["overall"]["tokens_per_s_per_gpu"]["bias"] == pytest.approx(1000 / 1900 - 1)


# --- the calibration


def test_calibration_has_fewer_than_sixty_numbers_each_with_its_unit():
    assert set(calibration().engines) == {"trtllm", "sglang", "vllm"}
    assert len(calibration().names()) < 60
    for kind in (EngineTimes, Assumed):
        told = re.findall(r"^    (\w+) \(([^)]+)\) : \S", kind.__doc__, re.MULTILINE)
        assert [name for name, _ in told] == [field.name for field in fields(kind)]
        for name, unit in told:
            *_, ending = name.split("_")
            if ending in ("ms", "us"):
                assert unit.split("/")[0] == ending


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda spec: spec["engines"]["vllm"].pop("poll_steps"), "engines.vllm: poll_steps missi"),
        (lambda spec: spec["engines"]["vllm"].update(poll_step=1), "'poll_step'.*poll_steps"),
        (lambda spec: spec["assumed"].update(accept_rate="high"), "accept_rate: got 'high', must"),
        (lambda spec: spec["assumed"].update(accept_rate=True), "accept_rate: got True, must"),
        (lambda spec: spec.pop("assumed"), "must hold the mappings engines and assumed"),
        (lambda spec: spec["engines"].update(vllm=1), "engines.vllm: got 1, must be a mapping"),
    ],
)
def test_mistakes_in_a_calibration_file_are_one_sentence(tmp_path, change, sentence):
    spec = yaml.safe_load(paths.CALIBRATION.read_text())
    change(spec)
    file = tmp_path / "calibration.yaml"
    file.write_text(yaml.safe_dump(spec))
    with pytest.raises(InputError, match=f"^{re.escape(str(file))}: .*{sentence}"):
        calibration(file)


def test_calibration_file_that_is_none(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read"):
        calibration(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("engines: [")
    with pytest.raises(InputError, match=r"broken\.yaml: is not valid YAML"):
        calibration(tmp_path / "broken.yaml")


VLLM = {
    "decode_kernel_scale": 1.1,
    "prefill_kernel_scale": 1.1,
    "decode_step_ms": 3.0,
    "per_request_us": 30.0,
    "per_prompt_ms": 5.0,
    "request_ms": 20.0,
    "per_prompt_token_us": 5.0,
}


def test_fit_finds_the_calibration_that_made_the_runs(tmp_path):
    """Runs are what another calibration predicts; one of them failed and took ten times as long."""
    start = calibration().with_values({f"vllm.{name}": value for name, value in VLLM.items()})
    truth = start.with_values({"vllm.decode_step_ms": 4.5, "vllm.request_ms": 32.0})
    loads = [(512, 32, 1), (512, 64, 4), (2000, 48, 8), (300, 64, 16), (4000, 32, 2), (100, 96, 32)]
    rows = [
        LLAMA | {"isl": isl, "osl": osl, "concurrency": clients, "tp_size": tp}
        for isl, osl, clients in loads
        for tp in (1, 2)
    ]
    runs, _ = read(tmp_path, *rows)
    predictor = Predictor()
    made = [
        replace(run, ttft_ms=one.ttft_ms, tpot_ms=one.tpot_ms)
        for run, one in zip(runs, predictor.predict(runs, truth), strict=True)
    ]
    made[3] = replace(made[3], ttft_ms=10 * made[3].ttft_ms, tpot_ms=10 * made[3].tpot_ms)

    def predict(numbers):
        return [predictor.simulate(made, one) for one in numbers]

    lines = []
    found = fitted("vllm", start, made, predict, lines.append)
    for name, value in (("vllm.decode_step_ms", 4.5), ("vllm.request_ms", 32.0)):
        before, after = (abs(np.log(one.value(name) / value)) for one in (start, found))
        assert after < 0.5 * before
    costs = [float(line.rpartition(" ")[2]) for line in lines]
    assert costs[0] > costs[1] >= costs[2]
    # No other backend's numbers, and none of disagg, which no run was.
    untouched = [n for n in found.names() if n not in fitted_names("vllm", made)]
    assert {"vllm.hand_over_ms", "sglang.request_ms", "assumed.accept_rate"} <= set(untouched)
    assert all(found.value(name) == start.value(name) for name in untouched)


def linear_of(residual, slope, start=0.0):
    names = tuple(f"vllm.{name}" for name in ("decode_step_ms", "request_ms"))[: slope.shape[-1]]
    log = np.zeros(slope.shape[-1])
    return Linear(names, log, log + start, residual, slope)


def least_squares(residual, slope, start=0.0):
    """By numpy: the rows of the runs in units of what they miss, and a row of each prior."""
    count = slope.shape[-1]
    rows = np.r_[(slope / UNITS[:, None]).reshape(-1, count), np.eye(count) / OTHER_SPREAD]
    right = np.r_[-(residual / UNITS).ravel(), np.full(count, start) / OTHER_SPREAD]
    return np.linalg.lstsq(rows, right, rcond=None)[0]


def test_linear_fit_of_small_residuals_is_least_squares():
    """Where all residuals are far below `CAUCHY` units, the robust fit is the plain one."""
    random = np.random.default_rng(3)
    slope = random.uniform(0, 1, (12, 2, 2))
    residual = slope @ np.array([0.03, -0.02]) + random.normal(0, 1e-3, (12, 2))
    keep = np.arange(12) < 9
    found = linear_of(residual, slope, start=0.01).solved(keep)
    assert found == pytest.approx(least_squares(residual[keep], slope[keep], 0.01), abs=1e-5)
    unknown = residual.copy()
    unknown[~keep] = np.nan
    everything = np.ones(12, bool)
    assert linear_of(unknown, slope, start=0.01).solved(everything) == pytest.approx(found)


def test_linear_fit_hardly_follows_a_contaminated_run():
    random = np.random.default_rng(4)
    slope = random.uniform(0.5, 1, (30, 2, 1))
    residual = slope @ np.array([0.05]) + random.normal(0, 0.01, (30, 2))
    residual[0] = 25 * CAUCHY * UNITS
    everything = np.ones(30, bool)
    found = linear_of(residual, slope).solved(everything)
    plain, without = least_squares(residual, slope), least_squares(residual[1:], slope[1:])
    assert abs(found - without) < 0.05 * abs(plain - without)


def test_a_fold_is_predicted_by_numbers_that_did_not_see_it(tmp_path):
    """At the optimum of all runs (residuals that cancel), each fold moves the number its way."""
    systems = ("h100_sxm", "h200_sxm", "b200_sxm", "b300_sxm", "gb200")
    runs, _ = read(tmp_path, *(LLAMA | {"system": system} for system in systems))
    runs = [replace(run, architecture=run.system) for run in runs]
    off = np.array([0.05, -0.05, 0.03, -0.03, 0.0])
    residual = np.stack([off, np.full(5, np.nan)], axis=1)
    linear = linear_of(residual, np.ones((5, 2, 1)))
    asked = []

    def predict(questions):
        asked.append(questions)
        return [[Prediction(1.0, 1.0)] * len(part) for _, part in questions]

    now = calibration()
    table = held_out(runs, {"vllm": (runs, linear)}, now, predict)
    assert table["model_tpot_ms"].to_pylist() == [1.0] * 5
    by_model = asked[list(SCHEMES).index("model")]
    assert len(by_model) == 5
    for numbers, [run] in by_model:
        others = np.array([other is not run for other in runs])
        expected = least_squares(residual[others][:, :1] * [1, 0], np.ones((4, 2, 1)) * [[1], [0]])
        moved = np.log(numbers.value("vllm.decode_step_ms"))
        # A file holds four digits; residuals of half a unit count a little less.
        assert moved == pytest.approx(float(expected[0]), rel=0.15, abs=5e-4)
    for numbers, part in asked[list(SCHEMES).index("family")]:
        assert len({SCHEMES["family"](run) for run in part}) == 1
        assert numbers.engines["trtllm"] == now.engines["trtllm"]


# --- the command


def test_command_scores_a_file(tmp_path, capsys):
    table = pq.read_table(paths.MEASUREMENTS)
    small = [
        row
        for row in table.to_pylist()
        if row["backend"] == "vllm" and row["model_path"] == "Qwen/Qwen3-32B"
    ][:9]
    unknown = small[0] | {"model_path": "no/such-model"}
    file = tmp_path / "mine.csv"
    pyarrow.csv.write_csv(pa.Table.from_pylist([*small, unknown], table.schema), file)
    assert cli.main(["accuracy", "--measurements", str(file), "--json", "--cores", "1"]) == 0
    [(name, found)] = json.loads(capsys.readouterr().out).items()
    assert name == str(file)
    assert (found["rows"], found["coverage"]) == (10, 0.9)
    [(reason, count)] = found["reasons"].items()
    assert "no/such-model" in reason
    assert count == 1
    for figure in ("tpot", "ttft", "tokens_per_s_per_gpu"):
        assert found["overall"][figure]["count"] == 9
        assert 0 <= found["overall"][figure]["median"] < 2
    assert 0 <= found["overall"]["tpot"]["interval"] <= 1
    assert cli.main(["accuracy", "--measurements", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "10 runs, 90.0% of them predicted" in printed
    assert f"- not predicted, 1: {reason}" in printed


def test_command_on_no_rows_says_so(tmp_path, capsys):
    file = tmp_path / "empty.csv"
    file.write_text(",".join(DEEPSEEK) + "\n")
    assert cli.main(["accuracy", "--measurements", str(file), "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out).values()
    assert (found["rows"], found["overall"]["tpot"]["median"]) == (0, None)


def test_command_tells_the_held_out_errors(capsys):
    """The printed medians are those of the table, by numpy."""
    assert cli.main(["accuracy", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    table = pq.read_table(paths.HELD_OUT)
    for scheme in ("family", "model"):
        found = printed[f"Without their {scheme}"]
        assert found["rows"] == table.num_rows
        for figure in ("ttft", "tpot"):
            measured = table[f"{figure}_ms"].to_numpy()
            predicted = table[f"{scheme}_{figure}_ms"].to_numpy()
            by_numpy = np.nanmedian(np.abs(predicted / measured - 1))
            assert found["overall"][figure]["median"] == pytest.approx(by_numpy, rel=1e-4)
    assert cli.main(["accuracy"]) == 0
    assert "Without their family" in capsys.readouterr().out


def test_command_refuses(capsys):
    for arguments in (["--cores", "0"], ["--json", "--markdown"], ["--measurement", "x"]):
        with pytest.raises(SystemExit) as refused:
            cli.main(["accuracy", *arguments])
        assert refused.value.code == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_page_explains_every_number():
    text = PAGE.read_text()
    for kind in (EngineTimes, Assumed):
        assert [field.name for field in fields(kind) if f"`{field.name}`" not in text] == []
    count, engines, assumed = (
        len(calibration().names()),
        len(fields(EngineTimes)),
        len(fields(Assumed)),
    )
    assert (
        f"holds {count} numbers: {engines} for each of three engines, and {assumed} assum" in text
    )


def test_page_has_the_tables_that_the_command_prints(capsys):
    assert cli.main(["accuracy", "--markdown"]) == 0
    printed = capsys.readouterr().out
    _, _, rest = PAGE.read_text().partition("<!-- paretoserve accuracy --markdown -->\n")
    assert rest.partition("<!-- end -->")[0].strip() == printed.strip(), "run make accuracy"
