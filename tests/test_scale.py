"""Sweeps through the workflow: the plan's counts, chunks that change nothing, what runs again.

Everything runs by `snakemake` and `paretoserve` in a copy of the copy.
"""

import json
import re
import sys
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from tests.test_workflow import Repository, content, copied, jobs

from paretoserve import paths
from paretoserve.perfdb import manifest

# 48 experiments on two systems and an engine without tables of one of them: more than one chunk.
SWEEP = {
    "experiment": {"total_gpus": 16},
    "axes": {
        "model_name": ["QWEN3_8B", "LLAMA3.1_8B"],
        "system_name": ["h200_sxm", "b60"],
        "backend_name": ["trtllm", "vllm"],
        "workload": [[1000, 200]],
        "sla": [[500, 10], [500, 30], [2000, 60]],
        "serving_mode": ["agg", "disagg"],
    },
}
REFUSED = 12  # trtllm on b60
TABLES = ("frontier", "best", "breakdown", "status", "comparison")


def ask(copy: Repository, name: str, **axes) -> str:
    """Write a sweep file with some axes changed; return the name of the file."""
    asked = {**SWEEP, "axes": {**SWEEP["axes"], **axes}}
    (copy.root / f"{name}.yaml").write_text(yaml.safe_dump(asked, sort_keys=False))
    return f"{name}.yaml"


def told(copy: Repository, file: str, *flags: str) -> dict:
    """What `paretoserve plan --json` says."""
    command = ["-m", "paretoserve", "plan", file, "--json", "--cores", "2", *flags]
    done = copy.run([sys.executable, *command])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run_folder(results: Path) -> Path:
    [plan] = results.glob("*/plan.json")
    return plan.parent


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Repository:
    return copied(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def swept(copy):
    """The sweep, answered into `swept`; what was planned and what Snakemake said it would run."""
    file = ask(copy, "sweep")
    planned = told(copy, file, "--results", "swept", "--generate", "none")
    options = ("--config", f"experiments={file}", "results=swept", "generate=none")
    expected = copy.planned(*options)
    done = copy.snakemake(*options)
    assert done.returncode == 0, done.stderr
    return planned, expected, done


def test_plan_counts_what_snakemake_runs(copy, swept):
    planned, expected, done = swept
    assert planned["jobs"] == expected == jobs(done.stdout + done.stderr)
    groups = list((copy.root / "swept" / "work").iterdir())
    assert planned["groups"] == len(groups) == 6
    rows = [pq.read_metadata(group / "candidates.parquet").num_rows for group in groups]
    assert planned["candidates"] == sum(rows)
    works = {
        work
        for group in groups
        for work in pq.read_table(group / "candidates.parquet")["work_id"].unique().to_pylist()
    }
    assert planned["works"] == len(works)
    assert planned["chunks"] == len(list((copy.root / "swept" / "answers").iterdir()))
    assert planned["seconds"] > 0


def test_unanswerable_experiments_are_rows(copy, swept):
    planned, _, done = swept
    run = run_folder(copy.root / "swept")
    status = pq.read_table(run / "status.parquet").to_pylist()
    assert planned["experiments"] == len(status) == 48
    refused = [row for row in status if row["status"] == "unanswerable"]
    assert len(refused) == sum(one["experiments"] for one in planned["unanswerable"]) == REFUSED
    assert {row["reason"] for row in refused} == {o["reason"] for o in planned["unanswerable"]}
    assert all(".b60.trtllm." in row["experiment"] for row in refused)
    assert [row["experiment"] for row in status[-REFUSED:]] == [r["experiment"] for r in refused]
    assert "unanswerable" in done.stdout or "No answer" in done.stdout
    answered = {row["experiment"] for row in status if row["status"] == "ok"}
    best = pq.read_table(run / "best.parquet")
    assert answered == set(best["experiment"].unique().to_pylist())


def test_second_run_does_nothing_and_plan_knows(copy, swept):
    options = ("--config", "experiments=sweep.yaml", "results=swept", "generate=none")
    assert copy.planned(*options) == {}
    flags = ("--results", "swept", "--generate", "none", "--diff")
    again = told(copy, "sweep.yaml", *flags)
    assert again["diff"]["jobs"] == {}
    assert any(stage["measured"] for stage in again["stages"].values())


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        pytest.param(
            {"sla": [[500, 10], [1000, 20], [500, 30], [2000, 60]]}, {"pareto": 6}, id="sla"
        ),
        pytest.param(
            {"model_name": ["QWEN3_8B", "QWEN3_32B", "LLAMA3.1_8B"]},
            {"enumerate": 3, "estimate": 3, "pareto": 3},
            id="model",
        ),
        pytest.param(
            {"system_name": ["h100_sxm", "h200_sxm", "b60"]},
            {"enumerate": 4, "estimate": 4, "pareto": 4},
            id="system",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"workload": ["chat", [1000, 200]]},
            {"enumerate": 6, "estimate": 6, "pareto": 6},
            id="workload",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_added_value_runs_only_what_is_new(copy, swept, axes, expected):
    """The parts of the others stay as they were, whatever the place of the value in its list."""
    file = ask(copy, "more", **axes)
    of_run = {"gather": 1, "compare": 1, "report": 1, "all": 1}
    options = ("--config", f"experiments={file}", "results=swept", "generate=none")
    assert copy.planned(*options) == {**expected, **of_run}
    changes = told(copy, file, "--results", "swept", "--generate", "none", "--diff")["diff"]
    assert changes["jobs"] == {**expected, **of_run}
    assert changes["causes"]


@pytest.mark.slow
def test_another_table_runs_what_it_can_reach(copy, swept):
    """4 of 6 groups: on h200_sxm with trtllm, and with vllm, for which it may stand in."""
    options = ("--config", "experiments=sweep.yaml", "results=swept", "generate=none")
    [version] = {
        group.name.split(".trtllm.")[1].rsplit(".", 1)[0]
        for group in (copy.root / "swept" / "work").glob("*.h200_sxm.trtllm.*")
    }
    file = copy.root / "perf_db" / "manifest.json"
    before = file.read_text()
    sha256 = manifest.load().table_entry("h200_sxm", "trtllm", version, "gemm")["sha256"]
    file.write_text(before.replace(sha256, sha256[::-1]))
    try:
        found = copy.planned(*options)
        flags = ("--results", "swept", "--generate", "none", "--diff")
        causes = told(copy, "sweep.yaml", *flags)["diff"]["causes"]
    finally:
        file.write_text(before)
    assert found == {
        **{"enumerate": 4, "estimate": 4, "pareto": 4},
        **{"gather": 1, "compare": 1, "report": 1, "all": 1},
    }
    assert "measured tables changed" in causes


@pytest.mark.parametrize(
    "size", [7, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 1000))]
)
def test_chunk_size_changes_no_result(copy, swept, size):
    results = f"chunks_of_{size}"
    options = ("--config", "experiments=sweep.yaml", f"results={results}", "generate=none")
    done = copy.snakemake(*options, f"chunk_size={size}")
    assert done.returncode == 0, done.stderr
    chunks = list((copy.root / results / "answers").iterdir())
    assert len(chunks) == {1: 36, 7: 6, 1000: 1}[size]
    mine, theirs = (content(run_folder(copy.root / folder)) for folder in (results, "swept"))
    del mine["plan.json"], theirs["plan.json"]
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name] != theirs[name]] == []


def test_tables_do_not_depend_on_the_order_of_chunks(copy, swept):
    """Rows are in the order asked, which is not that of the chunks."""
    status = pq.read_table(run_folder(copy.root / "swept") / "status.parquet")
    asked = status["experiment"].to_pylist()[:-REFUSED]
    for name in ("frontier", "best", "breakdown"):
        table = pq.read_table(run_folder(copy.root / "swept") / f"{name}.parquet")
        place = pc.index_in(
            table["experiment"].cast("string"),
            value_set=status["experiment"].combine_chunks().cast("string"),
        )
        assert pc.all(
            pc.greater_equal(pc.pairwise_diff(place.combine_chunks()).drop_null(), 0)
        ).as_py()
    assert asked == [name for name in sweep_names() if ".b60.trtllm." not in name]


def sweep_names() -> list[str]:
    """The names of the sweep's experiments, written out by loops."""
    return [
        f"{model}.{system}.{engine}.isl1000_osl200.ttft{ttft}_tpot{tpot}.{mode}"
        for model in ("QWEN3_8B", "LLAMA3.1_8B")
        for system in ("h200_sxm", "b60")
        for engine in ("trtllm", "vllm")
        for ttft, tpot in ((500, 10), (500, 30), (2000, 60))
        for mode in ("agg", "disagg")
    ]


@pytest.mark.slow
def test_command_line_leaves_the_same_bytes(copy, swept):
    """Winners' files too, which both doors write for a sweep of 50 to 1,000 experiments."""
    file = ask(copy, "wide", sla=[[500, 10], [500, 30], [500, 60], [2000, 10], [2000, 60]])
    asked = yaml.safe_load((copy.root / file).read_text())
    asked["axes"]["system_name"] = ["h200_sxm"]
    asked["axes"]["total_gpus"] = [8, 16]
    (copy.root / file).write_text(yaml.safe_dump(asked, sort_keys=False))
    flow = copy.snakemake("--config", f"experiments={file}", "results=wide_flow")
    assert flow.returncode == 0, flow.stderr
    command = ["-m", "paretoserve", "cli", "exp", "--yaml_path", file, "--save_dir", "wide_cli"]
    direct = copy.run([sys.executable, *command])
    assert direct.returncode == 0, direct.stderr
    found = content(copy.root / "wide_cli")
    assert found == content(copy.root / "wide_flow")
    winners = run_folder(copy.root / "wide_cli") / "winners.csv"
    lines = winners.read_text().splitlines()
    assert 1 < len(lines) <= 1 + 2 * 5 * 2
    for line in lines[1:]:
        folder = line.rsplit(",", 1)[1]
        assert (winners.parent / folder / "top1" / "generator_config.yaml").exists()


@pytest.mark.slow
def test_files_of_any_experiment_on_demand(copy, swept):
    run = run_folder(copy.root / "swept")
    name = "QWEN3_8B.h200_sxm.trtllm.isl1000_osl200.ttft2000_tpot60.agg"
    target = str((run / name / "config.yaml").relative_to(copy.root))
    options = ("--config", "experiments=sweep.yaml", "results=swept", "generate=none")
    done = copy.snakemake(target, *options)
    assert done.returncode == 0, done.stderr
    assert (run / name / "top1" / "generator_config.yaml").exists()
    assert jobs(done.stdout + done.stderr) == {"generate": 1}


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("chunk_size=0", "configuration: chunk_size is 0, it must be 'auto' or 1 or more"),
        ("generate=winner", "configuration: generate is 'winner' (did you mean 'winners'?); "),
    ],
)
def test_bad_settings_are_refused(copy, setting, sentence):
    done = copy.snakemake("--config", setting)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_time_is_told(copy):
    sweep = str(paths.SWEEPS / "ten_thousand.yaml")
    command = ["-m", "paretoserve", "plan", sweep, "--results", "none", "--cores", "2"]
    done = copy.run([sys.executable, *command])
    assert done.returncode == 0, done.stderr
    assert re.search(r"^experiments 10000, of which \d+ can be asked$", done.stdout, re.MULTILINE)
    assert re.search(r"^time +about \d+ (s|min) on 2 cores$", done.stdout, re.MULTILINE)
