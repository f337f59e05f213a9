"""From an experiment file to the best deployments: enumerate, estimate, pareto, generate, compare.

snakemake --cores 2                                    the guide's example
snakemake --cores 2 --config experiments=my.yaml       a question of your own
"""

from snakemake.utils import min_version

min_version("9.20")


configfile: os.path.join(workflow.basedir, "config", "config.yaml")


include: "rules/common.smk"
include: "rules/enumerate.smk"
include: "rules/estimate.smk"
include: "rules/pareto.smk"
include: "rules/generate.smk"
include: "rules/compare.smk"
include: "rules/perf_db.smk"


rule all:
    default_target: True
    input:
        ANSWER.comparison,
        ANSWER.report,
        ANSWER.frontier_png,
        [ANSWER.experiment(name).config for name in EXPERIMENTS],
    localrule: True
    message:
        f"answered in {ANSWER.folder}"


onsuccess:
    if ANSWER.report.exists() and ANSWER.report.stat().st_mtime >= STARTED:
        print(ANSWER.report.read_text(encoding="utf-8"), flush=True)
