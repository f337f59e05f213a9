"""The command line: the guide's flags, the files it leaves, and how it ends without an answer."""

import fcntl
import os
import pty
import resource
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import yaml

from paretoserve import __version__, paths
from paretoserve.cli import main
from paretoserve.experiments.loading import COMMAND_LINE

ASKED = ["--model", "QWEN3_32B", "--total_gpus", "32", "--system", "h200_sxm"]
GUIDE = ["--ttft", "1000", "--tpot", "10", "--isl", "3000", "--osl", "512"]
VERSION = ["--backend_version", "1.0.0rc3"]
EXAMPLE = ["cli", "default", *ASKED, *GUIDE, *VERSION]


# What the tests' own terminal and settings would change.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}


def run(*argv: object, env: dict[str, str] | None = None, **how) -> subprocess.CompletedProcess:
    """Run the program as a user would, without a terminal."""
    command = [sys.executable, "-m", "paretoserve", *map(str, argv)]
    env = {**ENVIRONMENT, **(env or {})}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, **how)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    """The guide's example with --save_dir: what was printed, and the folder of the run."""
    folder = tmp_path_factory.mktemp("saved")
    done = run(*EXAMPLE, "--save_dir", folder)
    [run_folder] = folder.glob("QWEN3_32B_*")
    return done, run_folder


def test_example_prints_the_report_that_it_saves(saved):
    done, folder = saved
    assert done.returncode == 0
    assert done.stdout == (folder / "report.txt").read_text()
    assert done.stderr == f"results: {folder}\nreport: {folder}/report.html\n"
    assert "\033" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "Best Experiment Chosen: disagg at" in done.stdout


def test_example_leaves_the_guides_tree(saved):
    _, folder = saved
    assert folder.name.startswith("QWEN3_32B_isl3000_osl512_ttft1000_tpot10_")
    assert (folder / "pareto_frontier.png").stat().st_size > 0
    for experiment in ("agg", "disagg"):
        found = {
            str(file.relative_to(folder / experiment))
            for file in folder.glob(f"{experiment}/**/*.*")
        }
        assert found >= {"best_config_topn.csv", "config.yaml", "pareto.csv"}
        for rank in (1, 2, 3):
            text = (folder / experiment / f"top{rank}" / "generator_config.yaml").read_text()
            assert yaml.safe_load(text)["serving_mode"] == experiment
    assert not [*folder.parent.glob(".*")]


def test_saved_config_asks_the_same_question_again(saved, tmp_path):
    _, folder = saved
    config = folder / "disagg" / "config.yaml"
    done = run("cli", "exp", "--yaml_path", config, "--save-dir", tmp_path)
    assert done.returncode == 0
    [again] = tmp_path.glob("QWEN3_32B_*/disagg")
    for name in ("best_config_topn.csv", "pareto.csv", "config.yaml"):
        assert (again / name).read_bytes() == (folder / "disagg" / name).read_bytes()


def test_nothing_is_written_without_save_dir(tmp_path):
    done = run(*EXAMPLE, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert not [*tmp_path.iterdir()]


def on_terminal(columns: int, **environment: str) -> str:
    """Run the example on a terminal this wide and return what it shows."""
    shown, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "paretoserve", *EXAMPLE],
        stdout=terminal,
        env={**ENVIRONMENT, "TERM": "xterm", **environment},
    )
    os.close(terminal)
    text = b""
    try:
        while part := os.read(shown, 65536):
            text += part
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(shown)
    assert process.wait() == 0
    return text.decode()


def test_terminal_gets_colors_and_as_wide_a_table_as_it_can_show():
    text = on_terminal(250)
    assert "\033[1mdisagg Top Configurations: (Sorted by tokens/s/gpu)\033[0m" in text
    [header] = [line for line in text.splitlines() if "(p)workers" in line and "|" in line]
    assert "| Rank | tokens/s/gpu |" in header
    assert "(d)bs |" in header


def test_no_color_is_respected():
    text = on_terminal(100, NO_COLOR="1")
    assert "\033" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_unreachable_sla_says_what_would_help():
    done = run("cli", "default", *ASKED, *VERSION, "--tpot", "0.5")
    assert done.returncode == 3
    assert "Best Experiment Chosen: none" in done.stdout
    told = " ".join(done.stdout.split())
    assert "No answer for disagg: tpot 0.5 ms binds" in told
    assert "No answer for agg: tpot 0.5 ms binds" in told


def flags(**changed: object) -> list[str]:
    """Return the flags of a question with some of them changed."""
    asked = {"model": "QWEN3_32B", "total_gpus": 32, "system": "h200_sxm", **changed}
    return [part for flag, value in asked.items() for part in (f"--{flag}", str(value))]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"model": "QWEN3_33B"}, "--model: unknown model 'QWEN3_33B' (did you mean 'QWEN3_32B'?)"),
        ({"system": "h20_sxm"}, "--system: unknown system 'h20_sxm' (did you mean 'h200_sxm'?)"),
        ({"decode_system": "b20"}, "--decode_system: unknown system 'b20'"),
        ({"backend_version": "9.9"}, "--backend_version: got '9.9', measured for QWEN3_32B with"),
        ({"backend": "trtlm"}, "--backend: got 'trtlm', allowed trtllm, sglang, vllm"),
        ({"isl": 0}, "--isl: got 0, allowed 1"),
        ({"isl": -5}, "--isl: got -5, allowed 1"),
        ({"osl": 0}, "--osl: got 0, allowed 2"),
        ({"osl": -1}, "--osl: got -1, allowed 2"),
        ({"total_gpus": 0}, "--total_gpus: got 0, allowed 1"),
        ({"ttft": 0}, "--ttft: got 0.0, allowed more than 0"),
        ({"tpot": "nan"}, "--tpot: got nan, must be a finite number"),
        ({"top_n": 0}, "--top_n: got 0, allowed 1"),
        ({"sla_probability": 1.5}, "--sla_probability: got 1.5, allowed 0..1"),
    ],
)
def test_bad_flag_is_told_in_one_sentence(changed, told, tmp_path, capsys):
    save_dir = tmp_path / "results"
    assert main(["cli", "default", *flags(**changed, save_dir=save_dir)]) == 2
    printed, error = capsys.readouterr()
    assert printed == ""
    assert error.startswith(f"error: {told}")
    assert error.count("\n") == 1
    assert not save_dir.exists()


AGG_YAML = "a: {serving_mode: agg, model_name: QWEN3_32B, total_gpus: 8, system_name: h200_sxm%s}\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (AGG_YAML % ", istl: 100", "experiment 'a': unknown key 'istl' (did you mean 'isl'?)"),
        (AGG_YAML % ", isl: ten", "experiment 'a', field 'isl': got 'ten', must be an integer"),
        ("exps: [b]\n" + AGG_YAML % "", "field 'exps[0]': no experiment 'b'"),
        ("a: [\n", "is not valid YAML"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_bad_yaml_is_told_in_one_sentence(text, told, tmp_path, capsys):
    file, save_dir = tmp_path / "asked.yaml", tmp_path / "results"
    if text is not None:
        file.write_text(text)
    argv = ["cli", "exp", "--yaml_path", str(file), "--save_dir", str(save_dir)]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {file}")
    assert told in error
    assert error.count("\n") == 1
    assert not save_dir.exists()


def test_unreadable_table_is_told_in_one_sentence(tmp_path):
    home, save_dir = tmp_path / "home", tmp_path / "results"
    engine = Path("perf_db", "tables", "h200_sxm", "trtllm", "1.0.0rc3")
    (home / engine).mkdir(parents=True)
    intact = [file.name for file in (paths.ROOT / engine).iterdir() if file.name != "gemm.parquet"]
    for name in (
        "config",
        "scripts",
        "perf_db/systems",
        "perf_db/operators.yaml",
        "perf_db/manifest.json",
        "perf_db/screening.json",
        "perf_db/silicon",
        "perf_db/tables/h200_sxm/nccl",
        *(engine / name for name in intact),
    ):
        (home / name).symlink_to(paths.ROOT / name)
    broken = home / engine / "gemm.parquet"
    broken.write_bytes(b"PAR1 but no more")
    done = run(*EXAMPLE, "--save_dir", save_dir, env={"PARETOSERVE_HOME": str(home)})
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {broken} is not a readable Parquet file")
    assert done.stderr.count("\n") == 1
    assert not save_dir.exists()


def test_full_disk_leaves_nothing(tmp_path):
    # A limit on the size of files fails in the middle of a write, as a full disk does.
    save_dir = tmp_path / "results"
    limit = 8 * 1024
    done = run(
        *EXAMPLE,
        "--save_dir",
        save_dir,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"error: {save_dir}: File too large\n"
    assert not [*tmp_path.iterdir()]


def test_full_file_system_leaves_nothing(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        done = run(*EXAMPLE, "--save_dir", tmp_path / "results")
        assert done.returncode == 1
        assert done.stderr == f"error: {tmp_path / 'results'}: No space left on device\n"
        assert not [*tmp_path.iterdir()]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_failed_run_keeps_the_results_of_the_one_before(saved):
    _, folder = saved
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    limit = 8 * 1024
    done = run(
        *EXAMPLE,
        "--save_dir",
        folder.parent,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_save_dir_that_is_a_file_is_told(tmp_path):
    file = tmp_path / "results"
    file.write_text("mine")
    done = run(*EXAMPLE, "--save_dir", file)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {file}")
    assert done.stderr.count("\n") == 1
    assert file.read_text() == "mine"


def test_help_documents_every_flag(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["cli", "default", "-h"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for flag in (*COMMAND_LINE.flags.values(), "--save_dir", "--debug"):
        assert f" {flag} " in shown.split("options:")[1]
    for told in ("--ttft MS", "Default: 1000.0.", "Default: 20.0.", "Default: 4000."):
        assert told in shown
    for told in ("h200_sxm", "QWEN3_32B", "trtllm, sglang, vllm", "exit codes:"):
        assert told in shown


@pytest.mark.parametrize("name", ["paretoserve", "aiconfigurator"])
def test_program_is_called_what_it_was_called_as(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"/usr/bin/{name}", "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{name} {__version__}\n"


def test_unknown_flag_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["cli", "default", *ASKED, "--tpto", "10"])
    assert ended.value.code == 2
    assert (
        "error: unknown argument --tpto (did you mean '--tpot'?); see " in capsys.readouterr().err
    )


def test_own_table_is_imported_or_refused(tmp_path):
    home = tmp_path / "home"
    (home / "perf_db").mkdir(parents=True)
    for name in ("config", "perf_db/operators.yaml", "perf_db/systems"):
        (home / name).symlink_to(paths.ROOT / name)
    shutil.copy(paths.MANIFEST, home / "perf_db")
    file = tmp_path / "mine.csv"
    where = "--system h200_sxm --backend trtllm --version 1.3.0rc20+lab --operator gemm".split()

    file.write_text("kernel,dtype,n,k,m,latency_ms\nmine,fp8,10240,5120,64,-1\n")
    done = run("import-table", file, *where, env={"PARETOSERVE_HOME": str(home)})
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {file}")
    assert "row 1" in done.stderr
    assert "latency_ms" in done.stderr
    assert not (home / "perf_db" / "tables").exists()

    file.write_text("kernel,dtype,n,k,m,latency_ms\nmine,fp8,10240,5120,64,0.0231\n")
    done = run("import-table", file, *where, env={"PARETOSERVE_HOME": str(home)})
    assert done.returncode == 0, done.stderr
    assert done.stdout == "tables/h200_sxm/trtllm/1.3.0rc20+lab/gemm.parquet: 1 rows\n"
