"""The overview of a scale in Markdown has every table and figure, and reads where the code is."""

import re
from pathlib import Path

import pytest
from made_up_runs import finished, table_files

from rst.experiments.report import index
from rst.experiments.report.files import write
from rst.experiments.report.verdict import VerdictLine, counted
from rst.experiments.tables.expansion import Table, load_table

FILES = {
    "table01": """
        title: SGD and SAM
        caption: What helps?
        datasets: {Cifar10: [dataset=cifar10]}
        networks: {ResNet18: [model=resnet18]}
        seeds: 2
        rows: {SGD: [scheme=sgd], SAM: [scheme=sam]}
        """,
    "table11": """
        title: Not trained yet
        seeds: 1
        rows: {SGD: [scheme=sgd, model=vgg16_bn]}
        """,
}


@pytest.fixture
def tables(tmp_path: Path) -> list[Table]:
    with table_files(tmp_path, FILES):
        loaded = [load_table(name, ["scale=digits", f"paths.runs={tmp_path}/runs"]) for name in FILES]
    finished(loaded[0])
    return loaded


def test_every_table_and_figure_is_inline_by_relative_path(tables: list[Table], tmp_path: Path) -> None:
    files = write(tables, page_by="make report")
    readme = tmp_path / "digits" / "README.md"
    assert readme in files
    text = readme.read_text(encoding="utf-8")
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert pictures == ["figures/table01-digits.png"]
    links = re.findall(r"\]\(((?:figures|tables)/.*?|report.html)\)", text)
    assert all((readme.parent / link).exists() for link in links)
    assert "| SGD" in text
    assert "## Table 1. SGD and SAM: digits, 20 % wrong labels" in text
    assert "CIFAR" not in text


def test_missing_runs_are_said_with_the_command_that_trains_them(tables: list[Table]) -> None:
    text = index.write(tables).read_text(encoding="utf-8")
    assert "1 of 1 runs are missing: `make table11 SCALE=digits`." in text
    assert "4 of 5 runs are done." in text


def test_it_names_the_command_that_writes_it(tables: list[Table], tmp_path: Path) -> None:
    write(tables, page_by="python scripts/report.py table01 table11 --page")
    text = (tmp_path / "digits" / "README.md").read_text(encoding="utf-8")
    assert "`python scripts/report.py table01 table11 --page` writes this page, and `report.html`" in text


def test_it_opens_with_the_verdicts(tables: list[Table]) -> None:
    text = index.write(tables, [VerdictLine("SAM helps.", "holds", "../../docs/claims.md")]).read_text(encoding="utf-8")
    assert "- **holds**: SAM helps. ([evidence](../../docs/claims.md))" in text
    assert text.index("1 claim of the paper: 1 holds") < text.index("## Contents")


def test_claims_that_are_not_run_are_counted_alone(tables: list[Table]) -> None:
    verdicts = [VerdictLine("SAM helps.", "fails"), VerdictLine("RST helps.", "not run")]
    text = index.write(tables, verdicts).read_text(encoding="utf-8")
    assert "2 claims of the paper: 1 fails, 1 not run" in text
    assert "SAM helps." in text
    assert "RST helps." not in text


def test_equal_records_give_an_equal_overview(tables: list[Table]) -> None:
    first = index.write(tables).read_bytes()
    assert index.write(tables).read_bytes() == first


def test_at_the_papers_scale_the_file_beside_the_hand_written_one_has_a_name_of_its_own(tmp_path: Path) -> None:
    with table_files(tmp_path, FILES):
        table = load_table("table01", [f"paths.runs={tmp_path}/runs"])
    assert index.write([table]) == tmp_path / "paper.md"


def test_several_claims_of_one_outcome_are_counted_in_the_plural() -> None:
    lines = [
        VerdictLine("a", "holds"),
        VerdictLine("b", "holds"),
        VerdictLine("c", "fails"),
        VerdictLine("d", "not run"),
    ]
    assert counted(lines) == [("holds", "2 hold"), ("fails", "1 fails"), ("not run", "1 not run")]
