"""A run as one archive: its bytes, what is in it, and whether it repeats, or why not."""

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from paretoserve import paths

QUESTION = """\
cli default --model LLAMA3.1_8B --total_gpus 4 --system h200_sxm --isl 1000 --osl 100 --ttft 500
--tpot 20 --backend trtllm
"""


def run(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "paretoserve", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env=environment or None
    )


def snakemake(folder: Path, file: Path, *config: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--directory", str(folder)]
    command += ["--snakefile", str(paths.ROOT / "Snakefile")]
    command += ["--config", f"experiments={file}", *config]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("answered")
    done = run(*QUESTION.split(), "--save_dir", "results", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "results"


@pytest.fixture(scope="module")
def archive(results) -> Path:
    done = run("pack", "results", cwd=results.parent)
    assert (done.returncode, done.stderr) == (0, "")
    [file] = results.parent.glob("*.zip")
    assert done.stdout.startswith(f"{file.name}: ")
    return file


def rewritten(archive: Path, copy: Path, change) -> Path:
    """A copy of an archive with other content: `change` is given the files by name."""
    with zipfile.ZipFile(archive) as packed:
        inside = {name: packed.read(name) for name in packed.namelist()}
    change(inside)
    with zipfile.ZipFile(copy, "w") as packed:
        for name, content in inside.items():
            packed.writestr(name, content)
    return copy


def description(inside: dict[str, bytes]) -> dict:
    return json.loads(inside["pack.json"])


def test_archive_holds_question_settings_and_every_file_of_the_run(results, archive):
    [run_folder] = (path.parent for path in results.glob("*/report.txt"))
    with zipfile.ZipFile(archive) as packed:
        inside = {name: packed.read(name) for name in packed.namelist()}
    for file in run_folder.rglob("*"):
        if file.is_file():
            assert inside[f"results/{file.relative_to(results)}"] == file.read_bytes()
    assert b"LLAMA3.1_8B" in inside["inputs/command_line.yaml"]
    for name in ("config/defaults.yaml", "config/models/LLAMA3.1_8B.yaml", "requirements.lock"):
        assert inside[f"inputs/{name}"] == (paths.ROOT / name).read_bytes()
    said = description(inside)
    assert said["made_from"]["packages"]["numpy"]
    assert any(name.endswith("/gemm.parquet") for name in said["made_from"]["perf_db"]["tables"])
    # The tables of the groups are not in it, but their checksums are.
    assert any(name.startswith("work/") for name in said["files"])
    assert not [name for name in inside if name.startswith("results/work/")]


def test_same_run_packs_to_the_same_bytes(results, archive, tmp_path):
    done = run("pack", results, "--output", tmp_path / "again.zip", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()


def test_run_repeats_from_the_archive_alone(archive, tmp_path):
    done = run("verify", archive, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "files repeated byte for byte" in done.stdout
    assert "although" not in done.stdout
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_workflow_packs_to_the_same_files(tmp_path, results, archive):
    """Asked by Snakemake instead: another name of the file, and nothing else."""
    [asked] = (results / "logs" / "asked").glob("*/*")
    file = tmp_path / "mine.yaml"
    file.write_bytes(asked.read_bytes())
    done = snakemake(tmp_path, file)
    assert done.returncode == 0, done.stderr
    packed = run("pack", "results", "--output", "mine.zip", cwd=tmp_path)
    assert packed.returncode == 0, packed.stderr
    with zipfile.ZipFile(tmp_path / "mine.zip") as mine, zipfile.ZipFile(archive) as other:
        ours, theirs = (json.loads(one.read("pack.json")) for one in (mine, other))
    assert ours["files"] == theirs["files"]
    assert ours["made_from"] == theirs["made_from"]
    assert ours["asked"] == "mine.yaml"


@pytest.mark.slow
def test_sweep_repeats_as_it_was_divided_generated_and_compared(tmp_path, results):
    """With its own chunk size, files for winners only, and a report on what changed."""
    [earlier] = (path.parent for path in results.glob("*/report.txt"))
    file = tmp_path / "two_limits.yaml"
    fields = "{serving_mode: agg, model_name: LLAMA3.1_8B, total_gpus: 4, system_name: h200_sxm}"
    file.write_text(f"experiment: {fields}\naxes: {{tpot: [20, 30]}}\n")
    done = snakemake(tmp_path, file, "chunk_size=1", "generate=winners", f"baseline={earlier}")
    assert done.returncode == 0, done.stderr
    packed = run("pack", "results", "--output", "sweep.zip", cwd=tmp_path)
    assert packed.returncode == 0, packed.stderr
    with zipfile.ZipFile(tmp_path / "sweep.zip") as inside:
        names = inside.namelist()
        files = json.loads(inside.read("pack.json"))["files"]
    assert any(name.startswith(f"inputs/baseline/{earlier.name}/") for name in names)
    assert len({name.split("/")[1] for name in files if name.startswith("answers/")}) == 2
    (tmp_path / "results").rename(tmp_path / "away")
    done = run("verify", "sweep.zip", cwd=tmp_path)
    assert "files repeated byte for byte" in done.stdout, done.stdout


def test_differing_file_is_named_with_the_cause(archive, tmp_path):
    """As if the run had been made from other tables and packages, with another best row."""

    def change(inside):
        said = description(inside)
        [csv] = [name for name in inside if name.endswith("/agg/pareto.csv")]
        [table] = [name for name in inside if name.endswith("/best.parquet")]
        inside[csv] = inside[csv].replace(b"\n", b"\n1", 2)
        [other] = [name for name in inside if name.endswith("/status.parquet")]
        inside[table] = inside[other]
        for name in (csv, table):
            said["files"][name.removeprefix("results/")] = sha256(inside[name])
        made = said["made_from"]
        made["packages"]["numpy"] = "1.0.0"
        gemm = next(name for name in made["perf_db"]["tables"] if name.endswith("gemm.parquet"))
        made["perf_db"]["tables"][gemm] = "0" * 64
        made["perf_db"]["digest"] = "0" * 16
        inside["pack.json"] = json.dumps(said).encode()

    done = run("verify", rewritten(archive, tmp_path / "other.zip", change), cwd=tmp_path)
    assert done.returncode == 4
    assert "2 of" in done.stdout
    assert "agg/pareto.csv differs from line 2 on" in done.stdout
    assert "best.parquet has other rows" in done.stdout
    assert "other measurements in perf_db: tables/h200_sxm" in done.stdout
    assert "numpy 1.0.0 -> " in done.stdout
    assert "other code" not in done.stdout


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_other_settings_may_make_it_another_question(archive, tmp_path):
    """Defaults are part of a question; those of the archive are not used, but they are told."""

    def change(inside):
        said = description(inside)
        name = "inputs/command_line.yaml"
        inside[name] = inside[name].replace(b"ttft: 500", b"ttft: 501")
        said["inputs"]["command_line.yaml"] = sha256(inside[name])
        inside["inputs/config/defaults.yaml"] += b"# other\n"
        said["inputs"]["config/defaults.yaml"] = sha256(inside["inputs/config/defaults.yaml"])
        inside["pack.json"] = json.dumps(said).encode()

    done = run("verify", rewritten(archive, tmp_path / "other.zip", change), cwd=tmp_path)
    assert done.returncode == 4
    assert "the question is now LLAMA3.1_8B_isl1000_osl100_ttft501" in done.stdout
    assert "other settings: config/defaults.yaml" in done.stdout


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"PK", "is no archive of paretoserve pack"),
        ("changed", "report.txt is not as it was packed"),
    ],
)
def test_what_is_no_archive_is_refused_in_one_sentence(archive, tmp_path, content, sentence):
    file = tmp_path / "given.zip"
    if content == "changed":

        def change(inside):
            [report] = [name for name in inside if name.endswith("report.txt")]
            inside[report] += b" "

        rewritten(archive, file, change)
    elif content:
        file.write_bytes(content)
    done = run("verify", file, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert sentence in done.stderr


def test_run_that_is_damaged_or_unknown_is_not_packed(results, tmp_path):
    done = run("pack", tmp_path, cwd=tmp_path)
    assert done.returncode == 2
    assert "holds no run" in done.stderr
    copy = tmp_path / "results"
    subprocess.run(["cp", "-r", str(results), str(copy)], check=True)
    [table] = copy.glob("*/status.parquet")
    table.write_bytes(table.read_bytes()[:-20])
    done = run("pack", copy, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "status.parquet: its checksum does not hold; run the workflow again" in done.stderr
    assert not [*tmp_path.glob("*.zip")]
