"""The comparison report: its tables against brute force, and its page in headless Chromium."""

import csv
import dataclasses
import itertools
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paretoserve import paths, prices
from paretoserve.errors import InputError
from paretoserve.experiments.loading import Source, read_mapping
from paretoserve.experiments.plan import Plan, make_plan
from paretoserve.experiments.resolving import resolve_all
from paretoserve.inprocess import run_in_process
from paretoserve.paths import RunPaths
from paretoserve.perfdb.catalogue import Catalogue
from paretoserve.provenance import made_from
from paretoserve.report.choices import load_choices
from paretoserve.report.questions import questions
from paretoserve.stages.reporting import report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SYSTEMS, TPOTS = ("h200_sxm", "l40s"), (2, 10, 50)
SOURCE = Source("test.yaml")


def asked(**changes) -> Plan:
    """Two systems, three limits, both modes; and two disagg systems at once, which have no pair."""
    mapping = {
        f"{system}.tpot{tpot}.{mode}": {
            "serving_mode": mode,
            "model_name": "QWEN3_8B",
            "total_gpus": 16,
            "system_name": system,
            "isl": 1000,
            "osl": 500,
            "ttft": 1000,
            "tpot": tpot,
            "config": {"decode_worker_config": {"num_gpu_per_worker": [1, 2]}}
            if mode == "disagg"
            else {"worker_config": {"num_gpu_per_worker": [1, 2]}},
            **changes,
        }
        for system, tpot, mode in itertools.product(SYSTEMS, TPOTS, ("disagg", "agg"))
    }
    mapping["mixed"] = mapping["h200_sxm.tpot50.disagg"] | {
        "decode_system_name": "h100_sxm",
        "config": {},
    }
    return make_plan(resolve_all(read_mapping(mapping, SOURCE), Catalogue()))


@dataclass(frozen=True)
class Written:
    """A run on disk, and tables read back from it."""

    plan: Plan
    run: RunPaths

    def shown(self, name: str) -> list[dict]:
        return pq.read_table(self.run.report_table(name)).to_pylist()

    def found(self, name: str) -> list[dict]:
        return pq.read_table(getattr(self.run, name)).to_pylist()


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Written:
    plan, results = asked(), tmp_path_factory.mktemp("results")
    run_in_process(plan, results)
    return Written(plan, RunPaths(results, plan.run))


def first(rows: list[dict], **wanted) -> dict:
    return next(row for row in rows if all(row[k] == v for k, v in wanted.items()))


def close(value: float) -> object:
    """Tables of the report hold six digits."""
    return pytest.approx(value, rel=1e-5)


# ---- the tables ----------------------------------------------------------------------------------


def test_agg_and_disagg_of_one_question_are_a_pair(written):
    found = questions(written.plan.ask.experiments)
    names = [tuple(e.name for e in question.experiments) for question in found]
    pairs = [
        (f"{s}.tpot{t}.disagg", f"{s}.tpot{t}.agg") for s, t in itertools.product(SYSTEMS, TPOTS)
    ]
    assert names == [*pairs, ("mixed",)]
    # Needs do not know systems: the mixed one is another option for the need of tpot 50.
    assert [question.need for question in found] == [0, 1, 2, 0, 1, 2, 2]


def test_verdicts_follow_from_the_best_rows(written):
    best = {row["experiment"]: row for row in written.found("best") if row["rank"] == 1}
    for row in written.shown("verdicts"):
        if row["system"] == "h200_sxm + h100_sxm":
            assert row["experiment"] == "mixed"
            assert row["verdict"].endswith("agg was not asked")
            continue
        name = f"{row['system']}.tpot{row['tpot_limit_ms']:g}"
        rates = {
            mode: best[f"{name}.{mode}"]["tokens_per_s_per_gpu"]
            for mode in ("agg", "disagg")
            if f"{name}.{mode}" in best
        }
        if not rates:
            assert row["mode"] is None
            assert row["verdict"].startswith("no answer: ")
            continue
        winner = max(rates, key=rates.__getitem__)
        assert (row["mode"], row["experiment"]) == (winner, f"{name}.{winner}")
        assert row["tokens_per_s_per_gpu"] == close(rates[winner])
        assert row["ttft_ms"] == close(best[row["experiment"]]["ttft_ms"])
        if len(rates) == 2:
            assert row["disagg_over_agg"] == close(rates["disagg"] / rates["agg"])
            assert row["equal"] == (max(rates.values()) / min(rates.values()) < 1.01)
        else:
            assert "has no answer" in row["verdict"]
    assert {row["mode"] for row in written.shown("verdicts")} == {None, "agg", "disagg"}


def test_the_decision_is_the_best_option_of_each_need(written):
    verdicts = written.shown("verdicts")
    for row in written.shown("decisions"):
        options = [v for v in verdicts if v["need"] == row["need"]]
        assert row["options"] == len(options)
        rates = sorted((v["tokens_per_s_per_gpu"] or 0 for v in options), reverse=True)
        assert row["answered"] == (rates[0] > 0)
        if not row["answered"]:
            continue
        assert row["tokens_per_s_per_gpu"] == rates[0]
        assert row["system"] == first(options, tokens_per_s_per_gpu=rates[0])["system"]
        if rates[1]:
            assert row["times_next"] == close(rates[0] / rates[1])
        costs = [v for v in options if v["usd_per_million_tokens"] is not None]
        cheapest = min(costs, key=lambda v: v["usd_per_million_tokens"])
        assert row["cheapest_system"] == cheapest["system"]


def test_cost_by_hand(written):
    """$3.99 an hour for 3600 seconds of so many tokens; an unknown price gives no cost."""
    rows = written.shown("configurations")
    row = first(rows, experiment="h200_sxm.tpot50.agg", rank=1)
    assert row["usd_per_million_tokens"] == close(
        3.99 / (row["tokens_per_s_per_gpu"] * 3600) * 1_000_000
    )
    assert first(rows, experiment="l40s.tpot50.agg", rank=1)["usd_per_million_tokens"] is None
    row = first(rows, experiment="mixed", rank=1)
    gpus = [row[f"{r}_workers"] * row[f"{r}_gpus_per_worker"] for r in ("prefill", "decode")]
    hourly = (gpus[0] * 3.99 + gpus[1] * 3.20) / sum(gpus)
    assert row["usd_per_million_tokens"] == close(
        hourly / (row["tokens_per_s_per_gpu"] * 3600) * 1_000_000
    )


@pytest.mark.parametrize(
    ("table", "column", "as_tpot"),
    [
        ("tpot_curves", "tpot_target_ms", lambda target: target),
        ("user_speeds", "speed", lambda speed: 1000 / speed),
    ],
)
def test_throughput_at_targets_is_the_most_of_the_frontier(written, table, column, as_tpot):
    system_of = {e.name: e.workers[0].system for e in written.plan.ask.experiments}
    system_of["mixed"] = "h200_sxm + h100_sxm"
    frontier = written.found("frontier")
    rows = written.shown(table)
    choices = load_choices()
    targets = choices.tpot_targets_ms if table == "tpot_curves" else choices.user_speeds
    for system, target in itertools.product(dict.fromkeys(system_of.values()), targets):
        within = [
            point["tokens_per_s_per_gpu"]
            for point in frontier
            if system_of[point["experiment"]] == system
            and point["tpot_ms"] <= as_tpot(target) * (1 + 1e-12)
        ]
        told = [row for row in rows if row["system"] == system and row[column] == target]
        assert len(told) == bool(within)
        if within:
            assert told[0]["tokens_per_s_per_gpu"] == close(max(within))


def test_fewest_gpus_against_every_configuration(written):
    need_of = {v["question"]: (v["need"], v["system"]) for v in written.shown("verdicts")}
    question_of = {e["experiment"]: e["question"] for e in written.shown("experiments")}
    found = [r for name in ("frontier", "best") for r in written.found(name) if r["meets_sla"]]
    rows = written.shown("fewest_gpus")
    assert len(rows) > 10
    for row in rows:
        gpus = [
            math.ceil(row["request_rate_per_s"] / (r["request_rate_per_s"] / r["replicas"]) - 1e-9)
            * r["gpus_per_replica"]
            for r in found
            if need_of[question_of[r["experiment"]]] == (row["need"], row["system"])
        ]
        assert row["gpus"] == min(gpus) == row["replicas"] * row["gpus_per_replica"]


def test_operators_add_up_and_have_shares(written):
    steps: dict[tuple, list[dict]] = {}
    for row in written.shown("operators"):
        steps.setdefault((row["experiment"], row["rank"], row["role"], row["step"]), []).append(row)
    best = {(r["experiment"], r["rank"]): r for r in written.found("best")}
    assert {key[:2] for key in steps} == set(best)
    for (name, rank, role, step), rows in steps.items():
        assert sum(row["of_step"] for row in rows) == pytest.approx(1, abs=1e-4)
        if step != "mixed":
            assert rows[0]["step_total_ms"] == close(best[name, rank][f"{role}_step_ms"])


def test_what_has_no_answer_is_grouped_by_reason(written):
    rows = written.shown("unanswered")
    status = {row["experiment"]: row for row in written.found("status")}
    none = {name for name, row in status.items() if row["status"] != "ok"}
    assert {row["experiment"] for row in rows if row["kind"] == "no answer"} == none
    assert len(none) >= 4
    assert {row["group"] for row in rows if "tpot2" in row["experiment"]} == {"tpot … ms binds"}
    for row in rows:
        assert row["reason"] == status[row["experiment"]]["reason"]


def test_csv_holds_what_parquet_holds(written):
    for name in paths.REPORT_TABLES:
        rows = written.shown(name)
        with written.run.report_table(name, "csv").open(newline="") as file:
            listed = list(csv.DictReader(file))
        assert len(listed) == len(rows)
        for one, other in zip(listed, rows, strict=True):
            for key, value in other.items():
                if isinstance(value, bool) or value is None:
                    assert one[key] in ("", str(value).lower())
                elif isinstance(value, int | float):
                    assert float(one[key]) == value
                else:
                    assert one[key] == value


LATER = {"ttft_p90_ms": 1.5, "sla_probability": 0.93, "sim_ttft_p99_ms": 612.345}


def with_later_columns(written: Written) -> dict[str, pa.Table]:
    """The run's tables, as if its stages told percentiles and a simulated benchmark."""
    tables = in_memory(written)
    for name, value in LATER.items():
        kept = [column for column in tables["best"].column_names if column != name]
        values = pa.array([value] * tables["best"].num_rows)
        tables["best"] = tables["best"].select(kept).append_column(name, values)
    return tables


def test_columns_of_later_stages_are_kept(written):
    told = report(written.plan.ask, with_later_columns(written), {}, ())
    for name, value in LATER.items():
        assert set(told.tables["configurations"][name].to_pylist()) == {value}


def in_memory(written: Written) -> dict[str, pa.Table]:
    names = ("frontier", "best", "breakdown", "status")
    return {name: pq.read_table(getattr(written.run, name)) for name in names}


def test_changes_name_winner_ratio_and_input(written):
    ask = written.plan.ask
    tables = in_memory(written)
    digests = made_from(ask.experiments)
    same = report(ask, tables, digests, (), written.run.folder)
    assert same.tables["changes"].num_rows == 0

    # Another answer from other measurements: agg of one pair now serves ten times as much.
    name = "h200_sxm.tpot10.agg"
    best = tables["best"]
    mine = np.array([n == name for n in best["experiment"].to_pylist()])
    at = best.schema.get_field_index("tokens_per_s_per_gpu")
    rate = best["tokens_per_s_per_gpu"].to_numpy() * np.where(mine, 10, 1)
    best = best.set_column(at, "tokens_per_s_per_gpu", pa.array(rate))
    digests = digests | {name: digests[name] | {"perf_db": "f" * 16}}
    told = report(ask, tables | {"best": best}, digests, (), written.run.folder)
    rows = told.tables["changes"].to_pylist()
    assert {row["experiment"] for row in rows} == {name, "h200_sxm.tpot10.disagg"}
    row = first(rows, experiment=name)
    assert row["change"] == "another winner"
    assert row["because"] == "measurements"
    assert row["now_over_before"] == close(10)
    assert (row["before_winner"], row["now_winner"]) == ("h200_sxm.tpot10.disagg", name)
    other = first(rows, experiment="h200_sxm.tpot10.disagg")
    assert other["because"] == "another experiment of the same question"

    longer = asked(osl=800)
    result = run_in_process(longer, None)
    told = report(
        longer.ask,
        {name: getattr(result, name) for name in tables},
        made_from(longer.ask.experiments),
        (),
        written.run.folder,
    )
    because = {row["because"] for row in told.tables["changes"].to_pylist()}
    assert because == {"question (osl 500 → 800)"}


def test_baseline_without_a_report_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"baseline: '.*' is no folder of a run with a report"):
        run_in_process(asked(), tmp_path / "results", baseline=tmp_path)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{usd_per_gpu_hour: -1, date: 2026-01-01, source: x}", "it must be dollars above 0"),
        ("{usd_per_gpu_hour: 3}", "a price needs its date and its source"),
        ("{usd: 3}", "must have usd_per_gpu_hour, date and source"),
        ("[3", "is not YAML"),
    ],
)
def test_prices_that_cannot_be_used(tmp_path, entry, said):
    file = tmp_path / "prices.yaml"
    file.write_text(f"systems:\n  h200_sxm: {entry}\n")
    with pytest.raises(InputError, match=said):
        prices.load_prices(file)


def test_every_system_has_a_price_or_says_that_it_has_none():
    listed = prices.load_prices()
    text = paths.PRICES.read_text()
    systems = {file.stem for file in paths.SYSTEMS.glob("*.yaml")}
    assert set(listed) <= systems
    for system in systems - set(listed):
        assert f"  {system}: {{usd_per_gpu_hour: null}}" in text


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("detailed_questions: 500", "detailed_questions: -1", "must be a number of questions"),
        ("user_speeds: [10, 20,", "user_speeds: [20, 10,", "must be numbers above 0, rising"),
        ("request_rates_per_s", "rates", "must have detailed_questions, .* and nothing else"),
    ],
)
def test_choices_that_cannot_be_used(tmp_path, old, new, said):
    file = tmp_path / "report.yaml"
    text = paths.REPORT.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=said):
        load_choices(file)


# ---- the page ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    library = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium on this machine: `make browser` installs it (Debian, as root)")
    with library.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass(frozen=True)
class Opened:
    """A page, and what it said and asked for."""

    page: object
    said: list[str]
    requests: list[str]

    def drawn(self, selector: str):
        """The chart of this selector, drawn."""
        chart = self.page.locator(selector)
        chart.scroll_into_view_if_needed()
        self.page.locator(f"{selector}[data-drawn]").wait_for(timeout=30_000)
        return chart


def open_page(browser, file: Path) -> Opened:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    opened = Opened(page, [], [])
    page.on("console", lambda message: opened.said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: opened.said.append(f"error: {error}"))
    page.on("request", lambda request: opened.requests.append(request.url))
    page.goto(file.as_uri())
    page.locator("html[data-ready]").wait_for(state="attached", timeout=30_000)
    return opened


@pytest.fixture(scope="module")
def opened(chromium, written) -> Opened:
    """The report, with the details of the first answered question of the h200 open."""
    opened = open_page(chromium, written.run.report_html)
    row = first(written.shown("verdicts"), system="h200_sxm", tpot_limit_ms=10.0)
    opened.page.locator(f"#q{row['question']} button.open").click()
    opened.page.locator('[data-chart="frontier"]').wait_for(timeout=30_000)
    yield opened
    opened.page.close()


CHARTS = ("tpot", "frontier", "time", "memory", "provenance")


def traces(opened: Opened, chart: str) -> list[dict]:
    """What a chart was drawn from, read back from the page."""
    opened.drawn(f'[data-chart="{chart}"]')
    script = """chart => document.querySelector(`[data-chart="${chart}"]`).data.map(t => ({
        name: t.name, x: t.x, y: t.y, visible: t.visible ?? true, custom: t.customdata}))"""
    return opened.page.evaluate(script, chart)


def test_page_has_every_number_of_the_tables(opened, written):
    opened.page.evaluate("report.details()")
    for name in paths.REPORT_TABLES:
        rows = written.shown(name)
        script = """name => { const table = report.tables[name], names = Object.keys(table.specs);
            return [table.rows, Object.fromEntries(names.map(c => [c, table.column(c)]))]; }"""
        count, columns = opened.page.evaluate(script, name)
        assert count == len(rows)
        if not rows:
            continue
        digests = {f"{what}_digest" for what in ("question", "perf_db", "code")}
        assert set(columns) == set(rows[0]) - digests
        for column, values in columns.items():
            assert values == [row[column] for row in rows], (name, column)


def test_every_chart_has_marks_and_a_table(opened):
    marks = ".scatterlayer .point, .scatterlayer .js-line, .barlayer .point path"
    for chart in CHARTS:
        plot = opened.drawn(f'[data-chart="{chart}"]')
        assert plot.locator(marks).count() >= 2, chart
        assert len(plot.get_attribute("aria-label")) > 30
        figure = opened.page.locator(f'figure:has([data-chart="{chart}"])')
        figure.locator("summary").click()
        figure.locator("table tbody tr").nth(1).wait_for()
        figure.locator("summary").click()


def test_frontier_is_drawn_from_the_frontier(opened, written):
    drawn = {trace["name"]: trace for trace in traces(opened, "frontier")}
    for name in ("h200_sxm.tpot10.disagg", "h200_sxm.tpot10.agg"):
        points = [row for row in written.found("frontier") if row["experiment"] == name]
        assert drawn[name]["x"] == close([row["tokens_per_s_per_user"] for row in points])
        assert drawn[name]["y"] == close([row["tokens_per_s_per_gpu"] for row in points])
        best = [row for row in written.found("best") if row["experiment"] == name]
        assert drawn[f"{name} best"]["y"] == close([row["tokens_per_s_per_gpu"] for row in best])
    script = """() => document.querySelector('[data-chart="frontier"]').layout.shapes.map(
        s => [s.name ?? "", s.x0, s.x1])"""
    shapes = {name: (begin, end) for name, begin, end in opened.page.evaluate(script)}
    assert shapes["infeasible"] == (0, 100)  # TPOT 10 ms
    assert shapes["sla"][0] == 100


def chosen_best(written: Written) -> dict:
    rows = [r for r in written.found("best") if r["experiment"].startswith("h200_sxm.tpot10.")]
    return max(rows, key=lambda row: row["tokens_per_s_per_gpu"])


def test_step_time_is_drawn_from_the_breakdown(opened, written):
    best = chosen_best(written)
    items = [
        row
        for row in written.found("breakdown")
        if (row["experiment"], row["rank"]) == (best["experiment"], best["rank"])
    ]
    expected = {}
    for role, step in dict.fromkeys((row["role"], row["step"]) for row in items):
        ms = {r["operator"]: r["ms"] for r in items if (r["role"], r["step"]) == (role, step)}
        expected |= {(step, name): part / sum(ms.values()) for name, part in ms.items()}
    drawn = {
        (label.split(" step")[0].split(", ")[-1], trace["name"]): share
        for trace in traces(opened, "time")
        for label, share in zip(trace["y"], trace["x"], strict=True)
        if share is not None
    }
    assert drawn.keys() == expected.keys()
    for key, share in expected.items():
        assert drawn[key] == pytest.approx(share, rel=2e-5), key


def test_memory_and_provenance_are_drawn_from_best(opened, written):
    best = chosen_best(written)
    words = {"KV cache": "kv_cache", "limit": "memory_limit"}
    for trace in traces(opened, "memory"):
        part = (
            "memory_limit" if trace["name"] == "limit" else words.get(trace["name"], trace["name"])
        )
        assert trace["x"] == close([best[f"{role}_{part}_gib"] for role in trace["y"]])
    for trace in traces(opened, "provenance"):
        name = trace["name"].replace("stand-in", "substituted").replace(" ", "_")
        expected = [best[f"{role}_{name}_share"] for role in trace["y"]]
        assert trace["x"] == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_curves_are_drawn_from_their_table(opened, written):
    rows = written.shown("tpot_curves")
    drawn = traces(opened, "tpot")
    assert {trace["name"] for trace in drawn} == {row["system"] for row in rows}
    for trace in drawn:
        mine = [row for row in rows if row["system"] == trace["name"]]
        assert trace["x"] == [row["tpot_target_ms"] for row in mine]
        assert trace["y"] == [row["tokens_per_s_per_gpu"] for row in mine]


def test_cells_show_the_numbers_of_their_tables(opened, written):
    """Text as read by a person: rounded, and nothing else."""
    rows = {row["question"]: row for row in written.shown("verdicts")}
    for number, row in rows.items():
        cell = opened.page.locator(f"#q{number} [data-column=tokens_per_s_per_gpu]").inner_text()
        rate = row["tokens_per_s_per_gpu"]
        assert cell == ("–" if rate is None else f"{rate:.1f}")
    for section, table, column in (
        ("systems", "systems", "tokens_per_s_per_gpu"),
        ("speeds", "user_speeds", "tokens_per_s_per_gpu"),
        ("gpus", "fewest_gpus", "gpus"),
        ("modes", "modes", "disagg_over_agg"),
    ):
        cells = opened.page.locator(f"#{section} [data-value]")
        shown = sorted(cells.evaluate_all("cells => cells.map(cell => +cell.dataset.value)"))
        assert shown == sorted(r[column] for r in written.shown(table) if r[column] is not None)


def test_the_headline_is_in_the_tables(opened, written):
    tiles = dict(
        opened.page.locator("[data-tile]").evaluate_all(
            "tiles => tiles.map(tile => [tile.dataset.tile, tile.textContent])"
        )
    )
    answered = [row for row in written.shown("decisions") if row["answered"]]
    assert tiles["needs"] == str(len(answered))
    ratios = [row["disagg_over_agg"] for row in written.shown("verdicts") if row["disagg_over_agg"]]
    assert tiles["disagg_wins"] == str(sum(ratio > 1 for ratio in ratios))
    assert float(tiles["disagg_over_agg"]) == pytest.approx(np.median(ratios), abs=0.005)


def test_hover_shows_the_configuration(opened, written):
    plot = opened.drawn('[data-chart="frontier"]')
    plot.locator(".scatterlayer .trace").nth(0).locator(".point").nth(3).hover(force=True)
    label = opened.page.locator('[data-chart="frontier"] .hoverlayer .hovertext')
    label.first.wait_for()
    text = label.first.text_content()
    deployments = [
        row["deployment"] for row in written.shown("frontier") if "tpot10" in row["experiment"]
    ]
    assert any(deployment in text for deployment in deployments)
    assert "TTFT" in text


def test_series_and_axes_toggle(opened):
    figure = opened.page.locator('figure:has([data-chart="frontier"])')
    figure.get_by_label("h200_sxm.tpot10.agg", exact=True).uncheck()
    visible = {trace["name"]: trace["visible"] for trace in traces(opened, "frontier")}
    assert not visible["h200_sxm.tpot10.agg"]
    assert visible["h200_sxm.tpot10.disagg"]
    figure.get_by_label("h200_sxm.tpot10.agg", exact=True).check()
    others = figure.get_by_label("other options of this need")
    others.check()
    names = {trace["name"] for trace in traces(opened, "frontier")}
    assert any(name.startswith("l40s, trtllm") for name in names)
    others.uncheck()
    kind = """axis => document.querySelector('[data-chart="frontier"]').layout[axis].type"""
    for axis in ("x", "y"):
        assert opened.page.evaluate(kind, f"{axis}axis") == "linear"
        figure.get_by_label(f"log {axis}").check()
        assert opened.page.evaluate(kind, f"{axis}axis") == "log"
        figure.get_by_label(f"log {axis}").uncheck()


def test_links_resolve(opened, written):
    hrefs = opened.page.evaluate("() => [...document.links].map(a => a.href)")
    here = written.run.report_html.as_uri()
    files = {unquote(urlsplit(href).path) for href in hrefs if not href.startswith(f"{here}#")}
    assert [file for file in files if not Path(file).exists()] == []
    assert any(file.endswith("/start_files") or "/top1/" in file for file in files)
    anchors = {href.removeprefix(f"{here}#") for href in hrefs if href.startswith(f"{here}#")}
    count = opened.page.evaluate(
        "ids => ids.filter(id => !document.getElementById(id))", sorted(anchors)
    )
    assert count == []
    assert any(anchor.startswith("q") for anchor in anchors)


def test_a_link_to_a_question_opens_it_by_keyboard(opened, written):
    row = first(written.shown("verdicts"), system="l40s", tpot_limit_ms=50.0)
    link = opened.page.locator(f"#systems a[href='#q{row['question']}']")
    link.focus()
    opened.page.keyboard.press("Enter")
    opened.page.locator(f"#q{row['question']} button[aria-expanded=true]").wait_for()
    opened.page.keyboard.press("Enter")  # the row's button has the focus: close it again
    opened.page.locator(f"#q{row['question']} button[aria-expanded=false]").wait_for()


def test_text_has_contrast(opened):
    """At least 4.5 to 1 (WCAG AA) for every element with text of its own."""
    script = """() => {
      const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
      const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
        .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
      const behind = (e) => { for (; e; e = e.parentElement) {
        const c = rgb(getComputedStyle(e).backgroundColor);
        if (c.length < 4 || c[3] > 0.5) return c;
      } return [255, 255, 255]; };
      return [...document.querySelectorAll("body *:not(svg *):not(script):not(style)")]
        .filter(e => e.checkVisibility())
        .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
        .map(e => [e.outerHTML.slice(0, 80), rgb(getComputedStyle(e).color), behind(e)])
        .map(([e, text, ground]) => [e, light(text), light(ground)])
        .map(([e, a, b]) => [e, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]); }"""
    ratios = opened.page.evaluate(script)
    assert len(ratios) > 200
    assert [entry for entry in ratios if entry[1] < 4.5] == []


def test_narrow_page_does_not_scroll_sideways(chromium, written):
    page = chromium.new_page(viewport={"width": 400, "height": 800})
    page.goto(written.run.report_html.as_uri())
    page.locator("html[data-ready]").wait_for(state="attached")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.close()


def test_page_is_quiet_and_asks_for_nothing(opened, written):
    """Last, when everything was drawn."""
    assert opened.said == []
    assert opened.requests == [written.run.report_html.as_uri()]
    source = written.run.report_html.read_text()
    assert "default-src 'none'" in source


def test_a_run_without_any_answer(chromium, tmp_path):
    plan = asked(ttft=1)
    run_in_process(plan, tmp_path)
    run = RunPaths(tmp_path, plan.run)
    opened = open_page(chromium, run.report_html)
    assert opened.page.locator("h1").inner_text().startswith("0 of 3 needs")
    opened.page.locator("#questions button.open").first.click()
    opened.page.locator("[data-question]").wait_for()
    assert opened.page.locator("#unanswered li").count() >= 1
    assert opened.said == []
    opened.page.close()


def test_columns_of_later_stages_are_shown(chromium, written, tmp_path):
    file = tmp_path / "report.html"
    file.write_bytes(report(written.plan.ask, with_later_columns(written), {}, ()).page)
    opened = open_page(chromium, file)
    row = first(written.shown("verdicts"), system="h200_sxm", tpot_limit_ms=10.0)
    opened.page.locator(f"#q{row['question']} button.open").click()
    table = opened.page.locator("[data-question] table[data-table=configurations]")
    table.nth(1).wait_for()
    told = table.all_inner_texts()
    assert "TTFT p90 (ms)" in told[0]
    assert "Probability of the SLA" in told[0]
    assert "93 %" in told[0]
    assert "TTFT p99 (ms)" in told[1]
    assert "612.35" in told[1] or "612.34" in told[1]
    assert opened.said == []
    opened.page.close()


def enlarged(written: Written, copies: int) -> tuple:
    """The run with every experiment several times, under other names and TTFT limits."""
    ask, experiments, tables = written.plan.ask, [], {}
    for i in range(copies):
        experiments += [
            dataclasses.replace(e, name=f"copy{i}.{e.name}", ttft_ms=e.ttft_ms + i)
            for e in ask.experiments
        ]
        for name, table in in_memory(written).items():
            names = pa.array([f"copy{i}.{n}" for n in table["experiment"].to_pylist()])
            at = table.schema.get_field_index("experiment")
            table = table.set_column(at, table.schema.field(at), names.dictionary_encode())
            tables.setdefault(name, []).append(table)
    ask = dataclasses.replace(ask, experiments=tuple(experiments))
    return ask, {n: pa.concat_tables(parts).unify_dictionaries() for n, parts in tables.items()}


@pytest.mark.slow
def test_500_experiments_are_small_and_quick(chromium, written, tmp_path):
    """The limits that the report was asked for: 20 MB, 20 s, first paint in 2 s."""
    ask, tables = enlarged(written, 500 // len(written.plan.ask.experiments) + 1)
    assert len(ask.experiments) >= 500
    began = time.monotonic()
    told = report(ask, tables, made_from(ask.experiments), ())
    assert time.monotonic() - began < 20
    assert len(told.page) < 20e6
    file = tmp_path / "report.html"
    file.write_bytes(told.page)
    opened = open_page(chromium, file)
    paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    assert opened.page.evaluate(paint) < 2000
    began = time.monotonic()
    opened.page.locator("#questions button.open").nth(5).click()
    opened.drawn('[data-chart="frontier"]')
    assert time.monotonic() - began < 10
    assert opened.said == []
    opened.page.close()


@pytest.mark.slow
def test_10000_experiments_keep_the_page_bounded(written):
    ask, tables = enlarged(written, 10_000 // len(written.plan.ask.experiments) + 1)
    assert len(ask.experiments) >= 10_000
    told = report(ask, tables, {}, ())
    assert len(told.page) < 20e6
    assert told.tables["verdicts"].num_rows > 5000
    detailed = set(told.tables["frontier"]["question"].to_pylist())
    assert 0 < len(detailed) <= load_choices().detailed_questions
