"""Every experiment's Pareto frontier, best deployments within its SLA, and what became of it.

Inputs:  work/{group}/candidates.parquet, work/{group}/estimates.parquet of all groups of the run
Outputs: {run}/frontier.parquet, {run}/best.parquet, {run}/status.parquet
"""


rule pareto:
    input:
        candidates=expand(WORK.candidates, group=GROUPS),
        estimates=expand(WORK.estimates, group=GROUPS),
    output:
        frontier=RUN.frontier,
        best=RUN.best,
        status=RUN.status,
    log:
        log_file(RESULTS, "pareto", "{run}"),
    benchmark:
        benchmark_file(RESULTS, "pareto", "{run}")
    params:
        ask=ask_of,
        groups=list(GROUPS),
        perf_db=tables_of_run,
        code=CODE["pareto"],
    message:
        "find the best deployments of {wildcards.run}"
    run:
        from scripts import pareto

        pareto.main(input, output, params, log)
