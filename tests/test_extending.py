"""docs/extending.md, done step by step in a copy of the project."""

import json
import os
import re
import subprocess
import sys

import pytest
from tests.documents import Block, Copy, blocks

from paretoserve import paths

PAGE = paths.ROOT / "docs" / "extending.md"


def chapter(title: str) -> list[Block]:
    return blocks(PAGE.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0])


@pytest.fixture
def copy(tmp_path) -> Copy:
    return Copy(tmp_path / "paretoserve")


def explained(copy: Copy, which: str) -> dict:
    return json.loads(copy.run(f"paretoserve explain {which} --json"))


def operators(told: dict, step: str) -> dict[str, dict]:
    [worker] = told["workers"].values()
    return {one["operator"]: one for one in worker["steps"][step]["operators"]}


def test_the_chapters_are_all_proved():
    assert re.findall(r"^## (.+)$", PAGE.read_text(), re.MULTILINE) == [
        "A new GPU",
        "A new model",
        "A new operator",
    ]


def test_a_new_gpu(copy):
    copy.do(chapter("A new GPU"))
    told = explained(copy, "results/QWEN3_0.6B_* agg:1")
    assert told["workers"]["agg"]["system"] == "lab_gpu"
    gemms = [one for name, one in operators(told, "decode").items() if name.endswith("gemm")]
    assert len(gemms) == 5
    rows = (copy.root / "gemm.csv").read_text().splitlines()[1:]
    measured = {tuple(map(int, row.split(",")[2:5])): float(row.split(",")[5]) for row in rows}
    for gemm in gemms:
        [look_up] = gemm["look_ups"]
        assert [table["file"] for table in look_up["tables"]] == [
            "perf_db/tables/lab_gpu/vllm/0.11.0/gemm.parquet"
        ]
        [point] = look_up["points"]
        n, k = point["at"]["n"], point["at"]["k"]
        # The measured row counts on both sides, and nothing else.
        for row in point["measured"]:
            assert row["latency_ms"] == pytest.approx(measured[n, k, row["m"]], rel=1e-6)
        around = [row["latency_ms"] for row in point["measured"]]
        assert min(around) <= point["ms"] <= max(around)
    assert "l40s" not in json.dumps(told)


def test_a_new_model(copy):
    copy.do(chapter("A new model"))
    named = explained(copy, "results/QWEN3_MINI_* agg:1")
    copy.run(
        "paretoserve cli default --model ./qwen3_mini --total_gpus 8 --system h200_sxm --tpot 10 "
        "--save_dir by_folder"
    )
    by_folder = explained(copy, "by_folder/qwen3_mini_* agg:1")
    assert named["arithmetic"] == by_folder["arithmetic"]
    # Shapes by hand, from the config.json of the page, for tp GPUs.
    config = json.loads((copy.root / "qwen3_mini" / "config.json").read_text())
    hidden, inter, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    tp = named["deployment"]["agg_tp"]
    heads, kv_heads = config["num_attention_heads"] // tp, config["num_key_value_heads"] // tp
    shapes = {
        "qkv_gemm": ((heads + 2 * kv_heads) * dim, hidden),
        "proj_gemm": (hidden, heads * dim),
        "gate_ffn1_gemm": (2 * inter // tp, hidden),
        "ffn2_gemm": (hidden, inter // tp),
        "logits_gemm": (config["vocab_size"] // tp, hidden),
    }
    for name, (n, k) in shapes.items():
        one = operators(named, "decode")[name]
        [point] = one["look_ups"][0]["points"]
        assert (point["at"]["n"], point["at"]["k"]) == (n, k)
        assert one["times"] == (1 if name == "logits_gemm" else config["num_hidden_layers"])


def test_a_new_operator(copy):
    copy.do(chapter("A new operator"))
    told = explained(copy, "results/QWEN3_32B_* agg:1")
    rows = (copy.root / "add_norm.csv").read_text().splitlines()[1:]
    measured = {int(row.split(",")[2]): float(row.split(",")[3]) for row in rows}
    for step in ("mixed", "decode"):
        for name in ("add_norm_1", "add_norm_2"):
            one = operators(told, step)[name]
            [look_up], [point] = one["look_ups"], one["look_ups"][0]["points"]
            assert look_up["kernel"] == "add_norm"
            assert look_up["tables"][0]["file"].endswith("1.3.0rc20/add_norm.parquet")
            tokens = point["at"]["tokens"]
            if tokens in measured:
                assert point["provenance"] == "measured"
                assert point["ms"] == pytest.approx(measured[tokens], rel=1e-6)
            else:
                below = max(count for count in measured if count < tokens)
                above = min(count for count in measured if count > tokens)
                assert point["provenance"] == "interpolated"
                assert measured[below] < point["ms"] < measured[above]
    structure = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*structure, "tests/test_structure.py"],
        cwd=copy.root,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PARETOSERVE_HOME": str(copy.root),
            "PYTHONPATH": str(copy.root / "scripts"),
        },
    )
    assert done.returncode == 0, done.stdout
