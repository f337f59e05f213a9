"""Sweeps: what a file expands to, how experiments are named, what is a mistake and what a row."""

import copy
import itertools
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from paretoserve import paths, planning
from paretoserve.errors import InputError
from paretoserve.experiments.loading import Source, load_files, read_file
from paretoserve.experiments.plan import make_plan
from paretoserve.experiments.resolving import resolve, resolve_all
from paretoserve.experiments.sweeps import expand, is_sweep
from paretoserve.perfdb.catalogue import Catalogue
from paretoserve.question import question_of, read_question

CATALOGUE = Catalogue()
SWEEP = yaml.safe_load("""
experiment: {total_gpus: 16, ttft: 2000}
axes:
  model_name: [QWEN3_32B, Qwen/Qwen3-8B]
  system_name: [h200_sxm]
  workload: [chat, [3000, 512]]
  serving_mode: [agg, disagg]
""")


def names(content) -> list[str]:
    return [raw.name for raw in expand(content, "sweep.yaml")]


def changed(**parts):
    content = copy.deepcopy(SWEEP)
    for key, value in parts.items():
        content[key] = {**content.get(key, {}), **value} if isinstance(value, dict) else value
    return content


def test_a_product_is_written_out_in_order():
    assert names(SWEEP) == [
        "QWEN3_32B.h200_sxm.chat.agg",
        "QWEN3_32B.h200_sxm.chat.disagg",
        "QWEN3_32B.h200_sxm.isl3000_osl512.agg",
        "QWEN3_32B.h200_sxm.isl3000_osl512.disagg",
        "Qwen3-8B.h200_sxm.chat.agg",
        "Qwen3-8B.h200_sxm.chat.disagg",
        "Qwen3-8B.h200_sxm.isl3000_osl512.agg",
        "Qwen3-8B.h200_sxm.isl3000_osl512.disagg",
    ]
    last = expand(SWEEP, "sweep.yaml")[-1]
    assert last.fields == {
        "total_gpus": 16,
        "ttft": 2000,
        "model_name": "Qwen/Qwen3-8B",
        "system_name": "h200_sxm",
        "isl": 3000,
        "osl": 512,
        "serving_mode": "disagg",
    }


@pytest.mark.parametrize(
    ("axis", "values", "expected"),
    [
        ("sla", [[500, 20], {"ttft": 2000, "tpot": 50.5}], ["ttft500_tpot20", "ttft2000_tpot50.5"]),
        ("sla", [{"name": "fast", "tpot": 5}], ["fast"]),
        ("total_gpus", [8, 64], ["8gpus", "64gpus"]),
        ("profiles", ["fp8_default", None], ["fp8_default", "own_precision"]),
        ("config.nextn", [0, 1], ["nextn0", "nextn1"]),
        ("enable_wide_ep", [True, False], ["enable_wide_ep_on", "enable_wide_ep_off"]),
        ("config.worker_config.tp_list", [[1, 2]], ["tp_list1-2"]),
        ("backend_version", ["1.0.0rc3"], ["1.0.0rc3"]),
        (
            "pools",
            [
                {"system_name": "b200_sxm", "decode_system_name": "h200_sxm"},
                {"name": "same", "system_name": "h200_sxm"},
            ],
            ["b200_sxm.h200_sxm", "same"],
        ),
    ],
)
def test_values_are_named_readably(axis, values, expected):
    content = {
        "experiment": {
            "model_name": "QWEN3_32B",
            "total_gpus": 8,
            "serving_mode": "agg",
            "system_name": "h200_sxm",
        },
        "axes": {axis: values},
    }
    assert names(content) == expected


@pytest.mark.parametrize("axis", list(SWEEP["axes"]))
@pytest.mark.parametrize("at", [0, 1])
def test_another_value_renames_nobody(axis, at):
    """Wherever it is inserted: the same names ask the same as before."""
    value = {
        "model_name": "LLAMA3.1_8B",
        "system_name": "b200_sxm",
        "workload": "code",
        "serving_mode": "agg",
    }[axis]
    before = copy.deepcopy(SWEEP)
    if value in before["axes"][axis]:
        before["axes"][axis].remove(value)
    after = copy.deepcopy(before)
    after["axes"][axis].insert(at, value)
    old, new = (question_of(one, Source("s.yaml"), CATALOGUE) for one in (before, after))
    asked = {one.name: one for one in new.experiments}
    assert len(asked) > len(old.experiments)
    assert [asked[one.name] for one in old.experiments] == list(old.experiments)
    kept = [one.name for one in new.experiments if one.name in {o.name for o in old.experiments}]
    assert kept == [one.name for one in old.experiments]


def test_excluded_lines_are_left_out():
    content = changed(
        exclude=[
            {"model_name": "QWEN3_32B", "workload": "chat"},
            {"serving_mode": ["disagg"], "isl": 3000},
        ]
    )
    assert names(content) == [
        "QWEN3_32B.h200_sxm.isl3000_osl512.agg",
        "Qwen3-8B.h200_sxm.chat.agg",
        "Qwen3-8B.h200_sxm.chat.disagg",
        "Qwen3-8B.h200_sxm.isl3000_osl512.agg",
    ]


def test_included_lines_are_added():
    line = {"workload": "code", "model_name": "QWEN3_32B", "system_name": "l40s"}
    content = changed(include=[{**line, "serving_mode": "agg", "tpot": 200}])
    *product, added = expand(content, "sweep.yaml")
    assert len(product) == 8
    assert added.name == "QWEN3_32B.l40s.code.agg.tpot200"
    assert (added.fields["isl"], added.fields["tpot"], added.fields["ttft"]) == (4000, 200, 2000)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            {"axes": {"model_nam": ["QWEN3_32B"]}},
            "sweep.yaml, axes.model_nam[0]: got 'QWEN3_32B', but 'model_nam' is no field of an "
            "experiment (did you mean 'model_name'?); an axis of any other name holds mappings of "
            "fields",
        ),
        (
            {"axes": {"workload": ["chatt"]}},
            "sweep.yaml, axes.workload[0]: no workload 'chatt' (did you mean 'chat'?); "
            "config/workloads.yaml has " + ", ".join(yaml.safe_load(paths.WORKLOADS.read_text())),
        ),
        (
            {"axes": {"tpot": [10, 0]}},
            "sweep.yaml, axes.tpot[1], field 'tpot': got 0, allowed more than 0",
        ),
        (
            {"axes": {"sla": [[500]]}},
            "sweep.yaml, axes.sla[0]: got [500], must be a list [ttft, tpot] or a mapping of "
            "fields",
        ),
        (
            {"experiment": {"tpott": 3}},
            "sweep.yaml, experiment: 'tpott' is no field of an experiment (did you mean 'tpot'?)",
        ),
        (
            {"experiment": {"config": {"nextn": 9}}},
            "sweep.yaml, experiment, field 'config.nextn': got 9, allowed 0..5",
        ),
        (
            {"experiment": {"config": {"next": 1}}},
            "sweep.yaml, experiment, field 'config': unknown key 'next' (did you mean 'nextn'?)",
        ),
        (
            {"axes": {"tpot": [10, 10.0]}},
            "sweep.yaml, axes.tpot: values 0 and 1 are both named 'tpot10'; remove one, or write "
            "mappings with a `name` of their own",
        ),
        (
            {"axes": {"isl": [1000]}},
            "sweep.yaml, axes.isl: sets isl, as axis workload does",
        ),
        (
            {"exclude": [{"system_name": "l40s"}]},
            "sweep.yaml, exclude[0]: no experiment has these values",
        ),
        (
            {"exclude": [{"gpu": "l40s"}]},
            "sweep.yaml, exclude[0]: 'gpu' is neither an axis nor a field of an experiment",
        ),
        ({"axis": {}}, "sweep.yaml: unknown key 'axis' (did you mean 'axes'?)"),
        ({"exclude": 3}, "sweep.yaml, exclude: got 3, must be a list"),
    ],
)
def test_a_mistake_is_one_sentence(parts, said):
    with pytest.raises(InputError) as error:
        expand(changed(**parts), "sweep.yaml")
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"model_name": ["QWEN3_32B", "QWEN3_33B"]}, "did you mean 'QWEN3_32B'"),
        ({"system_name": ["h20_sxm"]}, "field 'system_name': unknown system 'h20_sxm'"),
        ({"backend_version": ["1.0.0rc3", "1.0.0rc33"]}, "backend_version: got '1.0.0rc33'"),
    ],
)
def test_a_name_that_does_not_exist_is_a_mistake(parts, said):
    with pytest.raises(InputError) as error:
        question_of(changed(axes=parts), Source("sweep.yaml"), CATALOGUE)
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_what_was_not_measured_is_refused_with_its_reason():
    axes = {"system_name": ["h200_sxm", "b60"], "backend_name": ["trtllm", "vllm"]}
    content = changed(axes=axes)
    content["axes"]["model_name"] = ["QWEN3_32B"]
    question = question_of(content, Source("b.yaml"), CATALOGUE)
    assert len(question.experiments) + len(question.refused) == 16
    assert {one.name for one in question.refused} == {
        f"QWEN3_32B.b60.{load}.{mode}.trtllm"
        for load, mode in itertools.product(("chat", "isl3000_osl512"), ("agg", "disagg"))
    }
    [reason] = {one.reason for one in question.refused}
    assert reason.startswith("backend_name: no measured tables of trtllm for QWEN3_32B on b60")


def test_any_engine_is_one_experiment_of_each():
    content = changed(experiment={"backend_name": "any"}, axes={"system_name": ["b60"]})
    question = question_of(content, Source("b.yaml"), CATALOGUE)
    assert {one.name.rpartition(".")[2] for one in question.experiments} == {"vllm"}
    assert len(question.experiments) * 2 == len(question.refused) == 16


def test_fields_of_the_other_mode_are_left_out():
    config = {"worker_config": {"tp_list": [4]}, "decode_worker_config": {"tp_list": [8]}}
    content = changed(experiment={"config": config, "decode_system_name": "h100_sxm"})
    experiments = question_of(content, Source("s.yaml"), CATALOGUE).experiments
    assert len(experiments) == 8
    lists = {worker.role: worker.tp_list for one in experiments for worker in one.workers}
    assert lists == {"agg": (4,), "prefill": (1, 2, 4, 8), "decode": (8,)}


@pytest.mark.parametrize("file", sorted(paths.SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shared_resolution_is_that_of_each(file):
    """Every 97th experiment of the shipped sweeps, resolved by itself."""
    raws = {raw.name: raw for raw in expand(read_file(file), str(file))}
    question = read_question(file, CATALOGUE)
    assert len(question.experiments) + len(question.refused) == len(raws)
    for one in question.experiments[::97]:
        assert resolve(raws[one.name], CATALOGUE) == one


def test_shipped_sweeps_are_as_large_as_they_say():
    asked = {file.stem: read_question(file, CATALOGUE) for file in paths.SWEEPS.glob("*.yaml")}
    assert len(asked["tutorial"].experiments) == 3 * 4 * 4 * 3 * 2
    ten_thousand = asked["ten_thousand"]
    assert len(ten_thousand.experiments) + len(ten_thousand.refused) == 10 * 5 * 2 * 10 * 10


def test_an_experiment_file_is_no_sweep():
    for file in paths.EXPERIMENTS.glob("*.yaml"):
        assert not is_sweep(read_file(file))
    assert not is_sweep({"axes": {"serving_mode": "agg"}})


# ------------------------------------------------------------------------------ groups and chunks


def plan_of(content, **options):
    return make_plan(*question_of(content, Source("s.yaml"), CATALOGUE), **options)


def parts_of(plan):
    return {group.id for group in plan.groups}, {chunk.id for chunk in plan.chunks}


def test_experiments_that_differ_in_sla_and_cluster_share_all_works():
    axes = {"sla": [[500, 20], [1000, 50], [9000, 90]], "total_gpus": [16, 32]}
    alone, many = plan_of(SWEEP), plan_of(changed(axes=axes))
    assert len(many.ask.experiments) == 6 * len(alone.ask.experiments)
    assert {w for g in many.groups for w in g.works} == {w for g in alone.groups for w in g.works}


@pytest.mark.parametrize("chunk_size", [1, 7, "auto", 1000])
def test_every_experiment_and_work_is_in_one_part(chunk_size):
    plan = plan_of(changed(axes={"tpot": list(range(5, 45))}), chunk_size=chunk_size)
    in_chunks = [one.name for chunk in plan.chunks for one in chunk.experiments]
    assert sorted(in_chunks) == sorted(one.name for one in plan.ask.experiments)
    works = [work.id for group in plan.groups for work in group.works]
    assert sorted(works) == sorted(plan.ask.group_of_work)
    most = {"auto": 20, 1000: 320}.get(chunk_size, chunk_size)
    assert max(len(chunk.experiments) for chunk in plan.chunks) <= most
    for chunk in plan.chunks:
        assert set(chunk.groups) <= {group.id for group in plan.groups}


def test_what_was_together_stays_together():
    before = plan_of(changed(axes={"tpot": [10, 20, 30]}))
    groups, chunks = parts_of(before)
    for axes in (
        {"tpot": [5, 10, 20, 25, 30]},
        {"tpot": [10, 20, 30], "system_name": ["b200_sxm", "h200_sxm"]},
        {"tpot": [10, 20, 30], "workload": ["code", "chat", [3000, 512]]},
        {"tpot": [10, 20, 30], "model_name": ["LLAMA3.1_8B", "QWEN3_32B", "Qwen/Qwen3-8B"]},
    ):
        after = plan_of(changed(axes=axes), earlier=[before.division])
        assert parts_of(after)[0] >= groups
        assert parts_of(after)[1] >= chunks
        anew = [one for c in after.chunks if c.id not in chunks for one in c.experiments]
        known = {one.digest for one in before.ask.experiments}
        assert not [one.name for one in anew if one.digest in known]
        assert len(anew) + len(known) == len(after.ask.experiments)


def test_the_same_question_is_divided_the_same_way():
    first = plan_of(SWEEP)
    assert parts_of(plan_of(SWEEP, earlier=[first.division])) == parts_of(first)
    assert plan_of(SWEEP).division == first.division


def test_few_experiments_are_one_chunk():
    for file in paths.EXPERIMENTS.glob("*.yaml"):
        experiments = resolve_all(load_files([Path(file)]), CATALOGUE)
        assert len(make_plan(experiments).chunks) == 1


@pytest.mark.parametrize(("values", "count"), [([1, None, 3], 2), ([None, None], 0), ([], 0)])
def test_simulated_deployments_are_counted_by_the_footer(tmp_path, values, count):
    """Of a sweep that is not simulated the whole column is null, which has no statistics."""
    file = tmp_path / "best.parquet"
    pq.write_table(pa.table({"sim_clients": pa.array(values, pa.int32())}), file)
    assert planning._values(file, "sim_clients") == count
    assert planning._values(file, "other") == planning._values(tmp_path / "gone", "other") == 0
