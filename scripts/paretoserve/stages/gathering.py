"""Gather: the answers of a run from those of its chunks.

A run's tables do not depend on how it was cut into chunks: rows are in the order of the experiments
asked, dictionaries in that of the rows.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paretoserve import schemas
from paretoserve.experiments.plan import Ask, Chunk
from paretoserve.stages.answering import pareto, refused_status
from paretoserve.stages.itemising import breakdown
from paretoserve.stages.simulating import with_simulations

# Tables that answer experiments, of a chunk and of a run; each begins with the experiment's name.
ANSWERS = {
    "frontier": schemas.DEPLOYMENTS,
    "best": schemas.DEPLOYMENTS,
    "breakdown": schemas.BREAKDOWN,
    "status": schemas.STATUS,
}


def answer(
    chunk: Chunk,
    candidates: Mapping[str, pa.Table],
    estimates: Mapping[str, pa.Table],
    operators: Callable[[str, pc.Expression], pa.Table],
) -> dict[str, pa.Table]:
    """Return the ANSWERS of a chunk's experiments, by name.

    `candidates` and `estimates` are those of each of its groups, by group id; `operators(group,
    rows)` returns the OPERATORS rows of a group that an expression selects.
    """
    frontier, best, status = pareto(chunk, candidates, estimates)
    best = with_simulations(chunk.experiments, best, chunk.simulated)
    items = breakdown(chunk.group_of_work, best, operators)
    return {"frontier": frontier, "best": best, "breakdown": items, "status": status}


def gather(ask: Ask, name: str, parts: Iterable[pa.Table]) -> pa.Table:
    """Return the table `name` of a run from the parts that its chunks answered, in any order."""
    found = pa.concat_tables([ANSWERS[name].empty_table(), *parts])
    if name == "status":
        found = pa.concat_tables([found, refused_status(ask.refused)])
    names = [one.name for one in (*ask.experiments, *ask.refused)]
    return _in_order(names, found.unify_dictionaries().combine_chunks())


def _in_order(names: Sequence[str], table: pa.Table) -> pa.Table:
    """Rows by experiment in the order of `names`, of one experiment as they are."""
    place = {name: i for i, name in enumerate(names)}
    asked = table["experiment"].combine_chunks()
    of_code = np.array([place[name] for name in asked.dictionary.to_pylist()], np.int64)
    rank = of_code[asked.indices.to_numpy()] if len(asked) else np.zeros(0, np.int64)
    if (np.diff(rank) < 0).any():
        table = table.take(np.argsort(rank, kind="stable"))
    columns = [_recoded(column) for column in table.columns]
    return pa.table(columns, schema=table.schema)


def _recoded(column: pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """A dictionary column with the words that occur, in the order in which they do."""
    if not pa.types.is_dictionary(column.type):
        return column
    whole = column.combine_chunks()
    known = whole.indices.is_valid().to_numpy(zero_copy_only=False)
    codes = whole.indices.fill_null(0).to_numpy()
    used, first = np.unique(codes[known], return_index=True)
    order = used[np.argsort(first)]
    place = np.zeros(len(whole.dictionary) or 1, np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    indices = pa.array(place[codes], mask=~known)
    return pa.DictionaryArray.from_arrays(indices, whole.dictionary.take(pa.array(order)))
