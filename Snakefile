"""From an experiment file to its report: enumerate, estimate, pareto, gather, generate, compare, report.

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
include: "rules/gather.smk"
include: "rules/generate.smk"
include: "rules/compare.smk"
include: "rules/report.smk"
include: "rules/perf_db.smk"
include: "rules/screen.smk"
include: "rules/calibrate.smk"


rule all:
    default_target: True
    input:
        tables,
        ANSWER.report,
        ANSWER.frontier_png,
        ANSWER.report_html,
        FILES,
    localrule: True
    message:
        f"answered in {ANSWER.folder}"


onstart:
    begin()


onsuccess:
    if ANSWER.report.exists() and ANSWER.report.stat().st_mtime >= STARTED:
        print(ANSWER.report.read_text(encoding="utf-8"), flush=True)
