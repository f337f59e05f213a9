"""perf_db against its sources: rows accounted for, values as measured, bad tables refused."""

import hashlib
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from paretoserve import hardware, paths
from paretoserve.errors import InputError
from paretoserve.perfdb import manifest, operators
from paretoserve.perfdb.importer import import_wheels
from paretoserve.perfdb.operators import LATENCY
from paretoserve.perfdb.user_table import import_user_table

MANIFEST = manifest.load()


def measured(system, backend, version, operator, **where):
    """The one latency (ms) at a coordinate, read without the library's look-ups."""
    rows = pq.read_table(paths.table_file(system, backend, version, operator)).to_pylist()
    found = [row[LATENCY] for row in rows if all(row[key] == where[key] for key in where)]
    assert len(found) == 1, f"{len(found)} rows"
    return found[0]


# --- accounts -------------------------------------------------------------------------------------


def test_every_source_row_is_used_or_dropped_with_a_reason():
    for entry in MANIFEST.tables.values():
        for origin in entry["from"]:
            measurements = origin["rows_in"] * origin.get("per_row", 1)
            assert measurements == origin["rows_used"] + sum(origin["dropped"].values()), origin
        assert entry["rows"] == sum(origin["rows_used"] for origin in entry["from"])


def test_totals_cover_both_packages():
    # Counted outside the importer: Parquet footers of aiconfigurator-core 0.12.0, and lines without
    # header of the text tables of aiconfigurator 0.4.0.
    totals = MANIFEST.totals()
    assert totals["source_rows"] == 12_586_413 + 968_811
    assert totals["measurements"] == totals["rows"] + sum(totals["dropped"].values())
    assert {(s["package"], s["version"], s["licence"]) for s in MANIFEST.sources} == {
        ("aiconfigurator", "0.4.0", "Apache-2.0"),
        ("aiconfigurator-core", "0.12.0", "Apache-2.0"),
    }
    assert all(entry["rows"] and entry["reason"] for entry in MANIFEST.not_imported)


def test_files_are_those_of_the_manifest_and_small_enough():
    files = {path for path in paths.PERF_DB.rglob("*") if path.is_file()}
    tables = {path for path in files if path.is_relative_to(paths.TABLES)}
    assert tables == {paths.PERF_DB / entry["path"] for entry in MANIFEST.tables.values()}
    assert sum(path.stat().st_size for path in files) < 60e6
    assert paths.MANIFEST.stat().st_size < 1e6


def ranks(column):
    """Whole numbers that sort like the column."""
    if not pa.types.is_dictionary(column.type):
        return column.to_numpy()
    column = column.combine_chunks()
    words = column.dictionary.to_pylist()
    return np.array([sorted(words).index(word) for word in words])[column.indices.to_numpy()]


def test_every_table_is_whole_sorted_distinct_and_positive():
    schemas = operators.load()
    for key, entry in MANIFEST.tables.items():
        operator = schemas.operator(key[3])
        content = (paths.PERF_DB / entry["path"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"], key
        assert len(content) == entry["bytes"]
        file = pq.ParquetFile(pa.BufferReader(content), read_dictionary=operator.categorical)
        assert file.schema_arrow.names == [*operator.key_names, LATENCY]
        table = file.read()
        assert len(table) == entry["rows"] > 0
        for field in operator.schema:
            stored = table.schema.field(field.name).type
            stored = stored.value_type if pa.types.is_dictionary(stored) else stored
            assert stored == field.type, (key, field.name)

        latency = table[LATENCY].to_numpy()
        assert np.isfinite(latency).all(), key
        assert (latency >= 0).all() if operator.zero_allowed else (latency > 0).all(), key
        undecided = np.ones(len(table) - 1, bool)
        for name in operator.key_names:
            rank = ranks(table[name]).astype(np.int64)
            step = np.diff(rank)
            assert not (undecided & (step < 0)).any(), f"{key} is not sorted by {name}"
            undecided &= step == 0
        assert not undecided.any(), f"{key} has a coordinate twice"

        for column in operator.keys:
            if column.categorical:
                words = set(table[column.name].combine_chunks().dictionary.to_pylist())
                allowed = schemas.allowed(column)
                assert not allowed or words <= set(allowed), (key, column.name)
                if column.type == "dtype":
                    assert sorted(words) == entry["dtypes"][column.name]
            else:
                assert table[column.name].to_numpy().min() >= column.minimum


# --- values copied by hand from the source tables -------------------------------------------------

RC3 = ("h200_sxm", "trtllm", "1.0.0rc3")
MOE = {"topk": 8, "moe_tp": 1, "kernel": "moe_torch_flow", "distribution": "power_law_1.2"}
GQA = {"kv_heads": 2, "head_dim": 128, "window": 0, "heads": 16}
DEEPEP = {"hidden": 7168, "topk": 8, "experts": 256}
ALLTOALL = {"dtype": "nvfp4", "moe_ep": 8, "tokens": 1024}


@pytest.mark.parametrize(
    ("table", "where", "latency_ms"),
    [
        ((*RC3, "gemm"), {"dtype": "float16", "m": 64, "n": 128, "k": 4096}, 0.006378666559855144),
        (
            (*RC3, "gemm"),
            {"dtype": "fp8_block", "m": 4096, "n": 10240, "k": 5120},
            0.3757386525472005,
        ),
        ((*RC3, "custom_allreduce"), {"num_gpus": 8, "elements": 2**24}, 0.19817184448242187),
        (
            (*RC3, "moe"),
            {**MOE, "dtype": "fp8_block", "experts": 128, "hidden": 4096, "inter": 1536}
            | {"moe_ep": 8, "tokens": 128},
            0.1239359974861145,
        ),
        (
            (*RC3, "context_attention"),
            {**GQA, "attn_dtype": "fp8", "kv_dtype": "fp8", "isl": 2048, "batch": 1},
            0.06781333188215892,
        ),
        # kv_len = isl 1 + step 2047
        (
            (*RC3, "generation_attention"),
            {**GQA, "kv_dtype": "fp8", "batch": 16, "kv_len": 2048},
            0.012560000022252401,
        ),
        # This table has tp_size instead of heads: 128 heads over 8 GPUs; and no kernel_source.
        (
            ("h200_sxm", "trtllm", "0.20.0", "context_mla"),
            {"kernel": "default", "kv_dtype": "fp8", "heads": 16, "isl": 16, "batch": 1},
            0.012810666114091873,
        ),
        (
            ("h200_sxm", "nccl", "2.26.2", "nccl"),
            {"op": "all_gather", "dtype": "float16", "num_gpus": 8, "elements": 1024},
            0.01379,
        ),
        # Duplicates of coordinates: the first row of the file wins, in dsa modules the last (of 8).
        (
            ("gb200", "nccl", "2.23", "nccl"),
            {"op": "all_gather", "dtype": "float16", "num_gpus": 2, "elements": 1024},
            0.01055,
        ),
        (
            ("gb200", "sglang", "0.5.14", "dsa_context_module"),
            {"kernel": "sglang_dsa_dense_mha_trtllm_ragged", "architecture": "GlmMoeDsaForCausalLM"}
            | {"indexer": "run", "kv_dtype": "float16", "gemm_dtype": "float16", "heads": 32}
            | {"prefix": 256, "isl": 32, "batch": 32},
            1.0612,
        ),
        # Microseconds; transmission and notification of one phase.
        (
            ("h200_sxm", "sglang", "0.5.1.post1", "deepep_normal"),
            {**DEEPEP, "phase": "dispatch", "nodes": 2, "sms": 20, "tokens": 1024},
            (258.0 + 37.1) / 1000,
        ),
        (
            ("h200_sxm", "sglang", "0.5.1.post1", "deepep_normal"),
            {**DEEPEP, "phase": "combine", "nodes": 2, "sms": 20, "tokens": 1024},
            (612.63 + 54.73) / 1000,
        ),
        (
            ("h200_sxm", "sglang", "0.5.1.post1", "deepep_ll"),
            {**DEEPEP, "phase": "combine", "nodes": 1, "tokens": 128},
            0.0723825,
        ),
        (
            ("h200_sxm", "vllm", "0.24.0", "moe_a2a"),
            {"comm": "deepep_ht", "phase": "combine", "hidden": 3072, "tokens": 1024},
            0.241804799,
        ),
        (
            ("h200_sxm", "vllm", "0.24.0", "context_attention"),
            {**GQA, "kv_dtype": "float16", "isl": 1024, "batch": 1},
            0.027008,
        ),
        (
            ("gb200", "trtllm", "1.3.0rc10", "trtllm_alltoall"),
            {**ALLTOALL, "kernel": "NVLinkTwoSided", "phase": "combine_low_precision"},
            0.181763,
        ),
    ],
)
def test_measured_points(table, where, latency_ms):
    assert measured(*table, **where) == pytest.approx(latency_ms, rel=3e-6)


@pytest.mark.parametrize(
    ("num_gpus", "latency_ms"),
    [(2, 0.032665), (4, 0.1564), (8, 0.0669475), (16, 0.137325), (32, 0.32625), (64, 0.63315)],
)
def test_alltoall_between_two_points_as_published(num_gpus, latency_ms):
    # 458752 elements lie three quarters of the way between two measured sizes.
    where = {"op": "alltoall", "dtype": "float16", "num_gpus": num_gpus}
    low, high = (
        measured("gb200", "nccl", "2.23", "nccl", elements=size, **where) for size in (2**18, 2**19)
    )
    assert low / 4 + high * 3 / 4 == pytest.approx(latency_ms, rel=1e-5)


def test_allreduce_reaches_nvlink_bandwidth():
    # 8 GPUs of an H200 board, 2**28 elements of 2 bytes: a ring moves 2 * 7/8 of them.
    ms = measured(*RC3, "custom_allreduce", num_gpus=8, elements=2**28)
    assert (
        2 * 7 / 8 * 2**28 * 2 / (ms / 1e3)
        < hardware.load_system("h200_sxm").intra_node_bandwidth * 1.05
    )


# --- documentation and systems --------------------------------------------------------------------


def test_documentation_lists_every_operator_and_column():
    text = (paths.ROOT / "docs" / "data_perf_db.md").read_text()
    documented = dict(re.findall(r"^\| (\w+) \| ((?:\w+, )+\w+) \|", text, re.MULTILINE))
    schemas = operators.load()
    assert documented == {
        name: ", ".join(operator.key_names) for name, operator in schemas.operators.items()
    }
    columns = dict(re.findall(r"^\| (\w+) \| (string|int\d\d) \|", text, re.MULTILINE))
    assert columns == {
        key.name: "string" if key.categorical else key.type
        for operator in schemas.operators.values()
        for key in operator.keys
    }


def test_systems_have_tables_and_their_collectives():
    files = sorted(paths.SYSTEMS.glob("*.yaml"))
    assert {file.stem for file in files} == {key[0] for key in MANIFEST.tables}
    assert hardware.canonical_name("gb200_sxm") == "gb200"
    for file in files:
        system, spec = hardware.load_system(file.stem), yaml.safe_load(file.read_text())
        assert system.name == file.stem
        rates = [
            system.memory_bandwidth,
            system.intra_node_bandwidth,
            *spec["gpu"]["tensor_flops_per_s"].values(),
        ]
        assert all(isinstance(rate, float) for rate in rates), "YAML reads 1e12 as text"
        library = system.collectives_library
        MANIFEST.table_entry(system.name, library, system.collectives_version, library)
        for backend, versions in spec["collectives"].get("with_backend", {}).items():
            for version, library_version in versions.items():
                assert version in MANIFEST.versions(system.name, backend)
                MANIFEST.table_entry(system.name, library, library_version, library)


def test_unknown_parts_of_a_coordinate_are_named():
    with pytest.raises(InputError, match=r"no trtllm 1\.0\.0rc4 tables .*mean '1\.0\.0rc3'"):
        MANIFEST.table_entry("h200_sxm", "trtllm", "1.0.0rc4", "gemm")
    with pytest.raises(InputError, match="did you mean 'trtllm'"):
        MANIFEST.versions("h200_sxm", "trt-llm")
    with pytest.raises(InputError, match="did you mean 'gemm'"):
        MANIFEST.table_entry(*RC3, "gem")
    assert MANIFEST.versions("h200_sxm", "trtllm")[:3] == ("0.20.0", "1.0.0rc3", "1.2.0rc5")


# --- damaged files --------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path):
    """A perf_db folder with one table in place."""
    shutil.copy(paths.MANIFEST, tmp_path)
    entry = MANIFEST.table_entry(*RC3, "custom_allreduce")
    table = tmp_path / entry["path"]
    table.parent.mkdir(parents=True)
    shutil.copy(paths.PERF_DB / entry["path"], table)
    return tmp_path, table


def test_damaged_tables_are_refused(database):
    _, table = database
    manifest.verify(table)
    content = table.read_bytes()
    other = MANIFEST.table_entry(*RC3, "mla_bmm")
    table.write_bytes((paths.PERF_DB / other["path"]).read_bytes())
    with pytest.raises(InputError, match="is not the table of"):
        manifest.verify(table)
    table.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="not a readable Parquet file"):
        manifest.verify(table)
    table.unlink()
    with pytest.raises(InputError, match="No such file"):
        manifest.verify(table)


def test_digest_changes_with_any_table():
    entries = list(MANIFEST.tables.values())[:3]
    assert manifest.digest(entries) == manifest.digest(reversed(entries))
    assert manifest.digest(entries) != manifest.digest(entries[:2])
    changed = [*entries[:2], {**entries[2], "sha256": "0" * 64}]
    assert manifest.digest(entries) != manifest.digest(changed)


# --- a user's own table ---------------------------------------------------------------------------

MINE = ("h200_sxm", "trtllm", "1.3.0rc20+lab", "gemm")
HEADER = "kernel,dtype,n,k,m,latency_ms"
GOOD = [
    "mine,fp8,10240,5120,64,0.0231",
    "mine,bfloat16,10240,5120,8,0.02",
    "mine,fp8,10240,5120,1,0.019",
]


def lines(header=HEADER, **changed):
    """A CSV with rows changed by number, as in row_2=..."""
    rows = [changed.get(f"row_{number}", row) for number, row in enumerate(GOOD, 1)]
    return "\n".join([header, *rows]) + "\n"


def test_own_table_is_sorted_spelt_and_entered(database, tmp_path):
    folder, _ = database
    source = tmp_path / "mine.csv"
    source.write_text(lines())
    entry = import_user_table(source, *MINE, out=folder)
    table = pq.read_table(folder / entry["path"])
    assert table["dtype"].to_pylist() == ["float16", "fp8", "fp8"]
    assert table["m"].to_pylist() == [8, 1, 64]
    assert table[LATENCY].to_pylist() == pytest.approx([0.02, 0.019, 0.0231])
    written = manifest.load(folder / paths.MANIFEST.name)
    assert written.table_entry(*MINE)["from"][0]["package"] == manifest.USER
    assert len(written.tables) == len(MANIFEST.tables) + 1
    manifest.verify(folder / entry["path"])

    # Parquet with the same rows in other types and order makes the same table.
    parquet = tmp_path / "mine.parquet"
    types = {
        LATENCY: pa.float64(),
        "m": pa.int64(),
        "k": pa.float64(),
        "n": pa.int32(),
        "dtype": pa.large_string(),
        "kernel": pa.dictionary(pa.int8(), pa.string()),
    }
    columns = table.select(list(types)).cast(pa.schema(types))
    pq.write_table(columns.take([2, 0, 1]), parquet)
    assert import_user_table(parquet, *MINE, out=folder)["sha256"] == entry["sha256"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lines("kernel,dtype,n,kk,m,latency_ms"), r"unknown column 'kk' \(did you mean 'k'\?\)"),
        (lines("kernel,dtype,n,k,m,latency"), r"unknown column 'latency' \(.*'latency_ms'\?\)"),
        ("kernel,dtype,n,k,m\nmine,fp8,1,1,1\n", "no column 'latency_ms'; a gemm table has"),
        (f"{HEADER}\n", "holds no rows"),
        (lines(row_2="mine,fp8,10240,5120,8,fast"), "row 2, column 'latency_ms': got 'fast'"),
        (lines(row_3="mine,fp8,10240,5120,8,nan"), "row 3, column 'latency_ms': got 'nan'"),
        (lines(row_1="mine,fp8,10240,5120,8,0"), "row 1, column 'latency_ms': got '0', wanted"),
        (lines(row_1="mine,fp8,10240,5120,8,-1.5"), "row 1, column 'latency_ms': got '-1.5'"),
        (lines(row_2="mine,fp8,10240,5120,8.5,1"), "row 2, column 'm': got '8.5', wanted a whole"),
        (lines(row_2="mine,fp8,10240,,8,1"), "row 2, column 'k': got '', wanted a whole number"),
        (lines(row_2="mine,fp8,10240,5120,0,1"), "row 2, column 'm': got '0', .* from 1 to"),
        (lines(row_2="mine,fp8,99999999999,1,1,1"), "row 2, column 'n': got '99999999999'"),
        (lines(row_2="mine,fp7,10240,5120,8,1"), "row 2, column 'dtype': got 'fp7', wanted one of"),
        (lines(row_2=",fp8,10240,5120,8,1"), "row 2, column 'kernel': got ''"),
        (lines(row_2="mine,fp8,10240,5120,1,1"), "rows 2 and 3 have the same kernel, dtype"),
        (lines(row_2="mine,fp8,10240"), "not a readable CSV file"),
    ],
)
def test_malformed_own_table_is_refused(database, tmp_path, content, sentence):
    folder, _ = database
    source = tmp_path / "mine.csv"
    source.write_text(content)
    before = sorted(path for path in folder.rglob("*") if path.is_file())
    standing = (folder / paths.MANIFEST.name).read_bytes()
    with pytest.raises(InputError, match=sentence) as raised:
        import_user_table(source, *MINE, out=folder)
    assert str(source) in str(raised.value)
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == before
    assert (folder / paths.MANIFEST.name).read_bytes() == standing


@pytest.mark.parametrize(
    ("coordinate", "sentence"),
    [
        (("h200", "trtllm", "1", "gemm"), r"unknown system 'h200' \(did you mean 'h200_sxm'\?\)"),
        (("h200_sxm", "trt", "1", "gemm"), "not 'trt'"),
        (("h200_sxm", "trtllm", "1", "gemms"), r"unknown operator 'gemms' \(did you mean 'gemm'"),
        (("h200_sxm", "trtllm", "../1", "gemm"), "cannot be a version"),
        (("h200_sxm", "trtllm", "1.0.0rc3", "gemm"), "is a published table"),
    ],
)
def test_own_table_needs_a_place_of_its_own(database, tmp_path, coordinate, sentence):
    folder, _ = database
    source = tmp_path / "mine.csv"
    source.write_text(lines())
    with pytest.raises(InputError, match=sentence):
        import_user_table(source, *coordinate, out=folder)


# --- the import itself ----------------------------------------------------------------------------


def test_import_is_reproducible(tmp_path):
    if not (folder := os.environ.get("PARETOSERVE_WHEELS")):
        pytest.skip("PARETOSERVE_WHEELS does not name the folder of the two wheels")
    entry = MANIFEST.table_entry("a100_sxm", "trtllm", "1.0.0", "gemm")
    writer = pq.read_metadata(paths.PERF_DB / entry["path"]).created_by
    if not writer.endswith(f" {pa.__version__}"):
        pytest.skip(f"perf_db was written by {writer}, this is pyarrow {pa.__version__}")
    mine = ("a100_sxm", "vllm", "0.14.0+lab", "gemm")
    source = tmp_path / "mine.csv"
    source.write_text(lines())

    wheels = sorted(Path(folder).glob("*.whl"))
    import_wheels(wheels, tmp_path, systems={"a100_sxm"})
    import_user_table(source, *mine, out=tmp_path)
    again = import_wheels(wheels, tmp_path, systems={"a100_sxm"})
    published = {key: entry for key, entry in MANIFEST.tables.items() if key[0] == "a100_sxm"}
    assert {key: entry for key, entry in again.tables.items() if key != mine} == published
    assert mine in again.tables, "a user's table stays"
    for entry in published.values():
        assert (tmp_path / entry["path"]).read_bytes() == (
            paths.PERF_DB / entry["path"]
        ).read_bytes()


def test_import_without_wheels_says_where_to_get_them(tmp_path):
    with pytest.raises(InputError, match="pip download --no-deps"):
        import_wheels([], tmp_path)
    broken = tmp_path / "broken.whl"
    broken.write_bytes(b"no zip")
    with pytest.raises(InputError, match="not a readable wheel"):
        import_wheels([broken], tmp_path)
    assert not (tmp_path / paths.MANIFEST.name).exists()
