"""`backend_name: any`: one experiment becomes one of each engine that can be asked."""

from pathlib import Path

import pytest
import yaml

from paretoserve import paths
from paretoserve.cli import main
from paretoserve.errors import InputError
from paretoserve.experiments.loading import Source, load_files, read_mapping
from paretoserve.experiments.plan import make_plan
from paretoserve.experiments.resolving import fields_of, resolve_all
from paretoserve.inprocess import run_in_process
from paretoserve.perfdb.catalogue import Catalogue

FILE = paths.EXPERIMENTS / "three_engines.yaml"
CATALOGUE = Catalogue()


def resolve(mapping: dict):
    return resolve_all(read_mapping(mapping, Source("file.yaml")), CATALOGUE)


def test_each_engine_answers_as_if_asked_alone():
    together = resolve_all(load_files([FILE]), CATALOGUE)
    assert [e.name for e in together] == ["agg.trtllm", "agg.sglang", "agg.vllm"]
    found = run_in_process(make_plan(together), None).best.to_pylist()
    fields = yaml.safe_load(FILE.read_text())["agg"]
    for engine in ("trtllm", "sglang", "vllm"):
        [alone] = resolve({"agg": {**fields, "backend_name": engine}})
        rows = run_in_process(make_plan([alone]), None).best.to_pylist()
        assert rows
        named = [{**row, "experiment": f"agg.{engine}"} for row in rows]
        assert [row for row in found if row["experiment"] == f"agg.{engine}"] == named


def test_saved_fields_ask_one_engine_again():
    for experiment in resolve_all(load_files([FILE]), CATALOGUE):
        [again] = resolve({experiment.name: fields_of(experiment)})
        assert again == experiment


def test_an_engine_that_was_not_measured_is_left_out_and_said(capsys):
    flags = "--model QWEN3_8B --total_gpus 8 --system b60 --backend any --ttft 9000 --tpot 90"
    assert main(["cli", "default", *flags.split()]) == 0
    report = " ".join(capsys.readouterr().out.split())
    assert "disagg.vllm Top Configurations" in report
    assert "agg.vllm Top Configurations" in report
    for engine in ("trtllm", "sglang"):
        assert f"agg.{engine}" not in report
        assert f"Left out: {engine}: --backend: no measured tables of {engine}" in report


def test_a_version_leaves_out_the_engines_that_do_not_have_it():
    fields = {**yaml.safe_load(FILE.read_text())["agg"], "backend_version": "0.5.14"}
    [one] = resolve({"a": fields})
    assert (one.name, one.workers[0].backend) == ("a.sglang", "sglang")
    assert [sentence.partition(":")[0] for sentence in one.left_out] == ["trtllm", "vllm"]


@pytest.mark.parametrize(
    ("changed", "lines"),
    [
        ({"model_name": "QWEN3_32"}, ["unknown model 'QWEN3_32' (did you mean 'QWEN3_32B'?)"]),
        ({"config": {"nextn": 1}}, ["got 1, but LLAMA3.1_8B has no layers"]),
        ({"backend_version": "9"}, ["with trtllm", "with sglang", "with vllm"]),
    ],
)
def test_what_no_engine_can_be_asked_is_refused_once_for_each_reason(changed, lines):
    fields = yaml.safe_load(FILE.read_text())["agg"]
    with pytest.raises(InputError) as error:
        resolve({"a": {**fields, **changed}})
    told = str(error.value).splitlines()
    assert len(told) == len(lines)
    for sentence, part in zip(told, lines, strict=True):
        assert sentence.startswith("file.yaml: experiment 'a', field '")
        assert part in sentence


def test_two_experiments_of_one_name_are_refused():
    fields = yaml.safe_load(FILE.read_text())["agg"]
    with pytest.raises(InputError, match=r"makes a second experiment 'agg\.vllm'; rename one"):
        resolve({"agg.vllm": {**fields, "backend_name": "vllm"}, "agg": fields})


def test_files_have_the_names_of_the_engines(tmp_path: Path, capsys):
    assert main(["cli", "exp", "--yaml_path", str(FILE), "--save_dir", str(tmp_path)]) == 0
    [run] = tmp_path.glob("LLAMA3.1_8B_*")
    folders = {path.name for path in run.iterdir() if path.is_dir()}
    assert folders >= {"agg.sglang", "agg.trtllm", "agg.vllm"}
    assert not any(name.startswith("agg") and "." not in name for name in folders)
