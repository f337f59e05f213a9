"""Generate: the guide's folder of one experiment, from its frontier and best deployments."""

import shutil

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from paretoserve.deploy.checking import check, check_scripts
from paretoserve.deploy.deployment import Deployment
from paretoserve.deploy.generator_config import generator_config
from paretoserve.experiments.experiment import Experiment
from paretoserve.experiments.resolving import fields_of
from paretoserve.paths import ExperimentPaths
from paretoserve.records import write_text
from paretoserve.report.csvfiles import best_csv, pareto_csv


def generate(
    experiment: Experiment, frontier: pa.Table, best: pa.Table, folder: ExperimentPaths
) -> None:
    """Write CSV files, the resolved experiment, and a folder per best configuration.

    Raises
    ------
    InputError
        An engine cannot run a configuration, or refuses a file. Nothing is written then.
    """
    frontier, best = (
        table.filter(pc.equal(table["experiment"], experiment.name)) for table in (frontier, best)
    )
    files = {
        folder.best_csv: best_csv(experiment, best),
        folder.pareto_csv: pareto_csv(experiment, frontier),
        folder.config: _yaml({experiment.name: fields_of(experiment)}),
    }
    scripts = {}
    for row in best.to_pylist():
        deployment, rank = Deployment(experiment, row), row["rank"]
        content = deployment.files()
        check(deployment, content)
        files[folder.generator_config(rank)] = _yaml(generator_config(experiment, row))
        for name, text in content.items():
            file = folder.deployment(rank, experiment.serving_mode) / name
            files[file] = text
            if file.suffix == ".sh":
                scripts[f"{folder.top(rank).name}/{name}"] = text
    if scripts:
        check_scripts(scripts)
    for stale in folder.folder.glob(folder.top("*").name):
        shutil.rmtree(stale)
    for file, text in files.items():
        write_text(file, text, executable=file.suffix == ".sh")


def _yaml(content: dict[str, object]) -> str:
    return yaml.dump(content, Dumper=yaml.CSafeDumper, sort_keys=False)
