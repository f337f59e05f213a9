"""The documents: the generated ones are current, links lead somewhere, commands exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from paretoserve import cli, paths
from paretoserve.reference import reference_page

PAGES = [paths.ROOT / "README.md", paths.CONFIG / "README.md", *(paths.ROOT / "docs").glob("*.md")]
COMMAND = re.compile(
    r"^(?: {4}|\$ )(?:\.venv/bin/)?(paretoserve (?:.*\\\n)*.*)$|`(paretoserve [a-z-]+ [^`]+)` \|$",
    re.MULTILINE,
)


def test_reference_is_current():
    assert (paths.ROOT / "docs" / "reference.md").read_text() == reference_page()


def test_reference_has_every_field_with_its_default():
    page = reference_page()
    assert "| `tpot` | number above 0, ms | `40.0` |" in page
    assert "| `nextn` | integer from 0 to 5, tokens | `0` |" in page
    assert "| `serving_mode` | `agg`, `disagg` | required |" in page
    assert "### `NAME.config.worker_config`, `NAME.config.prefill_worker_config`" in page
    assert "| `axes` | mapping | required |" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(paths.ROOT)))
def test_links_lead_to_files(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    missing = [
        link
        for link in links
        if not link.startswith(("http://", "https://")) and not (page.parent / link).exists()
    ]
    assert missing == []


def commands() -> list[tuple[Path, str]]:
    found = []
    for page in PAGES:
        for match in COMMAND.finditer(page.read_text()):
            found.append((page, (match[1] or match[2]).replace("\\\n", " ")))
    return found


def test_commands_of_the_documents_are_understood():
    """Every flag exists, and none that is needed lacks."""
    told = commands()
    assert len(told) > 10
    for page, command in told:
        words = shlex.split(re.sub("<[^>]*>", "NAME", command), comments=True)[1:]
        for sign in ("|", ">"):
            words = words[: words.index(sign)] if sign in words else words
        if "-h" not in words:
            _, unknown = cli._parser().parse_known_args(cli._guide_spelling(words))
            assert unknown == [], f"{page.name}: {command}"


@pytest.mark.slow
def test_readme_quotes_the_accuracy_that_the_benchmark_prints():
    done = subprocess.run(
        [sys.executable, "-m", "paretoserve.bench", "--only", "accuracy"],
        cwd=paths.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = (
        "gemm, one m of a curve",
        "gemm, a whole (n, k)",
        "context attention, isl",
        "generation attention, position",
    )
    found = [re.search(rf"\| {re.escape(row)} *\| *\d+ \| *([\d.]+) ", done.stdout) for row in rows]
    readme = " ".join((paths.ROOT / "README.md").read_text().split())
    quoted = re.search(
        r"error of a GEMM is ([\d.]+) % at a token count left out and ([\d.]+) % for a whole shape "
        r"left out; of prefill attention along isl ([\d.]+) %, of decode attention along position "
        r"([\d.]+) %",
        readme,
    )
    assert [row[1] for row in found] == list(quoted.groups())
