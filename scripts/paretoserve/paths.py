"""The one place that spells the names of files and folders."""

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(os.environ.get("PARETOSERVE_HOME", Path(__file__).resolve().parents[2]))

CONFIG = ROOT / "config"
DEFAULTS = CONFIG / "defaults.yaml"
QUANT_MODES = CONFIG / "quant_modes.yaml"
ESTIMATION = CONFIG / "estimation.yaml"
BACKENDS = CONFIG / "backends.yaml"
DEPLOY = CONFIG / "deploy.yaml"
MODELS = CONFIG / "models"
EXPERIMENTS = CONFIG / "experiments"
SCHEMAS = CONFIG / "schemas"
EXPERIMENT_SCHEMA = SCHEMAS / "experiment.schema.json"
ENGINE_DEFINITIONS = SCHEMAS / "engines"
TEMPLATES = Path(__file__).parent / "deploy" / "templates"

PERF_DB = ROOT / "perf_db"
SYSTEMS = PERF_DB / "systems"
OPERATORS = PERF_DB / "operators.yaml"
MANIFEST = PERF_DB / "manifest.json"
TABLES = PERF_DB / "tables"

ADAPTERS = ROOT / "scripts"


def adapter_file(stage: str) -> Path:
    """Script through which the workflow's rule calls a stage."""
    return ADAPTERS / f"{stage}.py"


def model_file(model: str) -> Path:
    """Dimensions of one model."""
    return MODELS / f"{model}.yaml"


def huggingface_config(folder: Path) -> Path:
    """Dimensions in a model's own folder."""
    return folder / "config.json"


def huggingface_quant_config(folder: Path) -> Path:
    """What NVIDIA ModelOpt did to the checkpoint in a model's own folder."""
    return folder / "hf_quant_config.json"


def system_file(system: str) -> Path:
    """Specification of one GPU system."""
    return SYSTEMS / f"{system}.yaml"


def engine_definition(engine: str) -> Path:
    """Keys or flags that the versions of an engine know, or schemas of objects (kubernetes)."""
    return ENGINE_DEFINITIONS / f"{engine}.json"


def node_script(node: int) -> str:
    """Script that starts one node of a deployment."""
    return f"node_{node}_run.sh"


def engine_file(role: str) -> str:
    """TensorRT-LLM's settings of one role's workers."""
    return f"{role}_config.yaml"


K8S_DEPLOYMENT = "k8s_deploy.yaml"
LLMD_VALUES = "llmd_values.yaml"
BENCHMARK_SCRIPT = "bench_run.sh"
VERIFY = "verify.md"


def table_file(
    system: str, backend: str, version: str, operator: str, tables: Path = TABLES
) -> Path:
    """Measured latencies of one operator."""
    return tables / system / backend / version / f"{operator}.parquet"


def log_file(results: Path, stage: str, name: str) -> Path:
    """Log of one job: of a stage, for one group or run."""
    return results / "logs" / stage / f"{name}.log"


def benchmark_file(results: Path, stage: str, name: str) -> Path:
    """Seconds and memory of one job, as Snakemake measured them."""
    return results / "benchmarks" / stage / f"{name}.tsv"


def import_receipt(results: Path) -> Path:
    """Row accounts that the import of perf_db leaves."""
    return results / "perf_db" / "import.txt"


@dataclass(frozen=True)
class WorkPaths:
    """Stage files of one group of works: independent of SLA, so runs share them."""

    results: Path
    group: str

    @property
    def folder(self) -> Path:
        return self.results / "work" / self.group

    @property
    def candidates(self) -> Path:
        return self.folder / "candidates.parquet"

    @property
    def estimates(self) -> Path:
        return self.folder / "estimates.parquet"

    @property
    def operators(self) -> Path:
        return self.folder / "operators.parquet"


@dataclass(frozen=True)
class RunPaths:
    """Files of one run: all experiments of one question, with their SLA."""

    results: Path
    run: str

    @property
    def folder(self) -> Path:
        return self.results / self.run

    @property
    def frontier(self) -> Path:
        return self.folder / "frontier.parquet"

    @property
    def best(self) -> Path:
        return self.folder / "best.parquet"

    @property
    def status(self) -> Path:
        return self.folder / "status.parquet"

    @property
    def comparison(self) -> Path:
        return self.folder / "comparison.parquet"

    @property
    def report(self) -> Path:
        return self.folder / "report.txt"

    @property
    def frontier_png(self) -> Path:
        return self.folder / "pareto_frontier.png"

    def experiment(self, name: str) -> "ExperimentPaths":
        """Return the guide's folder of one experiment."""
        return ExperimentPaths(self.folder / name)


@dataclass(frozen=True)
class ExperimentPaths:
    """The guide's folder of one experiment (`agg/`, `disagg/`, ...)."""

    folder: Path

    @property
    def best_csv(self) -> Path:
        return self.folder / "best_config_topn.csv"

    @property
    def pareto_csv(self) -> Path:
        return self.folder / "pareto.csv"

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    def top(self, rank: int) -> Path:
        """Folder of the configuration of this rank (1 is the best)."""
        return self.folder / f"top{rank}"

    def generator_config(self, rank: int) -> Path:
        return self.top(rank) / "generator_config.yaml"

    def deployment(self, rank: int, serving_mode: str) -> Path:
        """Folder of the files that start the configuration of this rank."""
        return self.top(rank) / serving_mode
