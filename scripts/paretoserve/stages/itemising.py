"""Itemise: which operators the time of each best deployment's steps is made of."""

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paretoserve import schemas

ROLES = ("agg", "prefill", "decode")


def breakdown(
    group_of_work: Mapping[str, str],
    best: pa.Table,
    read: Callable[[str, pc.Expression], pa.Table],
) -> pa.Table:
    """Return the BREAKDOWN table of the best deployments.

    `read(group, rows)` returns the OPERATORS rows of a group that an expression selects; it is
    asked only for the candidates that a best deployment is made of.
    """
    best_row, role, work, candidate = _workers(best)
    groups = np.array([group_of_work[one] for one in work], object)
    rows, roles, found = [np.zeros(0, int)], [np.zeros(0, int)], [schemas.OPERATORS.empty_table()]
    for group in dict.fromkeys(groups):
        mine = np.flatnonzero(groups == group)
        works, code = np.unique(work[mine].astype(str), return_inverse=True)
        ids = np.unique(candidate[mine])
        chosen = pc.field("work_id").isin(list(works)) & pc.field("candidate_id").isin(ids.tolist())
        operators = read(group, chosen)
        which, item = _matched(code, candidate[mine], list(works), operators)
        rows.append(best_row[mine][which])
        roles.append(role[mine][which])
        found.append(operators.take(item))
    at, of_role = np.concatenate(rows), np.concatenate(roles)
    # Stable, so that the operators of a step stay in their order.
    order = np.lexsort((of_role, at))
    items = pa.concat_tables(found).unify_dictionaries().take(order)
    columns = {
        **{name: best[name].take(at[order]) for name in ("experiment", "rank")},
        "role": pa.array(ROLES).take(of_role[order]),
        **{name: items[name] for name in ("step", "operator", "ms", "provenance")},
    }
    # Names anew, so that dictionaries hold what occurs: the same bytes from files as from memory.
    names = {field.name for field in schemas.BREAKDOWN if pa.types.is_dictionary(field.type)}
    plain = {k: pc.cast(v, pa.string()) if k in names else v for k, v in columns.items()}
    return pa.table(plain).combine_chunks().cast(schemas.BREAKDOWN)


def _workers(best: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Row in `best`, index in ROLES, work id and candidate id of every worker; each (N,)."""
    parts = []
    for i, role in enumerate(ROLES):
        works = best[f"{role}_work_id"]
        row = np.flatnonzero(works.is_valid().to_numpy())
        candidates = best[f"{role}_candidate_id"].take(row).to_numpy()
        works = np.array(works.take(row).to_pylist(), object)
        parts.append((row, np.full(len(row), i), works, candidates))
    return tuple(map(np.concatenate, zip(*parts, strict=True)))


def _matched(
    work: np.ndarray, candidate: np.ndarray, works: list[str], operators: pa.Table
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (worker, row of `operators`), by worker, then in the order of `operators`.

    `work` indexes `works`; `work` and `candidate` have one entry per worker.
    """
    op_work = pc.index_in(operators["work_id"].cast(pa.string()), value_set=pa.array(works))
    op_candidate = operators["candidate_id"].to_numpy().astype(np.int64)
    stride = int(max(op_candidate.max(initial=0), candidate.max(initial=0))) + 1
    key = op_work.to_numpy() * stride + op_candidate
    order = np.argsort(key, kind="stable")
    wanted = work * stride + candidate
    start, stop = (np.searchsorted(key[order], wanted, side) for side in ("left", "right"))
    count = stop - start
    which = np.repeat(np.arange(len(wanted)), count)
    within = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    return which, order[np.repeat(start, count) + within]
