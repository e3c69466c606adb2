"""The notebooks run: the tiny one whole, that of 20b up to its training."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
ELSEWHERE = {"gpu", "install"}
"""Tags of cells that need a GPU, the Hub, or a package index."""


def run(name, folder):
    """Run a notebook in an empty folder; return its cells with what they said."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    kept = [c for c in notebook.cells if not ELSEWHERE & set(c.metadata.get("tags", ()))]
    notebook.cells = kept
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return notebook.cells


def said(cells):
    """Return all that the cells printed or showed as text, without its colours."""
    parts = []
    for cell in cells:
        for output in cell.get("outputs", ()):
            parts.append(output.get("text", ""))
            parts.append(output.get("data", {}).get("text/plain", ""))
    return re.sub(r"\x1b\[[0-9;]*m", "", "".join(parts))


@pytest.fixture
def kernel(monkeypatch, tmp_path):
    """A kernel's environment: this interpreter's commands, its own folder for Jupyter."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_their_outputs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and all(not c["outputs"] and c["execution_count"] is None for c in code)
    assert "".join(cells[0]["source"]).startswith("# ")


@pytest.mark.slow
def test_the_tiny_notebook_trains_merges_and_answers(kernel):
    text = said(run("tiny", kernel))
    assert "step 60/60" in text and "60 steps, last loss" in text
    assert "Pump blocked." in text
    assert (kernel / "merged" / "config.json").is_file()
    assert (kernel / "runs/first/report.html").is_file()


@pytest.mark.slow
def test_the_notebook_of_20b_goes_as_far_as_its_plan(kernel):
    text = said(run("gpt-oss-20b", kernel))
    assert "GiB at the peak" in text
    assert (kernel / "preview.html").is_file()
