"""Which experiments ask the same: pairs of agg and disagg, and the ways to serve one need.

A *need* is what a planner has: model, load, SLA and number of GPUs. An *option* is a way to meet
it: GPU systems, engine, precision, MTP, wide EP. A *question* is an option for a need; it has one
experiment per serving mode, or more where only the search space differs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from paretoserve.experiments.experiment import Experiment
from paretoserve.experiments.plan import label
from paretoserve.experiments.sweeps import workloads
from paretoserve.models.catalog import find_model

MODES = ("agg", "disagg")


@dataclass(frozen=True)
class Question:
    """Experiments that differ in serving mode and search space only, in the order of the run."""

    number: int
    need: int
    experiments: tuple[Experiment, ...]

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What is the same for all of them: columns of the report's tables."""
        return facts_of(self.experiments[0])


def facts_of(experiment: Experiment) -> dict[str, Any]:
    """Return what distinguishes questions, as columns; limits are those of the SLA."""
    return {
        "model": label(experiment.model_name),
        "workload": _workload(experiment.isl, experiment.osl),
        "isl": experiment.isl,
        "osl": experiment.osl,
        "ttft_limit_ms": experiment.ttft_ms,
        "tpot_limit_ms": experiment.tpot_ms,
        "sla_probability_asked": experiment.sla_probability,
        "total_gpus": experiment.total_gpus,
        "system": _of_workers(experiment, lambda w: w.system),
        "engine": _of_workers(experiment, lambda w: f"{w.backend} {w.version}"),
        "precision": _precision(experiment),
        "mtp": f"nextn {experiment.nextn}" if experiment.nextn else "",
        "wide_ep": experiment.enable_wide_ep,
    }


NEED = ("model", "workload", "isl", "osl", "ttft_limit_ms", "tpot_limit_ms", "total_gpus")
FACTS = (*NEED, "sla_probability_asked", "system", "engine", "precision", "mtp", "wide_ep")


def questions(experiments: Sequence[Experiment]) -> tuple[Question, ...]:
    """Group the experiments of a run; numbers are in the order of first appearance."""
    grouped: dict[tuple, list[Experiment]] = {}
    needs: dict[tuple, int] = {}
    for experiment in experiments:
        facts = facts_of(experiment)
        same = (experiment.model_digest, experiment.nextn_accept_rates, *facts.values())
        grouped.setdefault(same, []).append(experiment)
    found = []
    for number, group in enumerate(grouped.values()):
        facts = facts_of(group[0])
        sure = facts["sla_probability_asked"]
        need = (group[0].model_digest, sure, *(facts[name] for name in NEED))
        found.append(Question(number, needs.setdefault(need, len(needs)), tuple(group)))
    return tuple(found)


def _workload(isl: int, osl: int) -> str:
    """Name of this load in config/workloads.yaml, or nothing."""
    named = ((name, (of["isl"], of["osl"])) for name, of in workloads().items())
    return next((name for name, load in named if load == (isl, osl)), "")


def _of_workers(experiment: Experiment, say: Any) -> str:
    return " + ".join(dict.fromkeys(map(say, experiment.workers)))


def _precision(experiment: Experiment) -> str:
    """`fp8_block`, and of experts, KV cache and attention what differs from the weights."""
    experts = find_model(experiment.model_name).is_moe

    def of_worker(worker: Any) -> str:
        parts = {
            "experts": worker.moe_quant_mode if experts else worker.gemm_quant_mode,
            "KV cache": worker.kvcache_quant_mode,
            "attention": worker.fmha_quant_mode,
        }
        others = (
            f"{mode} {part}" for part, mode in parts.items() if mode != worker.gemm_quant_mode
        )
        return ", ".join((worker.gemm_quant_mode, *others))

    return _of_workers(experiment, of_worker)
