"""The tables of perf_db that timed something else than their kernel, found by rule.

perf_db/screening.json is committed, so no other rule asks for this one; run it after an import:

    snakemake --cores 1 screen

Inputs:  perf_db/manifest.json (which names every table by its content), config/screening.yaml
Outputs: perf_db/screening.json in the results; as a side effect perf_db/screening.json itself, which
         is no output because Snakemake deletes outputs when a job fails
"""

from pathlib import Path

from paretoserve import paths

_RESULTS = Path(config.get("results", "results"))


rule screen:
    input:
        manifest=paths.MANIFEST,
        rule=paths.SCREENING_RULE,
    output:
        screening=paths.screening_result(_RESULTS),
    log:
        paths.log_file(_RESULTS, "screen", "perf_db"),
    benchmark:
        paths.benchmark_file(_RESULTS, "screen", "perf_db")
    params:
        screening=paths.SCREENING,
    message:
        "screen perf_db"
    run:
        from scripts import screen

        screen.main(input, output, params, log)
