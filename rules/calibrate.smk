"""The calibration anew, from measured runs: the times of engines, and how far predictions are off.

config/calibration.yaml and perf_db/silicon/held_out.parquet are committed, so no other rule asks
for this one. With runs of your own, in the columns of docs/accuracy.md:

    snakemake --cores 2 calibrate --config measurements=my_runs.csv

Inputs:  the file that `config["measurements"]` names (perf_db/silicon/measurements.parquet unless
         stated), and config/calibration.yaml, where the fit starts
Outputs: calibration/calibration.yaml, calibration/held_out.parquet and calibration/fit.txt in the
         results; when you have read the last, the first goes to config/ and the second to
         perf_db/silicon/
"""

from pathlib import Path

from paretoserve import paths

_RESULTS = Path(config.get("results", "results"))
_FITTED = paths.CalibrationPaths(_RESULTS)


rule calibrate:
    input:
        measurements=config.get("measurements", str(paths.MEASUREMENTS)),
        start=paths.CALIBRATION,
    output:
        calibration=_FITTED.calibration,
        held_out=_FITTED.held_out,
        fit=_FITTED.fit,
    log:
        paths.log_file(_RESULTS, "calibrate", "fit"),
    benchmark:
        paths.benchmark_file(_RESULTS, "calibrate", "fit")
    threads: 2
    message:
        "fit the calibration to {input.measurements}"
    run:
        from scripts import calibrate

        calibrate.main(input, output, threads, log)
