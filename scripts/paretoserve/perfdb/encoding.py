"""How a table of perf_db is stored: sorted, every coordinate once, small, reproducible bytes."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# No pandas or Arrow metadata and no statistics: they would be a fifth of a small file, and nothing
# reads them. One row group and one page per column: tables are read whole.
_SETTINGS = {
    "compression": "zstd",
    "compression_level": 19,
    "store_schema": False,
    "write_statistics": False,
    "data_page_size": 1 << 28,
    "dictionary_pagesize_limit": 1 << 28,
    "max_rows_per_page": 1 << 28,
    "row_group_size": 1 << 28,
}


@dataclass(frozen=True)
class Order:
    """Sorted distinct coordinates of a table.

    kept : index (K,) of the row kept at each coordinate, in sort order.
    dropped : index (D,) of the other rows.
    winner : index (D,) of the row kept in place of each dropped one.
    """

    kept: np.ndarray
    dropped: np.ndarray
    winner: np.ndarray


def sort(table: pa.Table, keys: tuple[str, ...], precedence: np.ndarray) -> Order:
    """Sort the rows (N) by all keys; at each coordinate the least `precedence` (N) is kept."""
    ranks = [_rank(table[key]) for key in keys]
    index = np.lexsort((precedence, *reversed(ranks)))
    first = np.ones(len(index), bool)
    first[1:] = np.any([rank[index[1:]] != rank[index[:-1]] for rank in ranks], axis=0)
    kept = index[first]
    winner = kept[np.cumsum(first) - 1]
    return Order(kept, index[~first], winner[~first])


def encode(table: pa.Table) -> bytes:
    """Return the Parquet file of a sorted table, each column in its smallest encoding."""
    dictionary, others = [], {}
    for name in table.column_names:
        encoding = _smallest_encoding(table.select([name]))
        if encoding == "DICTIONARY":
            dictionary.append(name)
        else:
            others[name] = encoding
    return _parquet(table, use_dictionary=dictionary, column_encoding=others or None)


def _smallest_encoding(column: pa.Table) -> str:
    (name,) = column.column_names
    sizes = {"DICTIONARY": len(_parquet(column, use_dictionary=True))}
    if not pa.types.is_string(column.schema.types[0]):
        for encoding in ("PLAIN", "BYTE_STREAM_SPLIT"):
            options = {"use_dictionary": False, "column_encoding": {name: encoding}}
            sizes[encoding] = len(_parquet(column, **options))
    return min(sizes, key=lambda encoding: sizes[encoding])


def _parquet(table: pa.Table, **options) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **_SETTINGS, **options)
    return sink.getvalue().to_pybytes()


def _rank(column: pa.ChunkedArray) -> np.ndarray:
    """Whole numbers (N) that sort like the column; strings sort by code point."""
    if not pa.types.is_string(column.type):
        return column.to_numpy()
    encoded = column.combine_chunks().dictionary_encode()
    words = np.array(encoded.dictionary.to_pylist(), dtype=object)
    rank = np.empty(len(words), np.int32)
    rank[np.argsort(words)] = np.arange(len(words))
    return rank[encoded.indices.to_numpy()]
