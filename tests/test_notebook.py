"""docs/demo.ipynb runs from its first cell to its last."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]


def test_the_demo_notebook_runs(tmp_path, monkeypatch):
    for name, value in (("WORK", str(tmp_path)), ("IMAGES", "10"), ("SIZE", "60"),
                        ("EPOCHS", "1"), ("OMP_NUM_THREADS", "1")):
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(ROOT / "docs" / "demo.ipynb", 4)
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=600, kernel_name="python3",
                   resources={"metadata": {"path": str(ROOT / "docs")}}).execute()
    printed = [str(output) for cell in notebook.cells if cell.cell_type == "code"
               for output in cell.outputs]
    assert any("tensors were fine-tuned" in text for text in printed)
    assert sum("image/png" in text for text in printed) == 2
    for name in ("erm", "aim_fair"):
        assert (tmp_path / "results" / "demo" / name / "seed100" / "done").is_file()
