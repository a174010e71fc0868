"""The notebook runs from its first cell to its last, and is kept with small outputs."""

import os
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from document_blocks import NOTEBOOK
from nbclient import NotebookClient


def _outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def _text(notebook: Any) -> str:
    return "".join(output.get("text", "") for output in _outputs(notebook))


def test_it_is_kept_as_it_ran() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [output.output_type for output in _outputs(notebook) if output.output_type == "error"] == []
    assert any("image/jpeg" in output.get("data", {}) for output in _outputs(notebook))
    assert NOTEBOOK.stat().st_size < 250_000
    assert str(Path.home()) not in NOTEBOOK.read_text(encoding="utf-8")


@pytest.mark.slow
def test_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    monkeypatch.setenv("PATH", programs)  # its cells call ray-wsss
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
    shares = [float(line.rstrip("%")) for line in _text(notebook).splitlines() if line.endswith("%")]
    assert len(shares) == 3
    assert min(shares) > 90
