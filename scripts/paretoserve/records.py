"""Read and write the stages' files: whole or not at all, and the same bytes every time.

A Parquet file holds a checksum of itself. What a crash, a full disk or somebody else left in its
place is therefore told from what a stage wrote, and is never read.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from paretoserve.errors import InputError

# The footer has this key, but the schema's metadata does not: who reads a table does not see it.
CHECKSUM = b"paretoserve.checksum"
# What stands in the place of the checksum while it is computed.
_BLANK = b"0" * 32
# In Thrift's compact encoding: the key, "a text follows", its length.
_KEY = CHECKSUM + b"\x18" + bytes([len(_BLANK)])

_TEMPORARY = "[a-z0-9_]" * 8  # as tempfile ends names
_UNFINISHED = ".paretoserve-"


def write_table(table: pa.Table, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a Parquet file with `metadata` (schema name and run identity) in its footer."""
    content = _sealed(table.replace_schema_metadata(dict(metadata)))
    write_whole(path, lambda stream: stream.write(content))


def read_table(
    path: Path, columns: list[str] | None = None, rows: pc.Expression | None = None
) -> pa.Table:
    """Read a Parquet file of a stage, or some of it; InputError if missing or not as written."""
    try:
        content = _checked(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: run the stage that makes it") from error
    return pq.read_table(pa.BufferReader(content), columns=columns, filters=rows)


def csv_bytes(table: pa.Table) -> bytes:
    """A table as CSV, null as nothing."""
    sink = pa.BufferOutputStream()
    csv.write_csv(table, sink, csv.WriteOptions(quoting_style="needed"))
    return sink.getvalue().to_pybytes()


def read_identity(path: Path) -> dict[str, str]:
    """Return the metadata that `write_table` was given; InputError if the file is not sound."""
    metadata = pq.read_schema(pa.BufferReader(_checked(path))).metadata or {}
    return {key.decode(): value.decode() for key, value in metadata.items()}


def write_text(path: Path, text: str, executable: bool = False, durable: bool = True) -> None:
    """Write a text file, whole or not at all."""
    mode = 0o755 if executable else 0o644
    write_whole(path, lambda stream: stream.write(text.encode()), mode, durable)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    write_whole(path, lambda stream: stream.write(content))


def write_whole(
    path: Path, write: Callable[[BinaryIO], object], mode: int = 0o644, durable: bool = True
) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in its place.

    A file that is not `durable` may be empty after a power cut, for it is not flushed to the disk
    first (3 ms). A killed process leaves its temporary file (`is_temporary`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        error.filename = str(path)
        raise
    try:
        with os.fdopen(descriptor, "wb") as stream:
            write(stream)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException as error:
        os.unlink(name)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk does not say where it is
        raise


def is_temporary(path: Path) -> bool:
    """Whether a file is one that `write_whole` had not put in its place yet."""
    return fnmatchcase(path.name, f".*.{_TEMPORARY}")


@contextmanager
def unfinished_folder(parent: Path) -> Iterator[Path]:
    """Yield a hidden folder in `parent`; then it is gone, as are those of killed processes."""
    with ExitStack() as held:
        # So that nobody takes a folder that is made but not locked yet for one that was left.
        with _locked(parent):
            for left in parent.glob(f"{_UNFINISHED}{_TEMPORARY}"):
                # Who is alive holds the lock of its folder; without locks, all may be alive.
                with suppress(OSError):
                    lock = try_lock(left)
                    shutil.rmtree(left)
                    os.close(lock)
            made = tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=parent)
            folder = Path(held.enter_context(made))
            held.enter_context(_locked(folder))
        yield folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait for the lock of a folder and hold it, if the file system has locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def try_lock(path: Path) -> int:
    """Lock a file or folder until the descriptor returned is closed or the process ends.

    Raises
    ------
    BlockingIOError
        Another process holds the lock.
    OSError
        The file system has no locks.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _sealed(table: pa.Table) -> bytearray:
    """Bytes of the Parquet file of a table, its checksum among them."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({CHECKSUM: _BLANK})
    content = bytearray(sink.getvalue())
    place = _place(content)
    content[place] = _checksum(content, place)
    return content


def _checked(path: Path) -> bytes:
    """Bytes of a file that `_sealed` made; InputError if they are not the same any more."""
    content = path.read_bytes()
    place = _place(content)
    if place is None or content[place] != _checksum(content, place):
        raise InputError(
            f"{path} is not as paretoserve wrote it (its checksum does not hold): "
            f"the next call of the workflow makes it anew"
        )
    return content


def _place(content: bytes | bytearray) -> slice | None:
    """Where the checksum stands in a file, None if it has none."""
    key = content.rfind(_KEY)
    return None if key < 0 else slice(key + len(_KEY), key + len(_KEY) + len(_BLANK))


def _checksum(content: bytes | bytearray, place: slice) -> bytes:
    """Digest of all bytes but the checksum's own."""
    digest = hashlib.blake2b(digest_size=len(_BLANK) // 2)
    view = memoryview(content)
    for part in (view[: place.start], _BLANK, view[place.stop :]):
        digest.update(part)
    return digest.hexdigest().encode()
