"""Read and write the stages' Parquet files: whole or not at all, and the same bytes every time."""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from paretoserve.errors import InputError


def write_table(table: pa.Table, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a Parquet file with `metadata` (schema name and run identity) in its footer."""
    table = table.replace_schema_metadata(dict(metadata))
    write_whole(path, lambda stream: pq.write_table(table, stream, compression="zstd"))


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file of a stage; InputError if it is missing or unreadable."""
    try:
        return pq.read_table(path, columns=columns)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: run the stage that makes it") from error
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"{path} is not a readable Parquet file ({reason})") from error


def write_text(path: Path, text: str, executable: bool = False) -> None:
    """Write a text file, whole or not at all."""
    write_whole(path, lambda stream: stream.write(text.encode()), 0o755 if executable else 0o644)


def write_whole(path: Path, write: Callable[[BinaryIO], object], mode: int = 0o644) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            write(stream)
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException as error:
        os.unlink(name)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk does not say where it is
        raise
