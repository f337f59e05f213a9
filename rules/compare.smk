"""Which experiment serves most within its SLA: table, report and figure.

Inputs:  {run}/frontier.parquet, {run}/best.parquet, {run}/status.parquet
Outputs: {run}/comparison.parquet, {run}/report.txt, {run}/pareto_frontier.png
"""


rule compare:
    input:
        frontier=RUN.frontier,
        best=RUN.best,
        status=RUN.status,
    output:
        comparison=RUN.comparison,
        report=RUN.report,
        frontier_png=RUN.frontier_png,
    log:
        log_file(RESULTS, "compare", "{run}"),
    benchmark:
        benchmark_file(RESULTS, "compare", "{run}")
    localrule: True
    params:
        ask=PLAN.ask.digest,
        perf_db=tables_of(PLAN.ask.experiments),
        code=CODE["compare"],
    message:
        "compare the experiments of {wildcards.run}"
    run:
        from scripts import compare

        compare.main(PLAN.ask, input, output, params, log)
