"""docs/tutorial.md: its commands run, in their order, and print what the page shows."""

import re

import pytest
from tests.documents import Copy, blocks, steps

from paretoserve import paths

PAGE = paths.ROOT / "docs" / "tutorial.md"


def test_the_sweep_is_the_one_of_the_page():
    console = [block.text for block in blocks(PAGE.read_text()) if block.kind == "console"]
    [shown] = [shown for text in console for command, shown in steps(text) if "cat " in command]
    assert shown == (paths.CONFIG / "sweeps" / "tutorial.yaml").read_text()


@pytest.mark.slow
def test_commands_print_what_the_page_shows(tmp_path):
    copy = Copy(tmp_path / "paretoserve")
    copy.do(blocks(PAGE.read_text()))
    [run] = (copy.root / "results").glob("tutorial_*")
    assert (run / "report.html").stat().st_size > 100_000
    # The experiments of the report are those of the plan.
    [asked] = re.findall(r"(\d+) experiments:", (run / "report.txt").read_text())
    assert int(asked) >= 200
