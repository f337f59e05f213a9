"""The tables of a run, from those of its chunks, in the order in which experiments were asked.

Inputs:  answers/{chunk}/frontier.parquet, best.parquet, breakdown.parquet, status.parquet of all
         chunks of the run
Outputs: {run}/frontier.parquet, best.parquet, breakdown.parquet, status.parquet
"""


rule gather:
    input:
        **{name: [ChunkPaths(RESULTS, chunk).table(name) for chunk in CHUNKS] for name in ANSWERS},
    output:
        **{name: RUN.table(name) for name in ANSWERS},
    log:
        log_file(RESULTS, "gather", "{run}"),
    benchmark:
        benchmark_file(RESULTS, "gather", "{run}")
    localrule: True
    params:
        ask=PLAN.ask.digest,
        perf_db=tables_of(PLAN.ask.experiments),
        code=CODE["gather"],
    message:
        "gather the answers of {wildcards.run}"
    run:
        from scripts import gather

        gather.main(PLAN.ask, input, output, params, log)
