"""The guide's folder of each experiment: its tables as CSV, its settings, its best configurations.

Inputs:  answers/{chunk}/frontier.parquet, best.parquet of the experiment's chunk
Outputs: {run}/{experiment}/best_config_topn.csv, pareto.csv and config.yaml; beside them, as many
         as were found, top1/, top2/, ... with the files of each configuration

Of a large run only the winners are written, by one job (`generate` in config/config.yaml).

Inputs:  {run}/best.parquet; answers/{chunk}/frontier.parquet, best.parquet of all chunks
Outputs: {run}/winners.csv; as a side effect the folders of the experiments that it names
"""


rule generate:
    input:
        frontier=lambda wildcards: chunk_of(wildcards).table("frontier"),
        best=lambda wildcards: chunk_of(wildcards).table("best"),
    output:
        best_csv=FOLDER.best_csv,
        pareto_csv=FOLDER.pareto_csv,
        config=FOLDER.config,
    log:
        log_file(RESULTS, "generate", "{run}/{experiment}"),
    benchmark:
        benchmark_file(RESULTS, "generate", "{run}/{experiment}")
    localrule: True
    params:
        experiment=lambda wildcards: EXPERIMENTS[wildcards.experiment].digest,
        code=CODE["generate"],
    message:
        "generate the files of {wildcards.experiment}"
    run:
        from scripts import generate

        generate.main(EXPERIMENTS[wildcards.experiment], input, output, log)


rule generate_winners:
    input:
        best=RUN.best,
        chunks=[
            ChunkPaths(RESULTS, chunk).table(name)
            for chunk in CHUNKS
            for name in ("frontier", "best")
        ],
    output:
        winners=RUN.winners,
    log:
        log_file(RESULTS, "generate_winners", "{run}"),
    benchmark:
        benchmark_file(RESULTS, "generate_winners", "{run}")
    localrule: True
    params:
        ask=PLAN.ask.digest,
        code=CODE["generate_winners"],
    message:
        "generate the files of the winners of {wildcards.run}"
    run:
        from scripts import generate_winners

        generate_winners.main(PLAN, RESULTS, input, output, log)
