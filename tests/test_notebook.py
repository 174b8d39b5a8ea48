"""docs/demo.ipynb: its names are those of the code; it runs from its first cell to its last."""

from __future__ import annotations

import ast
import importlib
from dataclasses import fields
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from stable_diffusion.generate import parse_arguments
from utils.config import Config

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def notebook():
    notebook = nbformat.read(ROOT / "docs" / "demo.ipynb", 4)
    nbformat.validate(notebook)
    return notebook


def test_its_names_are_those_of_the_code(notebook):
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    source = "\n".join(cells).replace("%matplotlib inline", "")
    imported, settings, flags = 0, set(), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.import_module(
                    f"{node.module}.{alias.name}")
                imported += 1
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "Config":
            settings |= {keyword.arg for keyword in node.keywords}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "generate.main":
            flags = [part.value if isinstance(part, ast.Constant) else "1"
                     for part in node.args[0].elts]
    assert imported >= 8
    assert settings and settings <= {field.name for field in fields(Config)}
    assert flags and parse_arguments(flags)


@pytest.mark.slow
def test_it_runs(notebook, tmp_path, monkeypatch):
    for name, value in (("WORK", str(tmp_path)), ("IMAGES", "10"), ("SIZE", "60"),
                        ("EPOCHS", "1"), ("OMP_NUM_THREADS", "1")):
        monkeypatch.setenv(name, value)
    NotebookClient(notebook, timeout=600, kernel_name="python3",
                   resources={"metadata": {"path": str(ROOT / "docs")}}).execute()
    printed = [str(output) for cell in notebook.cells if cell.cell_type == "code"
               for output in cell.outputs]
    assert any("tensors were fine-tuned" in text for text in printed)
    assert sum("image/png" in text for text in printed) == 2
    for name in ("erm", "aim_fair"):
        assert (tmp_path / "results" / "demo" / name / "seed100" / "done").is_file()
