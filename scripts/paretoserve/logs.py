"""The log of one job: its start, what the stage counted, the seconds it took, and its failure."""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path


@contextmanager
def job_log(path: Path | str) -> Iterator[Callable[[str], None]]:
    """Open the log of a job and yield a function that adds one line to it.

    Jobs are threads of one process, so each writes its own file: nothing is redirected. An
    exception is written with its traceback and goes on to the caller.
    """
    start = time.perf_counter()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", buffering=1) as file:

        def note(line: str) -> None:
            file.write(f"{time.perf_counter() - start:8.3f} s  {line}\n")

        note(f"start {datetime.now(UTC).isoformat(timespec='seconds')}")
        try:
            yield note
        except BaseException:
            file.write(traceback.format_exc())
            note("failed")
            raise
        note("done")
