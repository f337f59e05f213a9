"""The worker candidates of each group, and whether they fit the GPU's memory.

Inputs:  none but the plan: the group's works
Outputs: work/{group}/candidates.parquet
"""


rule enumerate:
    output:
        candidates=WORK.candidates,
    log:
        log_file(RESULTS, "enumerate", "{group}"),
    benchmark:
        benchmark_file(RESULTS, "enumerate", "{group}")
    resources:
        mem_mb=memory_of_group,
        runtime=runtime_of_group,
    params:
        work=lambda wildcards: GROUPS[wildcards.group].digest,
        perf_db=tables_of_group,
        code=CODE["enumerate_candidates"],
    message:
        "enumerate the candidates of {wildcards.group}"
    run:
        from scripts import enumerate_candidates

        enumerate_candidates.main(GROUPS[wildcards.group], output, params, log)
