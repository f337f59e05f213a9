"""What is said to be answerable: it is what the command line answers, and what the page says."""

import json
import re
from collections import Counter

import pytest

from paretoserve import paths
from paretoserve.cli import main
from paretoserve.interpolation import PROVENANCE
from paretoserve.perfdb import manifest
from paretoserve.support import MODES, support, support_page, support_section

PAGE = paths.ROOT / "docs" / "support.md"


def printed_json(capsys, *flags: str) -> list[dict]:
    assert main(["support", *flags, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("system", ["a100_sxm", "b60"])
def test_page_is_that_of_the_code_and_tables(system):
    """Of small systems here, of all under `slow`; `make support` writes the page anew."""
    section = support_section(list(support(system=system)))
    assert f"\n{section}" in PAGE.read_text()


@pytest.mark.slow
def test_whole_page_is_that_of_the_code_and_tables():
    assert support_page(support()) == PAGE.read_text()


def test_every_version_of_the_tables_is_told(capsys):
    told = printed_json(capsys, "--model", "Qwen/Qwen3-8B", "--system", "gb200_sxm")
    engines = ("trtllm", "sglang", "vllm")
    measured = {key[1:3] for key in manifest.load().tables if key[0] == "gb200"}
    measured = {(backend, version) for backend, version in measured if backend in engines}
    assert len(measured) > 5
    counted = Counter((row["backend"], row["version"]) for row in told)
    assert counted == dict.fromkeys(measured, len(MODES))
    assert {row["model"] for row in told} == {"QWEN3_8B"}


def test_shares_are_of_the_whole_time_and_a_no_has_a_reason(capsys):
    told = printed_json(capsys, "--system", "l40s", "--backend", "vllm")
    answered = [row for row in told if row["answer"] != "no"]
    assert answered
    words = [name.replace("speed_of_light", "formula") for name in PROVENANCE]
    for row in told:
        shares = [row[word] for word in words]
        if row["answer"] == "no":
            assert row["reason"]
            assert shares == [0] * len(words)
        else:
            assert sum(shares) == pytest.approx(1, abs=0.003)
            assert row[row["answer"]] == max(shares)


@pytest.mark.parametrize(
    ("model", "system", "backend"),
    [
        ("QWEN3_8B", "a100_sxm", "trtllm"),
        ("LLAMA3.1_405B", "a100_sxm", "trtllm"),
        ("QWEN3_32B", "b60", "vllm"),
        ("QWEN3_0.6B", "b60", "trtllm"),
        ("LLAMA2_13B", "l40s", "sglang"),
    ],
)
def test_what_is_said_is_what_the_command_line_does(capsys, model, system, backend):
    told = printed_json(capsys, "--model", model, "--system", system, "--backend", backend)
    newest = {row["mode"]: row["answer"] for row in told if _complete(row)}
    flags = ["--model", model, "--system", system, "--backend", backend]
    endless = ["--total_gpus", "64", "--ttft", "1e9", "--tpot", "1e9"]
    code = main(["cli", "default", *flags, *endless])
    report = capsys.readouterr().out
    answered = {mode for mode in MODES if f"{mode} Top Configurations" in report}
    assert answered == {mode for mode in newest if newest[mode] != "no"}
    assert (code == 0) == bool(answered)


def _complete(row: dict) -> bool:
    return row["answer"] != "no" or not re.match(r"measured without|nothing was", row["reason"])


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--model", "QWEN3_32"], "unknown model 'QWEN3_32' (did you mean 'QWEN3_32B'?)"),
        (["--system", "h20_sxm"], "unknown system 'h20_sxm' (did you mean 'h200_sxm'?)"),
        (["--backend", "vlm"], "unknown backend 'vlm' (did you mean 'vllm'?)"),
    ],
)
def test_unknown_names_get_one_sentence(capsys, flags, sentence):
    assert main(["support", *flags]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {sentence}")


def test_terminal_shows_an_aligned_table_and_the_reasons(capsys):
    assert main(["support", "--model", "LLAMA3.1_405B", "--system", "a100_sxm"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith(("|", "+"))]
    assert len({len(line) for line in table}) == 1
    [row] = [line for line in table if "LLAMA3.1_405B" in line and "trtllm" in line]
    [number] = re.findall(r"no \((\d)\)", row)[:1]
    assert any(line.startswith(f"({number}) no agg worker fits in memory") for line in lines)
