"""Documents as programs: their blocks are written, appended, patched and run in a copy.

`python tests/documents.py PAGE PICTURE...` runs a page's commands, puts what they print below them,
and takes the pictures, by their names, from the report that they made (`make tutorial`).
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from paretoserve import paths

BLOCK = re.compile(
    r"^```(\w+)(?: (title|append)=\"([^\"]+)\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A block of the page: what kind it is, the file that it is for, and its text."""

    kind: str
    verb: str
    file: str
    text: str


def blocks(text: str) -> list[Block]:
    return [Block(*(part or "" for part in match.groups())) for match in BLOCK.finditer(text)]


def steps(text: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with what the page shows below it."""
    found = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    return [(command, shown) for command, _, shown in (step.partition("\n") for step in found)]


FOLDERS = ("config", "scripts", "rules", "profiles")


class Copy:
    """A copy of the project in which the steps are done; its code is what runs."""

    def __init__(self, root: Path):
        self.root = root
        for name in (*FOLDERS, "Snakefile", "tests/test_structure.py"):
            source, place = paths.ROOT / name, root / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, place)
        # Tables are many and only added to: links to files, in folders of their own.
        for source in paths.PERF_DB.rglob("*"):
            place = root / "perf_db" / source.relative_to(paths.PERF_DB)
            if source.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            elif source.suffix == ".parquet":
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(source)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, place)

    def do(self, blocks: list[Block]) -> None:
        """What a reader does with the blocks: write, append, patch, run."""
        for block in blocks:
            file = self.root / block.file
            if block.verb == "title":
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(block.text)
            elif block.verb == "append":
                file.write_text(file.read_text() + block.text)
            elif block.kind == "diff":
                self.patch(block.text)
            elif block.kind == "console":
                self.console(block.text)

    def patch(self, text: str) -> None:
        """Put the added lines of each hunk where its other lines stand, once in the file."""
        head, *hunks = re.split(r"^@@ @@\n", text, flags=re.MULTILINE)
        file = self.root / re.search(r"^\+\+\+ b/(.+)$", head, re.MULTILINE)[1]
        content = file.read_text()
        for hunk in hunks:
            lines = hunk.splitlines(keepends=True)
            before = "".join(line[1:] or "\n" for line in lines if line[0] in " -\n")
            after = "".join(line[1:] or "\n" for line in lines if line[0] in " +\n")
            assert content.count(before) == 1, f"{file.name} is not as docs/extending.md has it"
            content = content.replace(before, after)
        file.write_text(content)

    def console(self, text: str) -> None:
        """Run each command; what the page shows below it must be just what it prints."""
        for command, shown in steps(text):
            if command.split()[0] in PROGRAMS:
                printed = self.run(command)
                assert not shown or _without_times(shown) == _without_times(printed), command

    def run(self, command: str) -> str:
        """What a command prints on its standard output; its programs are this environment's."""
        places = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        done = subprocess.run(
            command,
            shell=True,
            cwd=self.root,
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "PATH": places,
                "PARETOSERVE_HOME": str(self.root),
                "PYTHONPATH": str(self.root / "scripts"),
            },
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


# Commands that a test runs; others (export) are for a reader's own shell.
PROGRAMS = ("paretoserve", "snakemake", "cat", "grep", "head", "ls", "sed", "tail")


def _without_times(text: str) -> list[str]:
    """The lines, without what another machine prints otherwise."""
    return [re.sub(r"about [\d.]+ (s|minutes)", "about", line) for line in text.splitlines()]


def refreshed(text: str, copy: Copy) -> str:
    """The page with what its commands print now, where it shows anything."""

    def console(match: re.Match[str]) -> str:
        if match[1] != "console":
            return match[0]
        lines = ["```console\n"]
        for command, shown in steps(match[4]):
            printed = copy.run(command) if command.split()[0] in PROGRAMS else shown
            lines += [f"$ {command}\n", printed if shown else ""]
        return "".join([*lines, "```"])

    return BLOCK.sub(console, text)


if __name__ == "__main__":
    page, *pictures = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder) / "paretoserve")
        page.write_text(refreshed(page.read_text(), copy))
        for picture in pictures:
            [made] = copy.root.glob(f"results/*/report/{picture.name}")
            shutil.copy(made, picture)
