"""The comparison report as one HTML file that needs nothing else: no network, no second file.

The page holds the report's tables as JSON and draws them; it computes no figure. Tables and the
chart library are compressed (gzip, base64), because a browser unpacks faster than it reads. The
same tables give the same bytes.
"""

import base64
import gzip
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.compute as pc

from paretoserve import paths

# Tables that the page unpacks for the first opened question; the others it shows at once.
DETAILS = ("experiments", "configurations", "frontier", "operators")
OVERVIEW = tuple(name for name in paths.REPORT_TABLES if name not in DETAILS)
# What of the head the page's script reads.
FACTS = ("run", "detailed", "simulated")
# What these tables hold for other readers than the page.
UNSHOWN = ("question_digest", "perf_db_digest", "code_digest")


def render_page(tables: Mapping[str, pa.Table], head: Mapping[str, Any]) -> bytes:
    """Return report.html.

    Parameters
    ----------
    tables
        All tables of the report, by name.
    head
        What the page says first: `run`, `title`, `sentence`, `tiles`, its notes; `detailed`, the
        numbers of the questions that have details in the page; `simulated`, the load of the
        simulated benchmarks in words.
    """
    chosen = pa.array(head["detailed"], pa.int64())
    details = {
        name: tables[name].filter(pc.is_in(tables[name]["question"], value_set=chosen))
        for name in DETAILS
    }
    template = _environment().get_template("report.html.j2")
    text = template.render(
        head=head,
        overview=_packed(_json({name: tables[name] for name in OVERVIEW})),
        details=_packed(_json(details)),
        facts=_script_safe(json.dumps({name: head[name] for name in FACTS})),
        plotly=_plotly(),
        files=sorted(tables),
    )
    return text.encode()


def columns_as_json(table: pa.Table) -> dict[str, Any]:
    """Columns of a table: a list, or `{"of": names, "at": codes}` where texts repeat; null: -1."""
    columns: dict[str, Any] = {}
    for name in table.column_names:
        column = table[name]
        if name in UNSHOWN:
            continue
        if pa.types.is_string(column.type):
            coded = column.combine_chunks().dictionary_encode()
            codes = pc.fill_null(coded.indices, -1).to_pylist()
            columns[name] = {"of": coded.dictionary.to_pylist(), "at": codes}
        else:
            columns[name] = column.to_pylist()
    return columns


def _json(tables: Mapping[str, pa.Table]) -> bytes:
    content = {
        name: {"rows": table.num_rows, "columns": columns_as_json(table)}
        for name, table in tables.items()
    }
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, compresslevel=6, mtime=0)).decode()


def _script_safe(text: str) -> str:
    """JSON that cannot end the script element that it stands in."""
    return text.replace("<", "\\u003c")


@cache
def _plotly() -> dict[str, str]:
    """The chart library of the `plotly` package, packed, and its notice."""
    from plotly.offline import get_plotlyjs

    source = get_plotlyjs()
    notice = (line.strip("/* ") for line in source[: source.index("*/")].splitlines())
    return {"packed": _packed(source.encode()), "notice": "; ".join(filter(None, notice))}


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(paths.REPORT_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
