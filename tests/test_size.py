"""`paretoserve size`: the fewest GPUs, against asking the ordinary search of every cluster."""

import json
from dataclasses import replace

import numpy as np
import pytest

from paretoserve.cli import main
from paretoserve.experiments.experiment import Experiment
from paretoserve.experiments.loading import COMMAND_LINE, read_mapping
from paretoserve.experiments.plan import Ask, works
from paretoserve.experiments.resolving import resolve
from paretoserve.perfdb.catalogue import Catalogue
from paretoserve.prices import load_prices
from paretoserve.size import fewest_gpus, price, replicas_needed
from paretoserve.stages.answering import pareto

MOST = 16  # GPUs of the largest cluster that brute force asks


class Question:
    """One question, asked of clusters of any size."""

    def __init__(self, **fields: object):
        self.fields, self.catalogue = fields, Catalogue()
        self.most = self.on(MOST)
        self.priced = price(self.most)

    def on(self, gpus: int) -> Experiment:
        [raw] = read_mapping({"one": {**self.fields, "total_gpus": gpus}}, COMMAND_LINE)
        return replace(resolve(raw, self.catalogue), top_n=1)

    def rate(self, gpus: int) -> float:
        """Requests/s of the best deployment by the stages of the workflow, 0 without one."""
        experiment, tables = self.on(gpus), self.priced
        ask = Ask("", (experiment,), {work.id: work.id for work in works(experiment)})
        _, best, _ = pareto(ask, tables.candidates, tables.estimates)
        return best["request_rate_per_s"][0].as_py() if best.num_rows else 0.0

    def size(self, request_rate: float) -> tuple[dict | None, str]:
        return fewest_gpus(self.most, self.priced, request_rate, self.on)


def questions() -> list[dict[str, object]]:
    """Twenty random small questions; half of them for each serving mode."""
    draw = np.random.default_rng(20)
    models = ("QWEN3_0.6B", "QWEN3_8B", "LLAMA3.1_8B", "QWEN3_32B", "QWEN3_30B_A3B")
    return [
        {
            "serving_mode": ("disagg", "agg")[i % 2],
            "model_name": str(draw.choice(models)),
            "system_name": str(draw.choice(("h100_sxm", "h200_sxm", "b200_sxm"))),
            "isl": int(draw.integers(200, 8000)),
            "osl": int(draw.integers(50, 2000)),
            "ttft": float(draw.uniform(500, 5000)),
            "tpot": float(draw.uniform(8, 60)),
            # Small searches: brute force does them for every cluster.
            "config": {"advanced_tuning_config": {"decode_max_batch_size": 64}},
        }
        for i in range(20)
    ]


@pytest.mark.parametrize("fields", questions(), ids=range(20))
def test_agrees_with_brute_force(fields):
    question = Question(**fields)
    rates = [question.rate(gpus) for gpus in range(1, MOST + 1)]
    draw = np.random.default_rng(sum(map(ord, str(fields))))
    asked = [*draw.uniform(0.05, 1.0, 3) * max(rates), max(rates) * 1.01] if any(rates) else [1.0]
    for request_rate in asked:
        brute = next((i for i, rate in enumerate(rates, 1) if rate >= request_rate), None)
        row, reason = question.size(request_rate)
        if brute is None:
            assert row is None
            assert reason
        else:
            assert row["total_gpus"] == brute
            assert row["request_rate_per_s"] == rates[brute - 1] >= request_rate


def test_more_gpus_may_serve_less():
    """Why it does not bisect: 12 GPUs are one replica as a whole, 13 are none that workers fill."""
    question = Question(
        serving_mode="disagg",
        model_name="LLAMA3.1_405B",
        system_name="h200_sxm",
        isl=3000,
        osl=512,
        ttft=1000,
        tpot=60,
    )
    low, high = question.rate(13), question.rate(12)
    assert low < high
    row, _ = question.size((low + high) / 2)
    assert row["total_gpus"] == 12


def test_replicas_multiply_to_the_rate_and_one_fewer_does_not():
    draw = np.random.default_rng(1)
    rate = draw.uniform(0.01, 30, 2000)
    rate[:1000] = 1 / draw.integers(1, 200, 1000)  # quotients that are whole but for rounding
    for request_rate in (0.3, 1.0, 7.0, 49.0):
        count = replicas_needed(request_rate, rate)
        assert (rate * count >= request_rate).all()
        assert (rate * (count - 1) < request_rate).all()


ASKED = "--request_rate 20 --model QWEN3_32B --isl 3000 --osl 512 --ttft 1000 --tpot 10".split()


def sizes(capsys, *arguments: str) -> list[dict]:
    assert main(["size", *ASKED, *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_systems_are_answered_both_ways_the_cheapest_first(capsys):
    told = sizes(capsys, "--system", "h200_sxm", "h100_sxm", "b200_sxm")
    assert {(one["system"], one["serving_mode"]) for one in told} == {
        (system, mode)
        for system in ("h200_sxm", "h100_sxm", "b200_sxm")
        for mode in ("agg", "disagg")
    }
    prices = load_prices()
    for one in told:
        deployment, price = one["deployment"], prices[one["system"]]
        assert deployment["request_rate_per_s"] >= 20
        assert deployment["ttft_ms"] <= 1000
        assert deployment["tpot_ms"] <= 10
        hour = one["total_gpus"] * price.usd_per_gpu_hour
        assert one["usd_per_hour"] == pytest.approx(hour)
        assert one["usd_per_million_tokens"] == pytest.approx(hour / (20 * 512 * 3600) * 1e6)
    costs = [one["usd_per_hour"] for one in told]
    assert costs == sorted(costs)


def test_without_a_price_no_cost_is_shown_and_gpus_decide(capsys):
    told = sizes(capsys, "--system", "h200_sxm", "gb200")
    assert {one["system"] for one in told if one["usd_per_hour"] is None} == {"gb200"}
    gpus = [one["total_gpus"] for one in told]
    assert gpus == sorted(gpus)
    assert main(["size", *ASKED, "--system", "gb200"]) == 0
    text = capsys.readouterr().out
    assert "$/hour" not in text
    assert "No price is known of gb200" in text


def test_table_fits_80_columns_and_says_what_has_no_answer(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["size", *ASKED, "--system", "h200_sxm", "l40s"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "No answer for l40s disagg" in text
    assert "raise tpot to" in text


def test_no_answer_at_all_has_its_exit_code(capsys):
    assert main(["size", *ASKED, "--system", "l40s"]) == 3
    assert "No answer for" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--system", "h200"], "unknown system 'h200' (did you mean 'h200_sxm'?)"),
        (["--system", "h200_sxm", "--request_rate", "0"], "must be a number of requests/s above 0"),
        (["--system", "h200_sxm", "--tpot", "-1"], "--tpot: got -1.0, allowed more than 0"),
    ],
)
def test_bad_flag_is_one_sentence(arguments, sentence, capsys):
    try:
        code = main(["size", *ASKED, *arguments])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1
