"""Rows of verdicts as Parquet: what every row has in columns of its own, the rest as JSON in ``details``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from types import ModuleType
from typing import IO, Any

from corit_cli.bulk.rows import Row
from corit_cli.errors import CoritError

#: Rows that are held in memory together.
GROUP = 10_000
_COLUMNS = {
    "path": "string",
    "probability": "float64",
    "verdict": "string",
    "error": "string",
    "size": "int64",
    "mtime_ns": "int64",
    "sha256": "string",
    "details": "string",
}


def arrow() -> ModuleType:
    """pyarrow, with its module for Parquet. Raises CoritError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise CoritError("Parquet needs the package pyarrow: install corit[parquet], or write .jsonl or .csv") from None
    return pyarrow


def table(rows: Sequence[Row]) -> Any:
    """Rows as a pyarrow table."""
    pa = arrow()
    columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    for row in rows:
        rest = {name: value for name, value in row.items() if name not in _COLUMNS}
        shown = row["path"].encode("utf-8", "backslashreplace").decode()
        if shown != row["path"]:  # a name that is no text: kept as it is beside
            rest["path"] = row["path"]
        flat = {**row, "path": shown, "details": json.dumps(rest) if rest else None}
        for name, column in columns.items():
            column.append(flat.get(name))
    return pa.table({name: pa.array(columns[name], pa.type_for_alias(kind)) for name, kind in _COLUMNS.items()})


def rows(found: Any) -> Iterator[Row]:
    """The rows that :func:`table` made a table (or a batch) of."""
    for flat in found.to_pylist():
        details = json.loads(flat.pop("details") or "{}")
        if flat["sha256"] is None:
            del flat["sha256"]
        yield flat | details


def write(file: IO[bytes], all_rows: Iterable[Row]) -> None:
    """Write rows, as they come, to a file that is open for writing."""
    pa, left = arrow(), iter(all_rows)
    with pa.parquet.ParquetWriter(file, table([]).schema, compression="zstd") as writer:
        while group := list(islice(left, GROUP)):
            writer.write_table(table(group))


def read(file: IO[bytes]) -> Iterator[Row]:
    """The rows of a file that :func:`write` wrote. Raises CoritError when it is damaged or another's."""
    pa = arrow()
    try:
        for batch in pa.parquet.ParquetFile(file).iter_batches(GROUP, columns=list(_COLUMNS)):
            yield from rows(batch)
    except (pa.ArrowException, OSError) as error:
        name = getattr(file, "name", None) or getattr(file, "path", None) or "a part"
        raise CoritError(f"{name} is no table of corit's: {str(error).splitlines()[0]}") from None
