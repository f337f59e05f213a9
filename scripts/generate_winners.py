"""Rule generate_winners: the guide's folders of the experiments that won a question."""

from functools import cache
from pathlib import Path

from paretoserve.experiments.plan import Plan
from paretoserve.logs import job_log
from paretoserve.paths import ChunkPaths, RunPaths
from paretoserve.records import read_table, write_text
from paretoserve.stages.generating import generate_winners


def main(plan: Plan, results: Path, input, output, log) -> None:
    """Write the folders of the winners of a run beside `output.winners`, which lists them."""
    with job_log(log[0]) as note:
        best = read_table(Path(input.best), columns=["experiment", "rank", "tokens_per_s_per_gpu"])
        answer = cache(lambda chunk, name: read_table(ChunkPaths(results, chunk).table(name)))
        written = generate_winners(plan, best, answer, RunPaths(results, plan.run))
        write_text(Path(output.winners), written)
        note(f"{len(written.splitlines()) - 1} winners")
