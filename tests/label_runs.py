"""Outputs of label whose rows a test writes by hand."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_wsss.data.schema import write_table_atomically
from ray_wsss.runs.manifest import Output


def write_labels(
    rows: list[dict[str, Any]], out: Path, settings: dict[str, Any], schema: pa.Schema | None = None
) -> Path:
    """Write a finished run of label; without a ``schema``, it follows from the rows."""
    output = Output(out, "label", settings)
    output.begin()
    write_table_atomically(pa.Table.from_pylist(rows, schema=schema), out / "shards" / "part-000000.parquet")
    output.finish()
    return out
