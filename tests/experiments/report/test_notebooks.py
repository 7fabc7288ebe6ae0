"""The notebooks run in a new kernel, whether or not there are records."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from made_up_runs import finished
from nbclient import NotebookClient
from nbformat import NotebookNode

from rst.experiments.tables.expansion import load_table
from rst.experiments.tables.table_file import table_names

FOLDER = ROOT / "notebooks"
FIGURES = FOLDER / "figures.ipynb"
FILES = sorted(FOLDER.glob("*.ipynb"))

Run = Callable[..., NotebookNode]


def read(file: Path) -> NotebookNode:
    return nbformat.read(file, as_version=4)


def code_of(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the first cell of figures.ipynb and the cells of some figures, in a project with the records of the test."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))

    def execute(folder: str, *figures: int) -> NotebookNode:
        notebook = read(FIGURES)
        setting_up, *rest = code_of(notebook)
        project = f"pathlib.Path({str(tmp_path)!r})"
        moved = f"import pathlib, rst.experiments.compose\nrst.experiments.compose.PROJECT = {project}"
        setting_up.source = f"{moved}\n{setting_up.source}"
        notebook.cells = [setting_up, *(rest[figure - 1] for figure in figures)]
        client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path / folder)}})
        return client.execute()

    return execute


def drawings(notebook: NotebookNode) -> list[str]:
    """All figures that the notebook has put out, as SVG, whose comments have the texts; errors are not allowed."""
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"display_data", "execute_result"}
    return [output.data["image/svg+xml"] for output in outputs if "image/svg+xml" in output.data]


@pytest.mark.parametrize("figures", [(1, 2, 3, 8, 9), pytest.param((4, 5, 6, 7), marks=pytest.mark.slow)])
def test_figures_are_drawn_in_the_folder_of_the_notebook_whichever_runs_are_missing(
    run: Run, tmp_path: Path, figures: tuple[int, ...]
) -> None:
    finished(
        load_table("figure09", ["scale=digits", "max_seeds=1", f"paths.runs={tmp_path / 'results' / 'runs'}"]), runs=14
    )
    notebook = run("notebooks", *figures)
    assert len(drawings(notebook)) == len(figures)
    if 9 in figures:
        assert "make figure09 SCALE=digits" not in drawings(notebook)[-1]
        *_, numbers = notebook.cells[-1].outputs
        assert numbers.data["text/plain"].count("n = 1/5") == 14
        assert numbers.data["text/plain"].count("n = 0/5") == 13


def test_a_figure_without_records_says_how_to_get_them_in_the_root_of_the_project(run: Run) -> None:
    [drawing] = drawings(run(".", 9))
    assert "make figure09 SCALE=digits" in drawing


def test_every_figure_has_a_cell() -> None:
    _, *cells = code_of(read(FIGURES))
    names = [name for name in table_names() if name.startswith("figure")]
    assert [re.findall(r"figure\d+", cell.source)[0] for cell in cells] == names


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_notebook_is_committed_without_output(file: Path) -> None:
    notebook = read(file)
    nbformat.validate(notebook)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code_of(notebook))
    assert all(cell.metadata == {} for cell in notebook.cells)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_notebook_imports_only_tables_and_report(file: Path) -> None:
    code = "\n".join(cell.source for cell in code_of(read(file)))
    tree = ast.parse("\n".join(line for line in code.splitlines() if not line.startswith("%")))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    own = {name for name in imported if name.partition(".")[0] == "rst"}
    assert {".".join(name.split(".")[:3]) for name in own} == {"rst.experiments.tables", "rst.experiments.report"}
