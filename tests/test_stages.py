"""From experiments to answers: the guide's example, and what is said when there is no answer."""

import copy
import re

import numpy as np
import pyarrow.compute as pc
import pytest

from paretoserve import schemas
from paretoserve.experiments.loading import (
    COMMAND_LINE,
    Source,
    default_mode_experiments,
    read_mapping,
)
from paretoserve.experiments.plan import make_plan
from paretoserve.experiments.resolving import resolve_all
from paretoserve.inprocess import run_in_process
from paretoserve.perfdb.catalogue import Catalogue
from paretoserve.stages.enumerating import enumerate_candidates
from paretoserve.stages.estimating import estimate
from paretoserve.stages.itemising import breakdown

GUIDE = {
    "disagg": {
        "serving_mode": "disagg",
        "model_name": "QWEN3_32B",
        "total_gpus": 32,
        "system_name": "h200_sxm",
        "backend_version": "1.0.0rc3",
        "isl": 3000,
        "osl": 512,
        "ttft": 1000,
        "tpot": 10,
    }
}
GUIDE["agg"] = GUIDE["disagg"] | {"serving_mode": "agg"}


def plan_of(mapping):
    return make_plan(resolve_all(read_mapping(copy.deepcopy(mapping), SOURCE), Catalogue()))


SOURCE = Source("test.yaml")


def answer(**changes):
    """Run the guide's two experiments with some fields changed."""
    return run_in_process(plan_of({n: {**e, **changes} for n, e in GUIDE.items()}), None)


@pytest.fixture(scope="module")
def guide():
    return answer()


def first(result, experiment):
    return next(
        row
        for row in result.best.to_pylist()
        if row["experiment"] == experiment and row["rank"] == 1
    )


def test_the_guides_example(guide):
    """The guide's-era peer: disagg 846 tokens/s/gpu as 4 x (4P1D), agg 595. The guide: 914."""
    disagg, agg = first(guide, "disagg"), first(guide, "agg")
    assert (disagg["prefill_workers"], disagg["prefill_tp"]) == (4, 1)
    assert (disagg["decode_workers"], disagg["decode_tp"]) == (1, 4)
    assert (disagg["replicas"], disagg["gpus_used"]) == (4, 32)
    assert disagg["tokens_per_s_per_gpu"] == pytest.approx(846, rel=0.1)
    assert agg["tokens_per_s_per_gpu"] == pytest.approx(595, rel=0.1)


def test_rows_are_consistent(guide):
    """Identities that hold for every deployment, recomputed from its own columns."""
    for table in (guide.frontier, guide.best):
        rows = table.to_pylist()
        assert rows
        for row in rows:
            assert row["gpus_used"] == row["replicas"] * row["gpus_per_replica"] <= 32
            assert row["concurrency"] == row["replicas"] * row["concurrency_per_replica"]
            assert row["tokens_per_s_per_user"] == pytest.approx(1e3 / row["tpot_ms"])
            per_gpu = row["request_rate_per_s"] * 512 / 32
            assert row["tokens_per_s_per_gpu"] == pytest.approx(per_gpu)
            assert row["meets_sla"] == (row["ttft_ms"] <= 1000 and row["tpot_ms"] <= 10)
            assert row["ttft_ms"] <= 1000
            # Little's law: nobody's requests stay longer than the concurrency allows.
            stay_s = (row["ttft_ms"] + 511 * row["tpot_ms"]) / 1e3
            assert row["request_rate_per_s"] * stay_s <= row["concurrency"] * 1.1
            if row["serving_mode"] == "disagg":
                gpus = sum(
                    row[f"{r}_workers"] * row[f"{r}_gpus_per_worker"] for r in ("prefill", "decode")
                )
                assert row["gpus_per_replica"] == gpus
    assert all(row["meets_sla"] for row in guide.best.to_pylist())


def test_best_beats_every_frontier_point_within_the_sla(guide):
    for name in ("disagg", "agg"):
        mine = guide.frontier.filter(pc.equal(guide.frontier["experiment"], name))
        within = mine.filter(mine["meets_sla"])
        most = pc.max(within["tokens_per_s_per_gpu"]).as_py()
        assert first(guide, name)["tokens_per_s_per_gpu"] == pytest.approx(most)


def test_top_rows_differ_in_their_layouts(guide):
    rows = [row for row in guide.best.to_pylist() if row["experiment"] == "disagg"]
    layouts = {
        tuple(row[f"{role}_{name}"] for role in ("prefill", "decode") for name in schemas.LAYOUT)
        for row in rows
    }
    assert len(layouts) == len(rows) == 3


@pytest.mark.parametrize(
    ("changes", "experiment", "said"),
    [
        ({"tpot": 2}, "disagg", r"tpot 2 ms binds: .* raise tpot to [0-9.]+ ms"),
        ({"ttft": 20}, "agg", r"ttft 20 ms binds: .* raise ttft to [0-9.]+ ms"),
        (
            {"ttft": 1, "tpot": 1},
            "agg",
            r"both bind: .* raise ttft to [0-9.]+ ms and tpot to [0-9.]+ ms",
        ),
    ],
)
def test_no_answer_says_what_binds_and_the_relaxation_helps(changes, experiment, said):
    result = answer(**changes)
    status = {row["experiment"]: row for row in result.status.to_pylist()}[experiment]
    assert status["status"] == "no_feasible"
    assert pc.match_substring_regex(status["reason"], said).as_py(), status["reason"]
    raised = dict(re.findall(r"(ttft|tpot) to ([0-9.]+) ms", status["reason"]))
    assert raised.keys() == changes.keys()
    helped = answer(**{name: float(limit) for name, limit in raised.items()})
    assert first(helped, experiment)["meets_sla"]


def test_model_larger_than_memory_says_so():
    result = answer(
        model_name="LLAMA3.1_405B", system_name="l40s", backend_version="1.0.0", total_gpus=8
    )
    for row in result.status.to_pylist():
        assert row["status"] == "no_feasible"
        assert "fits in memory" in row["reason"]
        assert row["out_of_memory"] > 0


def test_prefill_and_decode_on_different_systems():
    mapping = {
        "mixed": GUIDE["disagg"]
        | {
            "system_name": "b200_sxm",
            "decode_system_name": "h200_sxm",
            "backend_version": "1.3.0rc20",
            "tpot": 20,
        }
    }
    plan = plan_of(mapping)
    assert len(plan.groups) == 2
    row = first(run_in_process(plan, None), "mixed")
    alone = copy.deepcopy(mapping)
    alone["mixed"]["system_name"] = "h200_sxm"
    slower = first(run_in_process(plan_of(alone), None), "mixed")
    assert row["prefill_step_ms"] < slower["prefill_step_ms"]


def test_operators_add_up_to_their_steps():
    plan = plan_of(GUIDE)
    (group,) = plan.groups
    estimates, operators = estimate(group, enumerate_candidates(group))
    keys = ["work_id", "candidate_id", "step"]
    summed = operators.group_by(keys).aggregate([("ms", "sum")]).to_pylist()
    steps = {
        (row["work_id"], row["candidate_id"], step): row[f"{step}_step_ms"]
        for row in estimates.to_pylist()
        for step in ("prefill", "mixed", "decode")
        if row[f"{step}_step_ms"] is not None
    }
    assert len(summed) == len(steps)
    for row in summed:
        assert row["ms_sum"] == pytest.approx(steps[tuple(row[k] for k in keys)], rel=1e-5)
    shares = np.array([estimates[name].to_numpy() for name in schemas.SHARES])
    assert shares.sum(axis=0) == pytest.approx(np.ones(estimates.num_rows), abs=1e-5)


def test_breakdown_adds_up_to_the_steps_of_the_best(guide):
    summed = guide.breakdown.group_by(["experiment", "rank", "role", "step"]).aggregate(
        [("ms", "sum")]
    )
    found = {tuple(row.values())[:-1]: row["ms_sum"] for row in summed.to_pylist()}
    expected = {}
    for row in guide.best.to_pylist():
        name, rank = row["experiment"], row["rank"]
        for role in ("prefill", "decode"):
            expected[name, rank, role, role] = row[f"{role}_step_ms"]
        expected[name, rank, "agg", "decode"] = row["agg_step_ms"]
    expected = {key: ms for key, ms in expected.items() if ms is not None}
    mixed = {key for key in found if key[2:] == ("agg", "mixed")}
    assert len(mixed) == 3
    assert found.keys() - mixed == expected.keys()
    for key, ms in expected.items():
        assert found[key] == pytest.approx(ms, rel=1e-5)


def test_breakdown_reads_only_the_operators_of_best_deployments(guide):
    plan = plan_of(GUIDE)
    (group,) = plan.groups
    _, operators = estimate(group, enumerate_candidates(group))
    read = []

    def some(group_id, rows):
        assert group_id == group.id
        read.append(operators.filter(rows))
        return read[-1]

    table = breakdown(plan.ask.group_of_work, guide.best, some)
    assert table.equals(guide.breakdown)
    assert sum(part.num_rows for part in read) < operators.num_rows / 20
    nothing = guide.best.slice(0, 0)
    assert breakdown(plan.ask.group_of_work, nothing, some).equals(schemas.BREAKDOWN.empty_table())


def test_best_rows_say_what_their_memory_is_made_of(guide):
    for row in guide.best.to_pylist():
        roles = ("agg",) if row["serving_mode"] == "agg" else ("prefill", "decode")
        for role in roles:
            parts = ("weights", "kv_cache", "activations", "buffers")
            total = sum(row[f"{role}_{part}_gib"] for part in parts)
            assert total == pytest.approx(row[f"{role}_memory_gib"], rel=1e-5)
            assert total <= row[f"{role}_memory_limit_gib"]
            # 32.8e9 parameters in fp8, one byte each, over tp: the embedding and scales are small.
            weights = 32.8e9 / row[f"{role}_tp"] / row[f"{role}_pp"] / 2**30
            assert row[f"{role}_weights_gib"] == pytest.approx(weights, rel=0.1)


def test_default_mode_is_the_same_question():
    raws = default_mode_experiments(
        "QWEN3_32B",
        32,
        "h200_sxm",
        backend_version="1.0.0rc3",
        isl=3000,
        osl=512,
        ttft=1000.0,
        tpot=10.0,
    )
    experiments = resolve_all(read_mapping(raws, COMMAND_LINE), Catalogue())
    assert make_plan(experiments).run == plan_of(GUIDE).run
