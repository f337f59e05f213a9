"""`paretoserve explain`: the arithmetic of a row, against the run's Parquet and the raw tables."""

import json
import math
import shutil
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from paretoserve import paths
from paretoserve.cli import main
from paretoserve.records import write_table

LOAD = {"isl": 3000, "osl": 512, "ttft": 2000, "tpot": 60}
EXPERIMENTS = {
    "disagg": {"serving_mode": "disagg", "model_name": "QWEN3_32B", "total_gpus": 32}
    | {"system_name": "h200_sxm", **LOAD, "tpot": 10},
    "split": {"serving_mode": "agg", "model_name": "QWEN3_30B_A3B", "total_gpus": 7}
    | {"system_name": "h100_sxm", "backend_name": "vllm", **LOAD, "isl": 20000, "ttft": 9000},
    "wide": {"serving_mode": "disagg", "model_name": "DEEPSEEK_V3", "total_gpus": 72}
    | {"system_name": "gb200", "enable_wide_ep": True, "decode_system_name": "b200_sxm", **LOAD},
    "block": {"serving_mode": "agg", "model_name": "DEEPSEEK_V3", "total_gpus": 16}
    | {"system_name": "b200_sxm", "backend_name": "vllm", **LOAD},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("explain")
    (folder / "exps.yaml").write_text(yaml.safe_dump(EXPERIMENTS, sort_keys=False))
    arguments = ["--yaml_path", str(folder / "exps.yaml"), "--save_dir", str(folder)]
    assert main(["cli", "exp", *arguments]) == 0
    return next(folder.glob("QWEN3*"))


def told(capsys, *arguments: object) -> dict:
    capsys.readouterr()
    assert main(["explain", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def rows(run: Path, table: str = "best") -> list[dict]:
    return pq.read_table(run / f"{table}.parquet").to_pylist()


def evaluated(explanation: dict) -> dict[str, float]:
    """The arithmetic done again, from the operators on, by Python's own reading of the formulas."""
    worker = next(iter(explanation["workers"].values()))
    known = {
        "isl": explanation["question"]["isl"],
        "osl": explanation["question"]["osl"],
        "ctx_tokens": worker["ctx_tokens"],
        "batch_size": worker["batch_size"],
        **{name: getattr(math, name) for name in ("ceil", "floor")},
        "min": min,
        "max": max,
    }
    for of_worker in explanation["workers"].values():
        for step, content in of_worker["steps"].items():
            total = sum(one["times"] * one["ms_each"] for one in content["operators"])
            known[f"{step}_step_ms"] = total
    for term in explanation["arithmetic"]:
        formula, comma, where = term["formula"].partition(", u = ")
        if comma:
            known["u"] = eval(where, {}, known)
        if term["name"] in ("wait", "transfer_ms"):
            known[term["name"]] = term["value"]
        elif term["name"] not in known:
            known[term["name"]] = eval(formula, {}, known)
    return known


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_numbers_add_up_to_the_row_of_the_run(run, name, capsys):
    for row in (row for row in rows(run) if row["experiment"] == name):
        explanation = told(capsys, run, f"{name}:{row['rank']}")
        assert explanation["differences"] == {}
        assert explanation["deployment"] == {k: v for k, v in row.items() if v is not None}
        value = evaluated(explanation)
        for term in explanation["arithmetic"]:
            assert value[term["name"]] == pytest.approx(term["value"], rel=1e-9), term
        for column in ("ttft_ms", "tpot_ms", "tokens_per_s_per_gpu"):
            assert value[column] == pytest.approx(row[column], rel=1e-9)


def test_the_operators_are_those_of_the_run(run, capsys):
    row = next(row for row in rows(run) if row["experiment"] == "wide" and row["rank"] == 1)
    explanation = told(capsys, run, "wide")
    tables = [pq.read_table(file) for file in run.parent.glob("work/*/operators.parquet")]
    for role in ("prefill", "decode"):
        mine = [
            one
            for table in tables
            for one in table.filter(
                (pc.field("work_id") == row[f"{role}_work_id"])
                & (pc.field("candidate_id") == row[f"{role}_candidate_id"])
            ).to_pylist()
        ]
        summed: dict[str, float] = {}
        for operator in explanation["workers"][role]["steps"][role]["operators"]:
            name = operator["operator"]
            summed[name] = summed.get(name, 0.0) + operator["ms"]
            assert operator["look_ups"], f"{name} was looked up nowhere"
        assert summed.keys() == {one["operator"] for one in mine}
        for one in mine:
            assert summed[one["operator"]] == pytest.approx(one["ms"], rel=1e-6)


def look_ups(explanation: dict, kernel: str) -> list[dict]:
    return [
        look_up
        for worker in explanation["workers"].values()
        for step in worker["steps"].values()
        for operator in step["operators"]
        for look_up in operator["look_ups"]
        if look_up["kernel"] == kernel
    ]


def test_measured_gemm_is_the_row_of_the_raw_table(run, capsys):
    measured = 0
    for look_up in look_ups(told(capsys, run / "disagg"), "gemm"):
        [table], [point] = look_up["tables"], look_up["points"]
        raw = pq.read_table(paths.ROOT / table["file"])
        here = raw.filter(
            (pc.field("dtype") == look_up["of"]["dtype"])
            & (pc.field("m") == point["at"]["m"])
            & (pc.field("n") == point["at"]["n"])
            & (pc.field("k") == point["at"]["k"])
        )
        assert (point["provenance"] == "measured") == (here.num_rows > 0)
        if here.num_rows:
            fastest = min(here["latency_ms"].to_pylist())
            assert point["ms"] == pytest.approx(fastest, rel=1e-6)
            assert min(one["latency_ms"] for one in point["measured"]) == fastest
            measured += 1
    assert measured >= 2


def test_measured_points_enclose_the_query(run, capsys):
    """Of a GEMM between two row counts: just the neighbours of its shape's curve."""
    enclosed = 0
    for look_up in look_ups(told(capsys, run, "disagg:1"), "gemm"):
        [point] = look_up["points"]
        shapes = {(one["n"], one["k"]) for one in point["measured"]}
        at = point["at"]
        if shapes != {(at["n"], at["k"])} or len(point["measured"]) != 2:
            continue
        raw = pq.read_table(paths.ROOT / look_up["tables"][0]["file"]).filter(
            (pc.field("dtype") == look_up["of"]["dtype"])
            & (pc.field("n") == at["n"])
            & (pc.field("k") == at["k"])
        )
        counts = sorted(set(raw["m"].to_pylist()))
        around = (
            max(m for m in counts if m < at["m"]),
            min(m for m in counts if m > at["m"]),
        )
        assert tuple(sorted(one["m"] for one in point["measured"])) == around
        enclosed += 1
    assert enclosed


def test_frontier_rows_are_explained_too(run, capsys):
    row = next(row for row in rows(run, "frontier") if row["rank"] == 3)
    explanation = told(capsys, run, f"{row['experiment']}:3", "--frontier")
    assert explanation["differences"] == {}
    assert explanation["deployment"]["tpot_ms"] == row["tpot_ms"]


def test_text_names_every_table_and_fits_80_columns(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["explain", str(run), "wide:1"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "\033" not in text
    row = next(row for row in rows(run) if row["experiment"] == "wide" and row["rank"] == 1)
    assert f"{row['tokens_per_s_per_gpu']:.2f} tokens/s/gpu" in text
    files = [line.split("] ")[1] for line in text.splitlines() if line.startswith("  [")]
    assert files
    assert all((paths.ROOT / file).is_file() for file in files)


def test_what_no_longer_comes_out_is_said(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    table = pq.read_table(run / "best.parquet")
    column = table.schema.get_field_index("ttft_ms")
    later = table.set_column(column, "ttft_ms", pc.add(table["ttft_ms"], 1.0))
    write_table(later, tmp_path / "run" / "best.parquet", {"paretoserve.schema": "best"})
    explanation = told(capsys, tmp_path / "run", "disagg:1")
    assert set(explanation["differences"]) == {"ttft_ms"}
    assert main(["explain", str(tmp_path / "run"), "disagg:1"]) == 0
    assert "Not as in the run" in capsys.readouterr().out


def test_a_large_sweeps_experiment_is_found_in_the_file_that_asked(run, tmp_path, capsys):
    """Only the winners of such a sweep have a folder."""
    shutil.copytree(run.parent, tmp_path / "results")
    copy = tmp_path / "results" / run.name
    shutil.rmtree(copy / "split")
    assert told(capsys, copy, "split") == told(capsys, run, "split")
    shutil.rmtree(tmp_path / "results" / "logs")
    assert main(["explain", str(copy), "split"]) == 2
    assert "split/config.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "row", "sentence"),
    [
        ("", "disagg:9", "disagg has no rank 9; it has 1 to 3"),
        ("", "disag", "no experiment 'disag' (did you mean 'disagg'?)"),
        ("", "1", "which experiment?"),
        ("disagg", "wide:1", "is the folder of disagg, not of wide"),
        ("..", "disagg:1", "is no folder of a run"),
        ("", "disagg:x", "got 'disagg:x', must be EXPERIMENT:RANK"),
    ],
)
def test_a_row_that_is_not_there_is_one_sentence(run, place, row, sentence, capsys):
    capsys.readouterr()
    try:
        code = main(["explain", str(run / place), row])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1
