"""Pareto frontiers, best deployments within the SLA, and what became of each experiment of a chunk.

Inputs:  work/{group}/candidates.parquet, estimates.parquet and operators.parquet of its groups
Outputs: answers/{chunk}/frontier.parquet, best.parquet, breakdown.parquet, status.parquet
"""


rule pareto:
    input:
        candidates=lambda wildcards: groups_of(wildcards, "candidates"),
        estimates=lambda wildcards: groups_of(wildcards, "estimates"),
        operators=lambda wildcards: groups_of(wildcards, "operators"),
    output:
        **{name: CHUNK.table(name) for name in ANSWERS},
    log:
        log_file(RESULTS, "pareto", "{chunk}"),
    benchmark:
        benchmark_file(RESULTS, "pareto", "{chunk}")
    resources:
        mem_mb=memory_of_chunk,
        runtime=runtime_of_chunk,
    params:
        chunk=lambda wildcards: CHUNKS[wildcards.chunk].digest,
        perf_db=lambda wildcards: tables_of(CHUNKS[wildcards.chunk].experiments),
        code=CODE["pareto"],
    message:
        "find the best deployments of {wildcards.chunk}"
    run:
        from scripts import pareto

        pareto.main(CHUNKS[wildcards.chunk], input, output, params, log)
