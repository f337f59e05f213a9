"""The library's structure: imports go one way, and nothing in it knows Snakemake."""

import ast
from pathlib import Path

import pytest

from paretoserve import paths

LIBRARY = paths.ROOT / "scripts" / "paretoserve"

# Each may import those before it, and itself.
ORDER = """
errors paths records logs settings calibration uncertainty prices quant
hardware layout models precision perfdb
interpolation operators tracing estimator memory search
experiments schemas serving pareto
deploy report stages provenance progress question resuming
inprocess evidence planning workflow explain size
accuracy bench support reference commands cli __main__
""".split()

MODULES = sorted(path for path in LIBRARY.rglob("*.py") if path != LIBRARY / "__init__.py")


def imported(path: Path) -> set[str]:
    """Names of modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def part(path: Path) -> str:
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_imports_go_one_way(path):
    here = ORDER.index(part(path))
    for name in imported(path):
        head, *rest = name.split(".")
        assert head != "snakemake"
        if head == "paretoserve" and rest and rest[0] in ORDER:
            assert ORDER.index(rest[0]) <= here, f"{part(path)} imports {name}"


def test_every_part_has_its_place():
    assert {part(path) for path in MODULES} == set(ORDER)
