"""Parquet files, through pyarrow."""

__all__ = ["read_parquet"]

from pathlib import Path
from typing import Any

from ftrt.data.rows import Origin, Row, check_names
from ftrt.errors import DataError


def read_parquet(path: Path) -> tuple[list[str], list[Row]]:
    """The column names and the rows of a Parquet file, nested values as Python lists and dicts."""
    # here and not above: pyarrow costs 0.2 s, and most data is JSON or CSV
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            columns = list(file.schema_arrow.names)
            check_names(str(path), columns)
            records = [record for batch in file.iter_batches() for record in batch.to_pylist()]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: text must be UTF-8; got {error.reason} in a string column"
        ) from None
    except (pyarrow.ArrowException, OSError) as error:
        reason = _first_line(error)
        raise DataError(f"{path}: must be a readable Parquet file; got {reason}") from None
    return columns, [
        Row(record, Origin(str(path), number, "row")) for number, record in enumerate(records, 1)
    ]


def _first_line(error: Any) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
