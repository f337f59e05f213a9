"""The simulated benchmark of the best deployments, from the experiment to the report."""

from dataclasses import replace

import numpy as np
import pytest

from paretoserve import paths, schemas, settings
from paretoserve.experiments.loading import load_files
from paretoserve.experiments.plan import make_plan
from paretoserve.experiments.resolving import resolve_all
from paretoserve.explain import explain
from paretoserve.hardware import load_system
from paretoserve.inprocess import run_in_process
from paretoserve.perfdb.catalogue import Catalogue
from paretoserve.report.terminal import render_report
from paretoserve.serving.closed_loop import Load, simulate
from paretoserve.settings import backend_rules, estimation
from paretoserve.stages import answering, simulating
from paretoserve.stages.assuring import descend, ladders
from paretoserve.stages.generating import generate
from paretoserve.uncertainty import Residuals, residuals


@pytest.fixture(scope="module")
def plan():
    """The guide's example."""
    file = paths.EXPERIMENTS / "qwen3_32b_h200.yaml"
    return make_plan(resolve_all(load_files([file]), Catalogue()))


@pytest.fixture(scope="module")
def result(plan):
    return run_in_process(plan, None)


def rows(result):
    return [row for row in result.best.to_pylist() if row["sim_reason"] == ""]


def test_it_says_what_a_steady_load_says_once_the_first_wave_is_over(plan, result):
    """The estimate's tpot and rate are those of a steady load: 10 requests a client come near."""
    found = rows(result)
    assert {row["experiment"] for row in found} == {"agg", "disagg"}
    for row in found:
        assert row["sim_tpot_ms"] == pytest.approx(row["tpot_ms"], rel=0.12)
        assert row["sim_tokens_per_s_per_gpu"] == pytest.approx(
            row["tokens_per_s_per_gpu"], rel=0.15
        )
        assert row["sim_ttft_p50_ms"] < row["sim_ttft_p99_ms"]
        assert row["sim_clients"] * 10 == row["sim_requests"]
    # All clients at once: the last of the first wave waits for the prompts of all others, beside
    # the time that each spends before the scheduler.
    experiment = next(e for e in plan.ask.experiments if e.name == "agg")
    first = next(row for row in found if row["experiment"] == "agg")
    replica = simulating.replica(experiment, first)
    burst = simulate(Load(24, 3000, 512, requests=24), replica)
    alone = simulate(Load(1, 3000, 512, requests=1), replica)
    host = replica.host
    before = host.request_ms + host.per_prompt_token_ms * alone.isl[0]
    assert 0.6 < (burst.ttft_ms.max() - before) / (24 * (alone.ttft_ms[0] - before)) < 1.1
    assert burst.tallies.kv_wait_share == 0


@pytest.mark.parametrize(("simulated", "left"), [(True, {1, 2}), (False, set())])
def test_what_the_setting_leaves_out_says_so(plan, result, monkeypatch, simulated, left):
    fewer = replace(estimation(), simulation=replace(estimation().simulation, ranks=2))
    monkeypatch.setattr(simulating, "estimation", lambda: fewer)
    found = simulating.with_simulations(plan.ask.experiments, result.best, simulated).to_pylist()
    assert {row["rank"] for row in found if row["sim_reason"] == ""} == left
    without = [row for row in found if row["rank"] not in left]
    assert without
    assert all("config/estimation.yaml" in row["sim_reason"] for row in without)
    assert all(row["sim_ttft_ms"] is None for row in without)


def test_the_ranking_and_the_other_columns_stay(plan, result):
    again = simulating.with_simulations(plan.ask.experiments, result.best, True)
    assert again.equals(result.best)
    assert again.schema.names == schemas.DEPLOYMENTS.names
    rates = [row["tokens_per_s_per_gpu"] for row in rows(result) if row["experiment"] == "agg"]
    assert rates == sorted(rates, reverse=True)


def test_the_report_shows_percentiles_and_the_load(plan, result):
    for width in (80, 100):
        told = render_report(
            plan.ask.experiments, result.frontier, result.best, result.status, width=width
        )
        told = " ".join(told.split())
        assert "closed loop that all clients start at once" in told
        assert "between 0.8 and 1 of the nominal" in told
        for row in rows(result):
            mean, low, high, *figures = (
                row[f"sim_ttft{of}_ms"] for of in ("", "_low", "_high", "_p50", "_p90", "_p99")
            )
            spread = " / ".join(f"{ms:.0f}" for ms in figures)
            assert f"{mean:.0f} ({low:.0f}-{high:.0f}) / {spread}" in told
            assert f" {100 * row['sla_probability']:.3g} % " in told
        assert "by the planner's estimates, which have no interval" in told


def test_verify_md_shows_percentiles_and_the_load(plan, result, tmp_path):
    experiment = next(e for e in plan.ask.experiments if e.name == "agg")
    generate(experiment, result.frontier, result.best, paths.ExperimentPaths(tmp_path))
    told = [file.read_text() for file in tmp_path.rglob("verify.md")]
    assert len(told) == len([row for row in result.best.to_pylist() if row["experiment"] == "agg"])
    for row in rows(result):
        if row["experiment"] == "agg":
            figures = [row[f"sim_ttft{of}_ms"] for of in ("", "_p50", "_p90", "_p99")]
            line = f"| ttft | {' | '.join(f'{ms:.2f}' for ms in figures)} |"
            load = f"({row['sim_clients']} clients, {row['sim_requests']} requests)"
            [mine] = [text for text in told if line in text and load in text]
            low, high = row["sim_tpot_low_ms"], row["sim_tpot_high_ms"]
            assert f"| tpot | {row['sim_tpot_ms']:.2f} ms | {low:.2f} to {high:.2f} ms |" in mine
            assert f"keeps the SLA with {100 * row['sla_probability']:.3g} % probability" in mine
            assert "which deployments are ranked; it has no interval" in mine


@pytest.mark.parametrize(
    ("backend", "system", "dp", "budget", "batch"),
    [
        ("trtllm", "h200_sxm", 1, 8192, 2048),
        ("sglang", "h100_sxm", 1, 8192, 2048),
        ("sglang", "b200_sxm", 1, 16384, 2048),
        ("sglang", "l40s", 1, 4096, 2048),
        ("sglang", "b60", 1, 2048, 2048),
        ("sglang", "h200_sxm", 8, 1024, 256),
        ("vllm", "h100_sxm", 8, 8192, 1024),
        ("vllm", "l40s", 1, 2048, 256),
        ("vllm", "a100_sxm", 1, 2048, 256),
    ],
)
def test_defaults_of_the_engines(backend, system, dp, budget, batch):
    """As their documentation and argument defaults say, by GPU memory."""
    memory = load_system(system).memory_bytes
    found = backend_rules(backend).scheduling.on(system, memory, dp)
    assert (found.token_budget, found.max_batch) == (budget, batch)


def test_lengths_are_even_over_their_range():
    isl, osl = Load(100, 1000, 500, requests=20_000).lengths()
    low, high = settings.estimation().simulation.lengths
    assert (isl.min(), isl.max()) == (1000 * low, 1000 * high)
    assert np.mean(osl) == pytest.approx(500 * (low + high) / 2, rel=0.005)
    assert abs(np.corrcoef(isl, osl)[0, 1]) < 0.03


def pairs(ttft, tpot, backend="trtllm", mode="agg", clients=8):
    """Residuals of runs with these ratios of measured to predicted."""
    runs = len(ttft)
    return Residuals(
        np.full(runs, backend),
        np.full(runs, mode),
        np.full(runs, True),
        np.full(runs, clients),
        np.arange(runs),
        np.log(ttft),
        np.log(tpot),
    )


def test_intervals_and_probability_by_hand(plan, result, monkeypatch):
    """Of five pairs the ends are the least and the largest."""
    known = pairs(ttft=(0.5, 1.0, 2.0, 0.8, 1.25), tpot=(1.0, 0.9, 1.2, 1.1, 0.8))
    monkeypatch.setattr(simulating, "residuals", lambda: known)
    asked = [replace(one, ttft_ms=1e9, tpot_ms=1e9) for one in plan.ask.experiments]
    for row in rows(result):
        experiment = next(one for one in asked if one.name == row["experiment"])
        ttft, tpot, osl = row["sim_ttft_ms"], row["sim_tpot_ms"], 0.9 * experiment.osl
        # Slow tpot breaks two pairs of five, slow ttft another one.
        limits = replace(experiment, ttft_ms=1.1 * ttft, tpot_ms=1.05 * tpot)
        others = [one for one in asked if one.name != row["experiment"]]
        found = simulating.with_simulations([limits, *others], result.best, True).to_pylist()
        again = next(
            one
            for one in found
            if (one["experiment"], one["rank"]) == (row["experiment"], row["rank"])
        )
        assert again["sla_probability"] == pytest.approx(2 / 5)
        for name, value, low, high in (("ttft", ttft, 0.5, 2), ("tpot", tpot, 0.8, 1.2)):
            assert again[f"sim_{name}_low_ms"] == pytest.approx(low * value)
            assert again[f"sim_{name}_high_ms"] == pytest.approx(high * value)
        answer = [
            ttft * a + tpot * b * (osl - 1)
            for a, b in ((0.5, 1), (1, 0.9), (2, 1.2), (0.8, 1.1), (1.25, 0.8))
        ]
        shares = [(ttft + tpot * (osl - 1)) / ms for ms in answer]
        rate = row["sim_tokens_per_s_per_gpu"]
        assert again["sim_tokens_per_s_per_gpu_low"] == pytest.approx(rate * min(shares))
        assert again["sim_tokens_per_s_per_gpu_high"] == pytest.approx(rate * max(shares))


def test_each_row_is_judged_by_its_own_kind_of_runs(plan, result, monkeypatch):
    agg, disagg = (
        pairs([ratio] * 40, [ratio] * 40, mode=mode)
        for ratio, mode in ((1.0, "agg"), (3.0, "disagg"))
    )
    both = Residuals(
        *(
            np.concatenate([getattr(agg, name), getattr(disagg, name)])
            for name in Residuals.__dataclass_fields__
        )
    )
    monkeypatch.setattr(simulating, "residuals", lambda: both)
    for row in simulating.with_simulations(plan.ask.experiments, result.best, True).to_pylist():
        if row["sim_reason"] == "":
            times = 1 if row["experiment"] == "agg" else 3
            assert row["sim_tpot_low_ms"] == pytest.approx(times * row["sim_tpot_ms"])
            assert row["sim_ttft_high_ms"] == pytest.approx(times * row["sim_ttft_ms"])


def test_rows_that_were_not_simulated_have_no_interval(plan, result):
    without = simulating.with_simulations(plan.ask.experiments, result.best, False)
    for name in ("sla_probability", "sim_ttft_low_ms", "sim_tokens_per_s_per_gpu_high"):
        assert without[name].null_count == without.num_rows


def answered(plan, **changed):
    """The agg experiment of the example, asked again with other fields."""
    experiment = next(e for e in plan.ask.experiments if e.name == "agg")
    return run_in_process(make_plan([replace(experiment, **changed)]), None)


def test_best_rows_keep_the_sla_as_surely_as_asked(plan, result):
    """A limit on tpot that the first batch just keeps by estimate is kept by half of the runs."""
    limit = 1.02 * next(r["sim_tpot_ms"] for r in rows(result) if r["experiment"] == "agg")
    usual = answered(plan, tpot_ms=limit)
    first = usual.best.to_pylist()[0]
    wanted = 0.8
    assert first["sla_probability"] < wanted
    found = answered(plan, tpot_ms=limit, sla_probability=wanted)
    sure = found.best.to_pylist()
    assert [row["rank"] for row in sure] == list(range(1, len(sure) + 1))
    assert sure
    assert all(row["sla_probability"] >= wanted and row["meets_sla"] for row in sure)
    rates = [row["tokens_per_s_per_gpu"] for row in sure]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] < first["tokens_per_s_per_gpu"]
    assert found.status["status"].to_pylist() == ["ok"]
    # What is sure enough already stays: any probability is at least 0.
    assert answered(plan, tpot_ms=limit, sla_probability=0.0).best.equals(usual.best)


def test_the_search_finds_what_simulating_all_finds(plan, monkeypatch):
    asked = {"tpot_ms": 20.0, "sla_probability": 0.9}
    found = answered(plan, **asked).best

    def all_of_them(steps, probability_of, *_):
        every = np.concatenate(steps)
        return dict(zip(every.tolist(), probability_of(every).tolist(), strict=True))

    monkeypatch.setattr(answering, "descend", all_of_them)
    everything = answered(plan, **asked).best
    names = ["agg_tp", "agg_batch_size", "tokens_per_s_per_gpu", "sla_probability"]
    assert found.num_rows == 3
    assert found.select(names).equals(everything.select(names))


def test_it_says_when_no_deployment_is_sure_enough(plan):
    """No figure is certain: in some run of the held-out ones it was far off."""
    assert np.exp(residuals().ttft).max() > 5
    found = answered(plan, ttft_ms=400.0, tpot_ms=1000.0, sla_probability=1.0)
    assert found.best.num_rows == 0
    [row] = found.status.to_pylist()
    assert row["status"] == "no_feasible"
    assert "deployments simulated keeps the SLA with 100 % probability" in row["reason"]
    assert "the surest has " in row["reason"]
    assert "ttft 400 ms binds" in row["reason"]
    assert "with 90 % probability between" in row["reason"]


def test_a_ladder_has_fewer_clients_on_every_step():
    layout = np.array([7, 2, 7, 2, 7, 7])
    clients = np.array([64, 90, 70, 10, 32, 32])
    found = [ladder.tolist() for ladder in ladders(layout, clients)]
    assert found == [[0, 4], [1, 3]]


@pytest.mark.parametrize("largest", range(10))
def test_the_largest_sure_batch_is_found(largest):
    """Against trying all: of ten steps the first that is sure, at most six trials."""
    asked = []

    def probability_of(chosen):
        asked.extend(chosen.tolist())
        return np.where(chosen >= largest, 0.95, 0.5)

    tried = descend([np.arange(10)], probability_of, 0.9, 1, 100)
    assert min(row for row, probability in tried.items() if probability >= 0.9) == largest
    assert asked == list(dict.fromkeys(asked))
    assert len(asked) <= 6


def test_a_layout_without_a_sure_batch_gives_its_place_to_the_next():
    sure = {0: 0.1, 1: np.nan, 2: 0.1, 3: 0.9, 4: 0.9, 5: 0.9}
    steps = [np.array([0, 1]), np.array([2, 3]), np.array([4, 5])]

    def probability_of(chosen):
        return np.array([sure[row] for row in chosen.tolist()])

    tried = descend(steps, probability_of, 0.9, 1, 100)
    assert set(tried) == {0, 1, 2, 3}
    assert len(descend(steps, probability_of, 0.9, 3, 2)) == 2


def test_a_sure_deployment_can_be_explained(plan, tmp_path):
    """Asked for by itself it comes out again, whatever it was made for: rate or ttft."""
    asked = [replace(one, sla_probability=0.5) for one in plan.ask.experiments]
    found = run_in_process(make_plan(asked), tmp_path)
    chosen = found.best.to_pylist()
    assert {row["experiment"] for row in chosen} == {"agg", "disagg"}
    for row in chosen:
        assert row["sla_probability"] >= 0.5
        told = explain(found.folder, row["experiment"], row["rank"])
        assert told["differences"] == {}
