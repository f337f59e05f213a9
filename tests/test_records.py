"""Files as the stages exchange them: whole, durable, and read only if they are as written."""

import os
import random
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paretoserve.errors import InputError
from paretoserve.records import (
    read_identity,
    read_table,
    unfinished_folder,
    write_table,
    write_whole,
)

TABLE = pa.table({"a": pa.array(range(2000)), "b": pa.array([f"row {i}" for i in range(2000)])})
MADE_FROM = {"paretoserve.schema": "table", "paretoserve.code": "0123456789abcdef"}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "table.parquet"
    write_table(TABLE, path, MADE_FROM)
    return path


def test_written_table_is_read_back_and_says_what_it_was_made_from(file):
    assert read_table(file).equals(TABLE)
    assert read_table(file, ["b"]).column_names == ["b"]
    assert read_identity(file) == MADE_FROM
    # Anybody else reads it too, and sees the same metadata.
    assert pq.read_table(file).equals(TABLE)
    assert {k.decode(): v.decode() for k, v in pq.read_schema(file).metadata.items()} == MADE_FROM


def test_same_table_has_the_same_bytes(file, tmp_path):
    write_table(TABLE, tmp_path / "again.parquet", MADE_FROM)
    assert (tmp_path / "again.parquet").read_bytes() == file.read_bytes()


def test_no_changed_byte_and_no_missing_end_is_read(file):
    whole, chance = file.read_bytes(), random.Random(6)
    places = [0, 4, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(300))]
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << chance.randrange(8)
        file.write_bytes(changed)
        with pytest.raises(InputError, match="checksum does not hold"):
            read_table(file)
    for length in (0, 1, 8, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(InputError, match="checksum does not hold"):
            read_table(file)
    file.write_bytes(whole)
    assert read_table(file).equals(TABLE)


def test_parquet_of_somebody_else_is_not_read(file):
    pq.write_table(TABLE, file)
    with pytest.raises(InputError, match=r"table\.parquet is not as paretoserve wrote it"):
        read_table(file)


def test_failed_write_leaves_what_was_there(file):
    before = file.read_bytes()

    def fails(stream):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left.*table\.parquet"):
        write_whole(file, fails)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_unfinished_folders_of_the_dead_are_removed_those_of_the_living_kept(tmp_path):
    program = (
        "import sys, time; from pathlib import Path\n"
        "from paretoserve.records import unfinished_folder\n"
        "with unfinished_folder(Path(sys.argv[1])) as folder:\n"
        "    print(folder, flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as dead,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as living,
    ):
        left, kept = dead.stdout.readline().strip(), living.stdout.readline().strip()
        dead.kill()
        dead.wait()
        assert os.path.exists(left)
        with unfinished_folder(tmp_path) as mine:
            assert {str(path) for path in tmp_path.iterdir()} == {kept, str(mine)}
        living.kill()
