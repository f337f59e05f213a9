"""The performance database anew, from the wheels that publish its tables.

perf_db/ is committed, so no other rule asks for this one. It downloads nothing:

    pip download --no-deps --dest wheels aiconfigurator==0.4.0 aiconfigurator-core==0.12.0
    snakemake --cores 1 import_perf_db --config wheels=wheels

Inputs:  the wheels in the folder that `config["wheels"]` names (`wheels` unless stated)
Outputs: perf_db/import.txt in the results, the row accounts; as a side effect perf_db/tables/ and
         perf_db/manifest.json, which are no outputs because Snakemake deletes outputs when a job
         fails, and tables that a user imported stay
"""

from pathlib import Path

from paretoserve import paths

_RESULTS = Path(config.get("results", "results"))
_WHEELS = Path(config.get("wheels", "wheels"))


rule import_perf_db:
    input:
        # A folder without wheels is asked for one by name, so that Snakemake says what is missing.
        wheels=sorted(_WHEELS.glob("*.whl")) or _WHEELS / "aiconfigurator-0.4.0-py3-none-any.whl",
    output:
        receipt=paths.import_receipt(_RESULTS),
    log:
        paths.log_file(_RESULTS, "import_perf_db", "wheels"),
    benchmark:
        paths.benchmark_file(_RESULTS, "import_perf_db", "wheels")
    params:
        perf_db=paths.PERF_DB,
    message:
        "import {input.wheels}"
    run:
        from scripts import import_perf_db

        import_perf_db.main(input, output, params, log)
