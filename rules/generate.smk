"""The guide's folder of each experiment: its tables as CSV, its settings, its best configurations.

Inputs:  {run}/frontier.parquet, {run}/best.parquet
Outputs: {run}/{experiment}/best_config_topn.csv, pareto.csv and config.yaml; beside them, as many
         as were found, top1/, top2/, ... with the files of each configuration
"""


rule generate:
    input:
        frontier=RUN.frontier,
        best=RUN.best,
    output:
        best_csv=FOLDER.best_csv,
        pareto_csv=FOLDER.pareto_csv,
        config=FOLDER.config,
    log:
        log_file(RESULTS, "generate", "{run}/{experiment}"),
    benchmark:
        benchmark_file(RESULTS, "generate", "{run}/{experiment}")
    params:
        experiment=experiment_of,
        code=CODE["generate"],
    message:
        "generate the files of {wildcards.experiment}"
    run:
        from scripts import generate

        generate.main(input, output, params, log)
