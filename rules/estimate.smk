"""Step latencies of the candidates that fit, operator by operator.

Inputs:  work/{group}/candidates.parquet, and the measured tables of the group's engines, which
         `params.perf_db` stands for: a digest, so that a fresh clone's new dates change nothing
Outputs: work/{group}/estimates.parquet, work/{group}/operators.parquet
"""


rule estimate:
    input:
        candidates=WORK.candidates,
    output:
        estimates=WORK.estimates,
        operators=WORK.operators,
    log:
        log_file(RESULTS, "estimate", "{group}"),
    benchmark:
        benchmark_file(RESULTS, "estimate", "{group}")
    resources:
        mem_mb=memory_of_group,
        runtime=runtime_of_group,
    params:
        work=lambda wildcards: GROUPS[wildcards.group].digest,
        perf_db=tables_of_group,
        code=CODE["estimate"],
    message:
        "estimate the candidates of {wildcards.group}"
    run:
        from scripts import estimate

        estimate.main(GROUPS[wildcards.group], input, output, params, log)
