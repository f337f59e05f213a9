"""The workflow itself: which jobs it runs and when again, what they leave, how it refuses.

Everything runs by `snakemake` in a copy of the repository, so that its files can be changed.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from paretoserve import paths, provenance, schemas
from paretoserve.calibration import calibration
from paretoserve.perfdb import manifest

EXAMPLE = "config/experiments/qwen3_32b_h200.yaml"
FROM_COMPARE = {"compare": 1, "report": 1, "all": 1}
FROM_PARETO = {"pareto": 1, "gather": 1, "generate": 2, **FROM_COMPARE}
FIRST_RUN = {"enumerate": 1, "estimate": 1, **FROM_PARETO}
FROM_ESTIMATE = {"estimate": 1, **FROM_PARETO}

# Python starts with this in the copy: it notes each data file that is opened, and by which process.
NOTE_READS = """
import os, sys
def note(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and os.environ.get("NOTE_READS"):
        path = os.path.abspath(arguments[0])
        if path.startswith((ROOT + "/config/", ROOT + "/perf_db/")):
            descriptor = os.open(os.environ["NOTE_READS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(descriptor, f"{os.getpid()} {path}\\n".encode())
            os.close(descriptor)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.addaudithook(note)
"""


@dataclass(frozen=True)
class Repository:
    """A copy of the repository, whose own library is imported there."""

    root: Path

    def snakemake(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
        return self.run(command, **environment)

    def run(self, command: list[str], **environment: str) -> subprocess.CompletedProcess:
        search = f"{self.root / 'scripts'}:{self.root / 'hooks'}"
        return subprocess.run(
            command,
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": search, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def planned(self, *arguments: str) -> dict[str, int]:
        """Jobs of a dry-run, by rule."""
        done = self.snakemake("--dry-run", *arguments)
        assert done.returncode == 0, done.stderr
        return jobs(done.stdout + done.stderr)

    def planned_after(self, file: str, old: str, new: str) -> dict[str, int]:
        """Jobs of a dry-run with a file changed, which is then put back."""
        path = self.root / file
        content = path.read_text()
        assert old in content, f"{old!r} is not in {file}"
        path.write_text(content.replace(old, new, 1))
        try:
            return self.planned()
        finally:
            path.write_text(content)


def jobs(printed: str) -> dict[str, int]:
    """Rules and counts of the first table that Snakemake prints."""
    table = printed.partition("Job stats:")[2].partition("\n\n")[0]
    counts = dict(re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE))
    return {rule: int(count) for rule, count in counts.items() if rule != "total"}


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a results folder but logs and benchmarks, by its name below the folder."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {
        str(name): path.read_bytes()
        for name, path in sorted(files.items())
        if name.parts[0] not in ("logs", "benchmarks")
    }


def plan_names(results: Path) -> tuple[Path, Path]:
    """Folder of the one group of works, and of the one run."""
    [work] = (results / "work").iterdir()
    [run] = results.glob("QWEN3_32B_isl3000_osl512_ttft1000_tpot10_*")
    return work, run


def reads(root: Path) -> list[tuple[str, str]]:
    """Process and data file of each time that the first run opened one."""
    return [tuple(line.split(" ", 1)) for line in (root / "reads").read_text().splitlines()]


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Repository:
    return copied(tmp_path_factory.mktemp("repository"))


def copied(root: Path) -> Repository:
    """Copy the repository into an empty folder; its measured tables are links."""
    shutil.copy(paths.ROOT / "Snakefile", root)
    for folder in ("rules", "scripts", "config", "profiles"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(paths.ROOT / folder, root / folder, ignore=ignored)
    (root / "perf_db").mkdir()
    for path in paths.PERF_DB.iterdir():
        if path == paths.TABLES:
            (root / "perf_db" / path.name).symlink_to(path)
        else:
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, root / "perf_db" / path.name)
    (root / "hooks").mkdir()
    (root / "hooks" / "sitecustomize.py").write_text(NOTE_READS)
    return Repository(root)


@pytest.fixture(scope="module")
def first_dry_run(repository) -> subprocess.CompletedProcess:
    return repository.snakemake("--dry-run")


@pytest.fixture(scope="module")
def answered(repository, first_dry_run) -> subprocess.CompletedProcess:
    """The guide's example, answered into `results`."""
    done = repository.snakemake(NOTE_READS=str(repository.root / "reads"))
    assert done.returncode == 0, done.stderr
    return done


def test_dry_run_lists_one_job_per_stage_and_group(repository, first_dry_run):
    assert jobs(first_dry_run.stdout + first_dry_run.stderr) == FIRST_RUN


def test_run_ends_with_the_report(repository, answered):
    _, run = plan_names(repository.root / "results")
    assert answered.stdout.strip() == (run / "report.txt").read_text().strip()
    assert "Best Experiment Chosen: disagg" in answered.stdout


def test_run_leaves_the_documented_files(repository, answered):
    work, run = plan_names(repository.root / "results")
    assert {path.name for path in work.iterdir()} == {
        "candidates.parquet",
        "estimates.parquet",
        "operators.parquet",
    }
    expected = {"frontier.parquet", "best.parquet", "status.parquet", "comparison.parquet"}
    expected |= {"breakdown.parquet", "report.txt", "pareto_frontier.png", "report.html"}
    expected |= {f"report/{t}.{kind}" for t in paths.REPORT_TABLES for kind in ("csv", "parquet")}
    expected |= {f"report/{name}.png" for name in paths.REPORT_SLIDES}
    for experiment in ("agg", "disagg"):
        expected |= {f"{experiment}/{name}" for name in ("config.yaml", "pareto.csv")}
        expected |= {f"{experiment}/best_config_topn.csv"}
        expected |= {f"{experiment}/top{rank}/generator_config.yaml" for rank in (1, 2, 3)}
        roles = ("agg",) if experiment == "agg" else ("prefill", "decode")
        names = {"k8s_deploy.yaml", "bench_run.sh", "verify.md"}
        names |= {f"{role}_config.yaml" for role in roles}
        names |= {f"node_{node}_run.sh" for node in range(4)}
        expected |= {
            f"{experiment}/top{rank}/{experiment}/{name}" for rank in (1, 2, 3) for name in names
        }
    found = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert expected <= found
    assert not [name for name in found if Path(name).name.startswith(".")]


def test_every_job_has_a_log_and_a_benchmark(repository, answered):
    results = repository.root / "results"
    work, run = plan_names(results)
    of_jobs = {f"enumerate/{work.name}", f"estimate/{work.name}"}
    [chunk] = (results / "answers").iterdir()
    of_jobs |= {f"pareto/{chunk.name}", f"gather/{run.name}"}
    of_jobs |= {f"compare/{run.name}", f"report/{run.name}"}
    of_jobs |= {f"generate/{run.name}/{name}" for name in ("agg", "disagg")}
    for folder, suffix in (("logs", ".log"), ("benchmarks", ".tsv")):
        files = (results / folder).rglob(f"*{suffix}")
        named = {str(file.relative_to(results / folder)).removesuffix(suffix) for file in files}
        assert named == of_jobs
    log = (results / "logs" / "estimate" / f"{work.name}.log").read_text()
    rows = pq.read_metadata(work / "estimates.parquet").num_rows
    assert f"{rows} estimates" in log
    assert log.splitlines()[-1].endswith("done")


def test_parquet_has_its_schema_and_says_what_it_was_made_from(repository, answered):
    work, run = plan_names(repository.root / "results")
    columns = {
        work / "candidates.parquet": schemas.CANDIDATES,
        work / "estimates.parquet": schemas.ESTIMATES,
        work / "operators.parquet": schemas.OPERATORS,
        run / "frontier.parquet": schemas.DEPLOYMENTS,
        run / "best.parquet": schemas.DEPLOYMENTS,
        run / "breakdown.parquet": schemas.BREAKDOWN,
        run / "status.parquet": schemas.STATUS,
        run / "comparison.parquet": schemas.COMPARISON,
    }
    for file, schema in columns.items():
        found = pq.read_schema(file)
        assert found.remove_metadata().equals(schema), file
        metadata = {key.decode(): value.decode() for key, value in found.metadata.items()}
        assert metadata["paretoserve.schema"] == file.stem
        assert metadata["paretoserve.version"] == "0.1.0"
        for name in ("experiments", "perf_db", "code"):
            assert re.fullmatch("[0-9a-f]{16}", metadata[f"paretoserve.{name}"]), (file, name)


def test_jobs_are_threads_of_one_process(repository, answered):
    readers = {process for process, path in reads(repository.root) if path.endswith(".parquet")}
    assert len(readers) == 1


def test_second_run_has_nothing_to_do(repository, answered):
    done = repository.snakemake()
    assert done.returncode == 0
    assert "Nothing to be done" in done.stderr
    assert done.stdout == ""


def test_same_question_gives_the_same_bytes(repository, answered):
    done = repository.snakemake("--config", "results=again")
    assert done.returncode == 0, done.stderr
    assert content(repository.root / "again") == content(repository.root / "results")


def test_command_line_leaves_the_same_bytes(repository, answered):
    question = "cli default --model QWEN3_32B --total_gpus 32 --system h200_sxm"
    load = "--isl 3000 --osl 512 --ttft 1000 --tpot 10 --backend_version 1.0.0rc3"
    command = [*question.split(), *load.split(), "--save_dir", "direct"]
    done = repository.run([sys.executable, "-m", "paretoserve", *command])
    assert done.returncode == 0, done.stderr
    assert content(repository.root / "direct") == content(repository.root / "results")


QUICK = ("hetero_disagg.yaml",)


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(path.name, marks=[] if path.name in QUICK else pytest.mark.slow)
        for path in sorted(paths.EXPERIMENTS.glob("*.yaml"))
    ],
)
def test_every_experiment_file_leaves_the_same_bytes_both_ways(repository, file):
    """Two of them here, all under `slow`."""
    asked, name = f"config/experiments/{file}", Path(file).stem
    workflow = repository.snakemake("--config", f"experiments={asked}", f"results=flow_{name}")
    assert workflow.returncode == 0, workflow.stderr
    command = ["cli", "exp", "--yaml_path", asked, "--save_dir", f"cli_{name}"]
    direct = repository.run([sys.executable, "-m", "paretoserve", *command])
    assert direct.returncode == 0, direct.stderr
    found = content(repository.root / f"cli_{name}")
    assert len(found) > 10
    assert found == content(repository.root / f"flow_{name}")
    assert direct.stdout.strip() == workflow.stdout.strip()


def test_another_sla_keeps_the_estimates(repository, answered):
    experiments = yaml.safe_load((repository.root / EXAMPLE).read_text())
    for name in ("agg", "disagg"):
        experiments[name]["tpot"] = 15
    (repository.root / "slower.yaml").write_text(yaml.safe_dump(experiments))
    assert repository.planned("--config", "experiments=slower.yaml") == FROM_PARETO


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("scripts/paretoserve/report/plots.py", FROM_COMPARE),
        ("scripts/paretoserve/report/tables.py", {"report": 1, "all": 1}),
        ("scripts/paretoserve/deploy/generator_config.py", {"generate": 2, "all": 1}),
        ("scripts/compare.py", FROM_COMPARE),
        ("scripts/paretoserve/deploy/checking.py", {"generate": 2, "all": 1}),
        ("scripts/paretoserve/stages/answering.py", FROM_PARETO),
        ("scripts/paretoserve/stages/estimating.py", FROM_ESTIMATE),
        ("scripts/paretoserve/memory.py", FIRST_RUN),
        ("scripts/paretoserve/cli.py", {}),
    ],
)
def test_edit_of_the_library_runs_what_it_could_change(repository, answered, file, expected):
    assert repository.planned_after(file, '"""', '"""Edited. ') == expected


def test_edit_of_the_settings_runs_everything(repository, answered):
    assert repository.planned_after("config/estimation.yaml", "\n", "\n# Edited.\n") == FIRST_RUN


def test_another_calibration_keeps_the_estimates(repository, answered):
    file = "config/calibration.yaml"
    assert repository.planned_after(file, "\n", "\n# Edited.\n") == FROM_PARETO


@pytest.mark.parametrize(
    "file", ["config/deploy.yaml", "scripts/paretoserve/deploy/templates/common/verify.md.j2"]
)
def test_edit_of_the_deployment_files_runs_generate(repository, answered, file):
    expected = {"generate": 2, **FROM_COMPARE}
    assert repository.planned_after(file, "\n", "\n\n") == expected


@pytest.mark.parametrize(
    "file", ["config/prices.yaml", "scripts/paretoserve/report/templates/report.css"]
)
def test_edit_of_prices_and_the_page_runs_the_report(repository, answered, file):
    assert repository.planned_after(file, "\n", "\n\n") == {"report": 1, "all": 1}


@pytest.mark.parametrize(
    ("system", "version", "expected"),
    [  # Other versions on the system may stand in for what this one lacks.
        ("h200_sxm", "1.0.0rc3", FIRST_RUN),
        ("h200_sxm", "0.20.0", FIRST_RUN),
        ("h100_sxm", "1.0.0rc3", {}),
    ],
)
def test_other_measurements_run_what_read_them(repository, answered, system, version, expected):
    entry = manifest.load().table_entry(system, "trtllm", version, "gemm")
    sha256 = entry["sha256"]
    assert repository.planned_after("perf_db/manifest.json", sha256, sha256[::-1]) == expected


def test_baseline_must_be_another_run_with_a_report(repository, answered):
    _, run = plan_names(repository.root / "results")
    for folder, said in (
        (run, "is the folder that this run writes; copy it first"),
        (repository.root / "config", "is no folder of a run with a report"),
    ):
        done = repository.snakemake("--dry-run", "--config", f"baseline={folder}")
        assert done.returncode == 1
        [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert said in line


def test_baseline_runs_the_report_again_and_nothing_changed(repository, answered):
    _, run = plan_names(repository.root / "results")
    earlier = repository.root / "earlier"
    shutil.copytree(run, earlier)
    planned = repository.planned("--config", f"baseline={earlier}")
    assert planned == {"report": 1, "all": 1}


def test_moved_dates_run_nothing(repository, answered):
    """A fresh clone has new dates on every file."""
    for folder in ("config", "scripts", "rules", "perf_db"):
        for path in (repository.root / folder).rglob("*"):
            if path.is_file() and not path.is_symlink():
                path.touch()
    assert repository.planned() == {}


def test_digests_cover_every_file_that_was_read(repository, answered):
    """Files that jobs read must be in a digest, or the plan must hold what they say."""
    copy = repository.root
    read = {str(Path(path).relative_to(copy)) for _, path in reads(copy)}
    in_digest = {
        str(Path("perf_db") / entry["path"])
        for key, entry in manifest.load().tables.items()
        if key[0] == "h200_sxm"
    }
    settings = (
        *provenance.SETTINGS,
        *provenance.SIMULATION_SETTINGS,
        *provenance.DEPLOY_SETTINGS,
        *provenance.REPORT_SETTINGS,
    )
    in_digest |= {str(path.relative_to(paths.ROOT)) for path in settings}
    in_digest |= {"perf_db/operators.yaml", "perf_db/systems/h200_sxm.yaml"}
    in_digest |= {"perf_db/screening.json"}
    in_plan = {"config/config.yaml", "config/defaults.yaml", EXAMPLE}
    in_plan |= {"config/schemas/experiment.schema.json", "perf_db/manifest.json"}
    # To find a name, all names are read; what is found under it is in the plan or the digest.
    catalogues = {name for name in read if name.startswith(("config/models/", "perf_db/systems/"))}
    assert read - in_digest - in_plan - catalogues == set()
    assert {"config/estimation.yaml", "perf_db/operators.yaml", EXAMPLE} <= read
    assert any(name.endswith("1.0.0rc3/gemm.parquet") for name in read)


def library_modules(path: Path) -> set[Path]:
    """Modules that a file imports, by Python's own parser."""
    package = list(path.relative_to(paths.ADAPTERS).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            outer = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, [outer, node.module]))
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    files = set()
    for name in found:
        parts = name.split(".")
        if parts[0] != "paretoserve":
            continue
        for count in range(1, len(parts) + 1):
            stem = paths.ADAPTERS.joinpath(*parts[:count])
            candidates = (stem / "__init__.py", stem.with_name(f"{stem.name}.py"))
            files |= {candidate for candidate in candidates if candidate.is_file()}
    return files


@pytest.mark.parametrize("stage", paths.stages())
def test_digest_follows_the_imports_that_python_sees(stage):
    reached, pending = set(), [paths.adapter_file(stage)]
    while pending:
        new = library_modules(pending.pop()) - reached
        reached |= new
        pending += new
    assert len(reached) > 10
    assert provenance.modules_reached(paths.adapter_file(stage)) == reached


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            "one: {serving_mode: agg, model_name: QWEN3_32, total_gpus: 8, system_name: h200_sxm}",
            "did you mean 'QWEN3_32B'",
        ),
        (
            "one: {serving_mode: agg, model_name: QWEN3_32B, total_gpus: 0, system_name: h200_sxm}",
            "total_gpus",
        ),
        ("one: [", "is not valid YAML"),
        (None, "cannot be read"),
    ],
)
def test_bad_experiments_are_refused_before_any_job(repository, content, sentence):
    name = "bad.yaml" if content else "absent.yaml"
    if content:
        (repository.root / name).write_text(content)
    done = repository.snakemake("--config", f"experiments={name}", "results=refused")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) >= 1
    assert errors[0].startswith(f"error: {name}")
    assert sentence in errors[0]
    assert "Traceback" not in done.stderr
    assert not (repository.root / "refused").exists()


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("experiment=x.yaml", "unknown key 'experiment' (did you mean 'experiments'?)"),
        ("results=", "results is None"),
    ],
)
def test_bad_configuration_is_refused(repository, setting, sentence):
    done = repository.snakemake("--config", setting)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_experiment_without_an_answer_is_a_row_not_a_failure(repository, answered):
    experiments = yaml.safe_load((repository.root / EXAMPLE).read_text())
    experiments["agg"]["tpot"] = 0.5
    (repository.root / "hopeless.yaml").write_text(yaml.safe_dump(experiments))
    done = repository.snakemake("--config", "experiments=hopeless.yaml", "results=half")
    assert done.returncode == 0, done.stderr
    [status] = (repository.root / "half").glob("*/status.parquet")
    rows = {row["experiment"]: row for row in pq.read_table(status).to_pylist()}
    assert rows["disagg"]["status"] == "ok"
    assert rows["agg"]["status"] == "no_feasible"
    assert "tpot" in rows["agg"]["reason"]
    assert rows["agg"]["reason"] in " ".join(done.stdout.split())
    assert not list(status.parent.glob("agg/top*"))


def test_works_from_another_folder(repository, tmp_path):
    done = repository.snakemake(
        "--dry-run", "--snakefile", str(repository.root / "Snakefile"), "--directory", str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert jobs(done.stdout + done.stderr) == FIRST_RUN


def test_every_key_is_explained():
    explained = (paths.CONFIG / "README.md").read_text()
    schema = yaml.safe_load(paths.EXPERIMENT_SCHEMA.read_text())

    def keys(part) -> set[str]:
        if not isinstance(part, dict):
            return set()
        named = set(part.get("properties", ()))
        return named.union(*(keys(value) for value in part.values()))

    named = keys(schema) | set(yaml.safe_load((paths.CONFIG / "config.yaml").read_text()))
    assert len(named) > 40
    assert [name for name in sorted(named - {"exps"}) if f"`{name}`" not in explained] == []


def test_calibrate_is_asked_for_by_name(repository, first_dry_run):
    assert repository.planned("calibrate") == {"calibrate": 1}
    done = repository.snakemake("--dry-run", "calibrate", "--config", "measurements=none.csv")
    assert done.returncode == 1
    assert "none.csv" in done.stdout + done.stderr


@pytest.mark.slow
def test_calibrate_fits_to_measurements_of_a_user(repository):
    rows = pq.read_table(paths.MEASUREMENTS).to_pylist()
    few = [
        row for row in rows if row["backend"] == "vllm" and row["model_path"] == "Qwen/Qwen3-32B"
    ][:6]
    pq.write_table(pa.Table.from_pylist(few), repository.root / "few.parquet")
    setting = ("--config", "measurements=few.parquet", "results=fitted")
    done = repository.snakemake("calibrate", *setting)
    assert done.returncode == 0, done.stderr
    folder = repository.root / "fitted" / "calibration"
    fitted, before = calibration(folder / "calibration.yaml"), calibration()
    assert fitted.engines["vllm"] != before.engines["vllm"]
    assert fitted.engines["trtllm"] == before.engines["trtllm"]
    assert fitted.assumed == before.assumed
    held_out = pq.read_table(folder / "held_out.parquet")
    assert held_out["id"].to_pylist() == [row["id"] for row in few]
    assert "6 runs, 100.0% of them predicted" in (folder / "fit.txt").read_text()
    assert repository.planned("calibrate", *setting) == {}
