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
PRECISION = CONFIG / "precision.yaml"
SCREENING_RULE = CONFIG / "screening.yaml"
DEPLOY = CONFIG / "deploy.yaml"
CALIBRATION = CONFIG / "calibration.yaml"
PRICES = CONFIG / "prices.yaml"
REPORT = CONFIG / "report.yaml"
MODELS = CONFIG / "models"
EXPERIMENTS = CONFIG / "experiments"
SWEEPS = CONFIG / "sweeps"
WORKLOADS = CONFIG / "workloads.yaml"
RATES = CONFIG / "rates.yaml"
SCHEMAS = CONFIG / "schemas"
EXPERIMENT_SCHEMA = SCHEMAS / "experiment.schema.json"
SWEEP_SCHEMA = SCHEMAS / "sweep.schema.json"
ENGINE_DEFINITIONS = SCHEMAS / "engines"
TEMPLATES = Path(__file__).parent / "deploy" / "templates"
REPORT_TEMPLATES = Path(__file__).parent / "report" / "templates"

# What the comparison report leaves beside its page: tables, and figures for slides.
REPORT_TABLES = (
    "experiments",
    "configurations",
    "frontier",
    "operators",
    "verdicts",
    "decisions",
    "systems",
    "modes",
    "tpot_curves",
    "user_speeds",
    "fewest_gpus",
    "unanswered",
    "changes",
)
REPORT_SLIDES = ("systems", "tpot_curves", "step_time")

PERF_DB = ROOT / "perf_db"
SYSTEMS = PERF_DB / "systems"
OPERATORS = PERF_DB / "operators.yaml"
MANIFEST = PERF_DB / "manifest.json"
SCREENING = PERF_DB / "screening.json"
TABLES = PERF_DB / "tables"
SILICON = PERF_DB / "silicon"
MEASUREMENTS = SILICON / "measurements.parquet"
HELD_OUT = SILICON / "held_out.parquet"
RECIPES = SILICON / "recipes.csv"

ADAPTERS = ROOT / "scripts"
LOCK = ROOT / "requirements.lock"


def adapter_file(stage: str) -> Path:
    """Script through which the workflow's rule calls a stage."""
    return ADAPTERS / f"{stage}.py"


def stages() -> list[str]:
    """Names of all stages that have an adapter."""
    return sorted(file.stem for file in ADAPTERS.glob("[a-z]*.py"))


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


def asked_folder(results: Path, run: str) -> Path:
    """Folder of the experiment file that asked for a run, under its own name."""
    return results / "logs" / "asked" / run


def kept_baseline(asked: Path, baseline: str) -> "RunPaths":
    """Earlier run with which a run was compared, kept in the folder of what asked for it."""
    return RunPaths(asked / "baseline", baseline)


def lock_file(results: Path) -> Path:
    """What the workflow locks while it writes results."""
    return results / "logs" / "workflow.lock"


def import_receipt(results: Path) -> Path:
    """Row accounts that the import of perf_db leaves."""
    return results / "perf_db" / "import.txt"


def screening_result(results: Path) -> Path:
    """Tables that the screening rule found."""
    return results / "perf_db" / "screening.json"


@dataclass(frozen=True)
class CalibrationPaths:
    """What a fit to measured runs leaves."""

    results: Path

    @property
    def folder(self) -> Path:
        return self.results / "calibration"

    @property
    def calibration(self) -> Path:
        return self.folder / "calibration.yaml"

    @property
    def held_out(self) -> Path:
        return self.folder / "held_out.parquet"

    @property
    def fit(self) -> Path:
        return self.folder / "fit.txt"


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
class ChunkPaths:
    """Answers to some of a run's experiments."""

    results: Path
    chunk: str

    @property
    def folder(self) -> Path:
        return self.results / "answers" / self.chunk

    def table(self, name: str) -> Path:
        """Return the file of one of the tables that answer: frontier, best, ..."""
        return self.folder / f"{name}.parquet"


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
    def breakdown(self) -> Path:
        return self.folder / "breakdown.parquet"

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

    @property
    def plan(self) -> Path:
        """How the run is divided into jobs."""
        return self.folder / "plan.json"

    @property
    def winners(self) -> Path:
        """Which experiments won, whose files were written."""
        return self.folder / "winners.csv"

    def table(self, name: str) -> Path:
        """Return the file of one of the tables that answer: frontier, best, ..."""
        return self.folder / f"{name}.parquet"

    @property
    def report_html(self) -> Path:
        return self.folder / "report.html"

    def report_table(self, name: str, suffix: str = "parquet") -> Path:
        """Table that the report shows, as Parquet or CSV."""
        return self.folder / "report" / f"{name}.{suffix}"

    def slide(self, name: str) -> Path:
        """Figure for slides."""
        return self.folder / "report" / f"{name}.png"

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
