"""The comparison report: one HTML page, what it shows as tables, and figures for slides.

Inputs:  {run}/frontier.parquet, {run}/best.parquet, {run}/breakdown.parquet, {run}/status.parquet,
         {run}/comparison.parquet (so that it comes last); {run}/winners.csv, if only they have
         files; of the earlier run that
         `config["baseline"]` names, the same report's tables
Outputs: {run}/report.html; {run}/report/*.parquet and *.csv, every table; {run}/report/*.png
"""

from paretoserve.paths import REPORT_SLIDES, REPORT_TABLES


rule report:
    input:
        frontier=RUN.frontier,
        best=RUN.best,
        breakdown=RUN.breakdown,
        status=RUN.status,
        comparison=RUN.comparison,
        winners=[RUN.winners] if SCOPE == WINNERS else [],
    output:
        page=RUN.report_html,
        tables=[RUN.report_table(name) for name in REPORT_TABLES],
        csv=[RUN.report_table(name, "csv") for name in REPORT_TABLES],
        slides=[RUN.slide(name) for name in REPORT_SLIDES],
    log:
        log_file(RESULTS, "report", "{run}"),
    benchmark:
        benchmark_file(RESULTS, "report", "{run}")
    localrule: True
    params:
        ask=PLAN.ask.digest,
        all_have_files=SCOPE == ALL,
        baseline=BASELINE,
        baseline_digest=BASELINE_DIGEST,
        perf_db=tables_of(PLAN.ask.experiments),
        code=CODE["report"],
    message:
        "report on {wildcards.run}"
    run:
        from scripts import report

        report.main(PLAN.ask, input, output, params, log)
