"""Generate: the guide's folder of one experiment, from its frontier and best deployments."""

import shutil

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from paretoserve.deploy.generator_config import generator_config
from paretoserve.experiments.experiment import Experiment
from paretoserve.experiments.resolving import fields_of
from paretoserve.paths import ExperimentPaths
from paretoserve.records import write_text
from paretoserve.report.csvfiles import best_csv, pareto_csv


def generate(
    experiment: Experiment, frontier: pa.Table, best: pa.Table, folder: ExperimentPaths
) -> None:
    """Write CSV files, the resolved experiment, and a folder per best configuration."""
    frontier, best = (
        table.filter(pc.equal(table["experiment"], experiment.name)) for table in (frontier, best)
    )
    for stale in folder.folder.glob(folder.top("*").name):
        shutil.rmtree(stale)
    write_text(folder.best_csv, best_csv(experiment, best))
    write_text(folder.pareto_csv, pareto_csv(experiment, frontier))
    write_text(folder.config, _yaml({experiment.name: fields_of(experiment)}))
    for row in best.to_pylist():
        text = _yaml(generator_config(experiment, row))
        write_text(folder.generator_config(row["rank"]), text)


def _yaml(content: dict[str, object]) -> str:
    return yaml.safe_dump(content, sort_keys=False)
