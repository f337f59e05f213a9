"""Random experiment files: each ends in a report or in clear sentences, and no figure is senseless.

The files come from the schema: valid ones, with names and sizes that exist, and mutated ones. They
go through `main` in this process; the tables it works with are looked at as they pass by.
"""

import copy
import json
import math
import random
import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from paretoserve import cli, inprocess, paths, schemas
from paretoserve.experiments.resolving import MOE_LISTS, OTHER_MODE
from paretoserve.models.catalog import find_model, model_names

SCHEMA = json.loads(paths.EXPERIMENT_SCHEMA.read_bytes())
SYSTEMS = sorted(file.stem for file in paths.SYSTEMS.glob("*.yaml"))
STEPS = {"prefill": ["prefill"], "decode": ["decode"], "agg": ["mixed", "decode"]}

# What the schema cannot know: names that exist, and sizes that people ask for.
SENSIBLE = {
    "model_name": lambda rng: rng.choice(model_names()),
    "system_name": lambda rng: rng.choice(SYSTEMS),
    "decode_system_name": lambda rng: rng.choice(SYSTEMS),
    "backend_version": lambda rng: rng.choice(["1.0.0rc3", "1.3.0rc20", "0.5.14", "0.24.0"]),
    "decode_backend_version": lambda rng: rng.choice(["1.0.0rc3", "1.3.0rc20"]),
    "total_gpus": lambda rng: rng.choice([1, 2, 8, 24, 33, 64, 512]),
    "isl": lambda rng: int(2 ** rng.uniform(0, 17)),
    "osl": lambda rng: 1 + int(2 ** rng.uniform(0, 14)),
    "ttft": lambda rng: 10 ** rng.uniform(1, 6),
    "tpot": lambda rng: 10 ** rng.uniform(0, 3),
    "prefill_max_batch_size": lambda rng: rng.choice([1, 3, 16]),
    "decode_max_batch_size": lambda rng: rng.choice([1, 7, 128, 600]),
    "num_gpu_per_worker": lambda rng: rng.sample([1, 2, 3, 4, 8, 16], rng.randint(1, 4)),
    "tp_list": lambda rng: rng.sample([1, 2, 3, 4, 8], rng.randint(1, 3)),
    "pp_list": lambda rng: rng.choice([[1], [1, 2], [3]]),
    "dp_list": lambda rng: rng.choice([[1], [1, 4], [2, 8, 16]]),
    "moe_tp_list": lambda rng: rng.choice([[1], [1, 2], [4]]),
    "moe_ep_list": lambda rng: rng.choice([[1], [1, 8], [2, 4, 16]]),
    "nextn": lambda rng: rng.choice([0, 1, 2, 5]),
    "enable_wide_ep": lambda rng: rng.random() < 0.3,
    "mode": lambda rng: rng.choices(["patch", "replace"], [9, 1])[0],
}
RARE = ("backend_version", "decode_backend_version", "profiles", "fmha_quant_mode")

# YAML holds more than JSON: NaN, infinities, and what looks like something else.
ODD_VALUES = [
    None, True, False, -1, 0, 0.5, -0.0, 1e-9, 1e308, 10**30, math.nan, math.inf, -math.inf,
    "", " ", "8", "none", "../../etc", "a" * 300, "ü × ∞", "NaN", [], [[]], [None], {}, {"a": 1},
]  # fmt: skip


def valid(schema: dict[str, Any], rng: random.Random, name: str = "") -> Any:
    """A value that the schema allows, for the field of this name."""
    if name in SENSIBLE:
        return SENSIBLE[name](rng)
    if "$ref" in schema:
        return valid(SCHEMA["$defs"][schema["$ref"].split("/")[-1]], rng, name)
    if "enum" in schema:
        return rng.choice(schema["enum"])
    kind = schema["type"]
    kind = rng.choice(kind) if isinstance(kind, list) else kind
    if kind == "object":
        required = schema.get("required", ())
        return {
            key: valid(part, rng, key)
            for key, part in schema["properties"].items()
            if key in required or rng.random() < (0.05 if key in RARE else 0.4)
        }
    if kind == "array":
        length = rng.randint(schema.get("minItems", 0), schema.get("maxItems", 3))
        items = [valid(schema["items"], rng) for _ in range(length)]
        return list(dict.fromkeys(items)) if schema.get("uniqueItems") else items
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "null":
        return None
    low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
    high = schema.get("maximum", low + 200)
    if kind == "number":
        return high - rng.random() * (high - low)
    return min(high, low + int(2 ** rng.uniform(0, math.log2(high - low + 1))) - 1)


def experiment_file(rng: random.Random) -> dict[str, Any]:
    """One or two experiments, mostly without what contradicts the mode or the model."""
    experiments = {}
    for name in rng.choice([["one"], ["one"], ["one", "two.b"]]):
        fields = valid(SCHEMA["$defs"]["experiment"], rng)
        if rng.random() < 0.95:
            for dotted in meaningless(fields):
                *above, last = dotted.split(".")
                holder = fields
                for key in above:
                    holder = holder.get(key, {})
                holder.pop(last, None)
        experiments[name] = fields
    if rng.random() < 0.2:
        experiments["exps"] = rng.sample(list(experiments), 1)
    return experiments


def meaningless(fields: dict[str, Any]) -> list[str]:
    """Fields, dotted, that have no meaning with this serving mode or this model."""
    model = find_model(fields["model_name"])
    dotted = list(OTHER_MODE[fields["serving_mode"]])
    if not model.is_moe:
        dotted.append("enable_wide_ep")
        sections = ("worker_config", "prefill_worker_config", "decode_worker_config")
        dotted += [f"config.{section}.{name}" for section in sections for name in MOE_LISTS]
    if not model.mtp_layers:
        dotted.append("config.nextn")
    return dotted


def places(node: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every node below this one."""
    keys = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    return [place for key in keys for place in [(node, key), *places(node[key])]]


def mutate(content: dict[str, Any], rng: random.Random) -> None:
    """Make one mistake, or something that only looks like one."""
    container, key = rng.choice(places(content))
    value = container[key]
    mistake = rng.choice(["odd", "odd", "drop", "typo", "unknown", "nest", "scale", "swap"])
    if mistake == "drop":
        del container[key]
    elif mistake == "typo" and isinstance(key, str) and len(key) > 1:
        at = rng.randrange(len(key))
        container[key[:at] + rng.choice("xX-_ .") + key[at + 1 :]] = container.pop(key)
    elif mistake == "unknown" and isinstance(container, dict):
        container[rng.choice(["seed", "tp", "Model_Name", "config"])] = copy.deepcopy(value)
    elif mistake == "nest":
        container[key] = rng.choice([[value], {"value": value}])
    elif mistake == "scale" and type(value) in (int, float):
        container[key] = value * rng.choice([-1, 0.5, 1000, 1e9])
    elif mistake == "swap" and isinstance(value, str) and len(value) > 1:
        container[key] = value[1] + value[0] + value[2:]
    else:
        container[key] = copy.deepcopy(rng.choice(ODD_VALUES))


def damaged(text: str, rng: random.Random) -> str:
    """The text with one character replaced, as a slip of the hand."""
    at = rng.randrange(len(text))
    return text[:at] + rng.choice("\t:{}[]'\"#&*!%@`|>\0é-,? ") + text[at + 1 :]


def question(rng: random.Random, mistakes: int) -> bytes:
    content = experiment_file(rng)
    for _ in range(mistakes):
        if content:
            mutate(content, rng)
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
    return (damaged(text, rng) if mistakes and rng.random() < 0.15 else text).encode()


@dataclass
class Passing:
    """Tables that passed by in a run."""

    estimates: list[tuple[pa.Table, pa.Table]] = field(default_factory=list)
    results: list[inprocess.RunResult] = field(default_factory=list)


@pytest.fixture
def passing(monkeypatch) -> Passing:
    seen = Passing()

    def keep(into: list, function, *arguments):
        into.append(function(*arguments))
        return into[-1]

    monkeypatch.setattr(inprocess, "estimate", partial(keep, seen.estimates, inprocess.estimate))
    monkeypatch.setattr(
        inprocess, "run_in_process", partial(keep, seen.results, inprocess.run_in_process)
    )
    return seen


def check_shares(rows: pa.Table, prefix: str = "") -> None:
    shares = np.stack([rows[f"{prefix}{name}"].to_numpy() for name in schemas.SHARES])
    assert shares.min(initial=0) >= 0
    assert np.allclose(shares.sum(axis=0), 1, atol=1e-4)
    formula = rows[f"{prefix}speed_of_light_share"].to_numpy()
    assert formula.max(initial=0) < 0.999, "a row of nothing but formulas"


def check_estimates(estimates: pa.Table, operators: pa.Table) -> None:
    assert np.isfinite(operators["ms"].to_numpy()).all()
    reasons = np.array(estimates["reason"].to_pylist(), object)
    roles = np.array(estimates["role"].to_pylist(), object)
    check_shares(estimates.filter(pa.array(reasons == "")))
    for role, steps in STEPS.items():
        priced = estimates.filter(pa.array((reasons == "") & (roles == role)))
        for step in steps:
            ms = priced[f"{step}_step_ms"].to_numpy()
            assert np.isfinite(ms).all()
            assert (ms > 0).all()


def check_deployments(rows: pa.Table) -> None:
    for name in rows.column_names:
        if pa.types.is_floating(rows[name].type):
            values = rows[name].drop_null().to_numpy()
            assert np.isfinite(values).all(), name
            assert (values >= 0).all(), name
    for role in STEPS:
        check_shares(rows.filter(rows[f"{role}_workers"].is_valid()), f"{role}_")
    assert (rows["gpus_used"].to_numpy() <= rows["total_gpus"].to_numpy()).all()


def run(file: Path, capsys) -> int:
    """Answer the file; what is printed fits the exit code. Warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code = cli.main(["cli", "exp", "--yaml_path", str(file)])
    printed = capsys.readouterr()
    assert code in (cli.ANSWERED, cli.INPUT_ERROR, cli.NO_ANSWER)
    assert "Traceback" not in printed.err
    if code == cli.INPUT_ERROR:
        assert printed.out == ""
        lines = printed.err.splitlines()
        assert lines
        assert len(set(lines)) == len(lines)
        for line in lines:
            assert line.startswith("error: ")
            assert 20 < len(line) < 1500
    else:
        assert printed.err == ""
        assert "Best Experiment Chosen: " in printed.out
        assert " nan" not in printed.out.lower()
        assert "inf " not in printed.out.lower()
    return code


def fuzz(seeds: range, folder: Path, capsys, passing: Passing) -> Counter:
    """Run a file for each seed: half of them valid, the others with one to three mistakes."""
    codes = Counter()
    file = folder / "experiments.yaml"
    for seed in seeds:
        rng = random.Random(seed)
        file.write_bytes(question(rng, mistakes=rng.choice([0, 0, 0, 1, 2, 3])))
        try:
            codes[run(file, capsys)] += 1
            for estimates, operators in passing.estimates:
                check_estimates(estimates, operators)
            for result in passing.results:
                check_deployments(result.frontier)
                check_deployments(result.best)
        except BaseException as error:
            error.add_note(f"seed {seed} asks:\n{file.read_text()}")
            raise
        passing.estimates.clear()
        passing.results.clear()
    return codes


def test_random_files_end_in_a_report_or_in_sentences(tmp_path, capsys, passing):
    codes = fuzz(range(80), tmp_path, capsys, passing)
    assert min(codes[code] for code in (cli.ANSWERED, cli.INPUT_ERROR, cli.NO_ANSWER)) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_many_random_files(part, tmp_path, capsys, passing):
    fuzz(range(1000 + 150 * part, 1150 + 150 * part), tmp_path, capsys, passing)
