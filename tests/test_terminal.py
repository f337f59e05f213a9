"""Sweeps in the terminal: the summary, JSON, and the bar of long work."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pyarrow.parquet as pq
import pytest
import yaml

from paretoserve.cli import main
from paretoserve.progress import Part, progress

LOADS = {"chat": {"isl": 1000, "osl": 500}, "code": {"isl": 4000, "osl": 1000}}
LIMITS = {"fast": {"ttft": 500, "tpot": 6}, "slow": {"ttft": 2000, "tpot": 40}}
SWEEP = {
    f"QWEN3_8B.{system}.{load}.{limit}.{mode}": {
        "serving_mode": mode,
        "model_name": "QWEN3_8B",
        "total_gpus": 10,
        "system_name": system,
        **LOADS[load],
        **LIMITS[limit],
    }
    for system in ("h200_sxm", "l40s")
    for load in LOADS
    for limit in LIMITS
    for mode in ("agg", "disagg")
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP, sort_keys=False))
    arguments = ["cli", "exp", "--yaml_path", str(folder / "sweep.yaml")]
    assert main([*arguments, "--save_dir", str(folder)]) == 0
    return arguments, next(folder.glob("QWEN3_8B*"))


def shown(capsys, arguments, *more: str) -> str:
    capsys.readouterr()
    assert main([*arguments, *more]) == 0
    return capsys.readouterr().out


def lines_of(text: str) -> list[tuple[str, bool, str, list[str]]]:
    """(question's pattern, starred, label, cells) of each line, read back from the text."""
    found, pattern = [], ""
    for line in text.splitlines():
        if match := re.search(r"(QWEN3_8B\.\*\.\S+)$", line):
            pattern = match[1]
        elif match := re.match(
            r"  ([* ]) (\S+) +([\d.]+) +(\d+%) +([\d.]+) +([\d.]+) +(\S+)$", line
        ):
            found.append((pattern, match[1] == "*", match[2], list(match.groups()[2:])))
    return found


def test_summary_has_a_line_for_each_answer_and_its_numbers_are_the_runs(sweep, capsys):
    arguments, folder = sweep
    best = {
        row["experiment"]: row
        for row in pq.read_table(folder / "best.parquet").to_pylist()
        if row["rank"] == 1
    }
    text = shown(capsys, arguments)
    assert text == (folder / "report.txt").read_text()
    lines = lines_of(text)
    names = {}
    for pattern, starred, label, cells in lines:
        parts = iter(label.split("."))
        name = ".".join(next(parts) if part == "*" else part for part in pattern.split("."))
        row = names[name] = best[name]
        same = [one for n, one in best.items() if n.split(".")[2:4] == name.split(".")[2:4]]
        most = max(one["tokens_per_s_per_gpu"] for one in same)
        assert cells[0] == f"{row['tokens_per_s_per_gpu']:.2f}"
        assert cells[1] == f"{row['tokens_per_s_per_gpu'] / most:.0%}"
        assert cells[2:4] == [f"{row['tpot_ms']:.2f}", f"{row['ttft_ms']:.2f}"]
        assert starred == (row["tokens_per_s_per_gpu"] == most)
        assert cells[4].startswith(f"{row['replicas']}x")
    assert names.keys() == best.keys()
    assert 0 < len(best) < len(SWEEP)


def test_deployments_are_named_by_replicas_and_layouts(sweep, capsys):
    arguments, folder = sweep
    rows = pq.read_table(folder / "best.parquet").to_pylist()
    text = shown(capsys, arguments)
    for row in rows:
        if row["rank"] > 1:
            continue
        if row["serving_mode"] == "agg":
            name = f"{row['replicas']}xtp{row['agg_tp']}"
        else:
            name = (
                f"{row['replicas']}x({row['prefill_workers']}xtp{row['prefill_tp']}"
                f"+{row['decode_workers']}xtp{row['decode_tp']})"
            )
        assert f"{row['tokens_per_s_per_gpu']:.2f}" in text
        assert re.search(rf"{row['ttft_ms']:.2f}  {re.escape(name)}\n", text)


def test_what_has_no_answer_is_grouped_by_reason(sweep, capsys):
    arguments, folder = sweep
    status = pq.read_table(folder / "status.parquet").to_pylist()
    unanswered = [row["experiment"] for row in status if row["status"] != "ok"]
    text = shown(capsys, arguments)
    told = re.search(r"No answer:\n(.*)", text, re.DOTALL)[1]
    counts = [int(count) for count in re.findall(r"^ +(\d+)  \S", told, re.MULTILINE)]
    assert sum(counts) == len(unanswered) > 0
    assert counts == sorted(counts, reverse=True)
    assert "tpot 6 ms binds: QWEN3_8B.l40s.code.fast.agg" in told


@pytest.mark.parametrize("width", ["80", "100", "60"])
def test_summary_fits_the_terminal(sweep, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", width)
    arguments, _ = sweep
    text = shown(capsys, arguments)
    assert max(map(len, text.splitlines())) <= max(int(width), 80)
    assert "\033" not in text


def test_json_is_the_answer_of_the_tables(sweep, capsys):
    arguments, folder = sweep
    told = json.loads(shown(capsys, arguments, "--json"))
    tables = {
        name: pq.read_table(folder / f"{name}.parquet").to_pylist()
        for name in ("best", "frontier", "status", "comparison")
    }
    assert [one["experiment"] for one in told["experiments"]] == list(SWEEP)
    [chosen] = [row["experiment"] for row in tables["comparison"] if row["chosen"]]
    assert told["chosen"] == chosen
    for one, row in zip(told["experiments"], tables["status"], strict=True):
        assert {key: one[key] for key in row} == row
        for name in ("best", "frontier"):
            mine = [row for row in tables[name] if row["experiment"] == one["experiment"]]
            assert len(one[name]) == len(mine)
            for said, kept in zip(one[name], mine, strict=True):
                assert said.items() <= kept.items()
        assert one["question"]["tpot_ms"] == SWEEP[one["experiment"]]["tpot"]


PROGRAM = """
import time
from paretoserve.progress import Part, progress
parts = {"priced": Part(3, "groups", 1.0), "answered": Part(2, "experiments", 1.0)}
with progress(parts) as advance:
    for name in ("priced", "priced", "priced", "answered"):
        time.sleep(0.4)
        advance(name)
"""


def on_terminal(**environment: str) -> str:
    """What a terminal shows of work that is 4 of 5 seconds done."""
    seen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stderr=terminal, env={**os.environ, **environment}
    )
    os.close(terminal)
    text = b""
    try:
        while part := os.read(seen, 65536):
            text += part
    except OSError:  # the other end is closed
        pass
    os.close(seen)
    assert process.wait() == 0
    return text.decode()


def test_long_work_has_a_bar_with_what_is_done_and_the_time_left():
    text = on_terminal(TERM="xterm", NO_COLOR="1")
    assert "answered 1/2 experiments" in text
    assert "80 %" in text
    assert re.search(r"\d\d:\d\d left", text)
    assert not re.search(r"\033\[[\d;]*m", text)


def test_a_dumb_terminal_has_no_bar():
    assert on_terminal(TERM="dumb") == ""


def test_no_bar_and_no_library_where_nobody_looks(capsys):
    code = "import sys\n" + PROGRAM + "print('tqdm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")
    with progress({"priced": Part(1, "groups", 0.1)}) as advance:
        advance("priced")
    assert capsys.readouterr() == ("", "")
