"""The files of a table: its layout and caption, as Markdown and LaTeX, and its results as CSV."""

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from made_up_runs import ALONE, SMALL, Load, finish, loading, standing_in

from rst.experiments.report import tables
from rst.experiments.report.naming import folder_of
from rst.experiments.report.results import results
from rst.experiments.tables.expansion import Table

FILES = {
    # Cells of Table 3, with digits as their images.
    "beside": f"""
        title: A & B_1, 50 % of each
        paper: table03
        overrides: {SMALL}
        datasets: {{Cifar10: [], Cifar100: [dataset.label_noise=0.2]}}
        networks: {{WRN28-10: []}}
        rows: {{SGD: [scheme=sgd], SAM: [scheme=sam], "G-RST[50%]": [scheme=grst]}}
        groups:
          more:
            rows: {{GNR: {{overrides: [scheme=gnr], not_in_paper: true}}}}
          ViT:
            networks: {{ViT-B16: [recipe.epochs=1200]}}
            rows: {{SAM: [scheme=sam]}}
        """,
    "alone": ALONE,
    "formulas": f"""
        title: Formulas alone
        seeds: 0
        metrics: []
        overrides: {SMALL}
        rows:
          SGD: [scheme=sgd]
          GNR: [scheme=gnr, scheme.gamma_ratio=0.8]
          G-RST: [scheme=grst, schedule=linear, schedule.m=0.25]
          sine: [scheme=rst, schedule=sine]
        """,
    "adaptive": f"""
        title: Rows beyond the paper
        seeds: 1
        overrides: {SMALL}
        rows: {{SGD: [scheme=sgd], AE-SAM: [scheme=rst, schedule=ae_sam], F-SAM: [scheme=sam, variant=friendly]}}
        """,
    "cifar": """
        title: A data set of which there is a smaller scale
        paper: table01
        datasets: {Cifar10: [dataset=cifar10]}
        networks: {ResNet18: [model=resnet18]}
        rows: {SAM: [scheme=sam]}
        """,
}

_files = standing_in(FILES)
load = loading()


def with_two_runs_a_cell(table: Table) -> Table:
    for i, run in enumerate(run for run in table.runs if run.spec.seed < 2):
        finish(run, test_error=5 + i % 7 / 10, train_seconds=100 + i, extra_propagations_realised=0.25)
    return table


def caption_of(table: Table) -> str:
    return tables.caption(table, tables.readable(table))


# ------------------------------------------------------------------------------------------------------- the layout


def test_rows_are_grouped_by_network_and_data_set_in_the_order_of_the_file(load: Load) -> None:
    lines = tables.readable(load("beside"))[["Network", "Data set", "Scheme"]].to_numpy().tolist()
    schemes = ["SGD", "SAM", "G-RST[50%]", "GNR †"]
    assert lines == [
        *(["WRN28-10", "digits", scheme] for scheme in schemes),
        *(["WRN28-10", "digits, 20 % wrong labels", scheme] for scheme in schemes),
        ["ViT-B16", "digits", "SAM"],
        ["ViT-B16", "digits, 20 % wrong labels", "SAM"],
    ]


def test_a_table_has_no_empty_columns(load: Load) -> None:
    assert list(tables.readable(load("alone"))) == ["Scheme", "Test error [%]", "Δη expected"]
    with_two_runs_a_cell(load("alone"))
    assert list(tables.readable(load("alone"))) == [
        *("Scheme", "Test error [%]", "Δη expected", "Δη realised", "Time / SGD")
    ]


def test_rows_that_the_paper_lacks_are_marked_and_the_mark_is_explained(load: Load) -> None:
    assert [row for row in tables.readable(load("beside"))["Scheme"] if "†" in row] == ["GNR †", "GNR †"]
    assert caption_of(load("beside")).endswith("† not in the paper.")
    assert "†" not in caption_of(load("alone"))


def test_a_table_without_runs_shows_what_follows_from_its_specs(load: Load) -> None:
    table = load("formulas")
    lines = tables.readable(table).set_index("Scheme")
    assert lines["γ_rst / ρ"].to_dict() == {"SGD": "0", "GNR": "0.8", "G-RST": "1", "sine": "0.636614"}
    assert lines["Δη by Table 2"].to_dict() == {"SGD": "0.000000", "GNR": "1.000000", "G-RST": "0.250000", "sine": ""}
    assert lines.loc["G-RST", "Δη by steps"] == "0.249167"  # in 300 steps, half the rise of a step too little
    assert lines.loc["G-RST", "Deviation"] == "-8.3e-04"
    assert caption_of(table).startswith("T = 300 steps. Δη:")
    assert [file.name for file in tables.write(table)] == ["formulas.md", "formulas.csv", "formulas.tex"]


# ------------------------------------------------------------------------------------------------------ the caption


def test_the_caption_says_what_the_numbers_are_of(load: Load) -> None:
    caption = caption_of(with_two_runs_a_cell(load("beside")))
    for fact in (
        "Network: `wrn10_1`;",
        "data: `digits` (real images, 1,000 for training, 797 for testing); wrong training labels: 0 %, 20 %; ",
        "epochs: 20 (WRN28-10), 1,200 (ViT-B16);",
        "20 (WRN28-10), 1,200 (ViT-B16); seeds: 5.",  # Digits alone have no scale.
    ):
        assert fact in caption


def test_the_caption_says_where_the_papers_numbers_are_from(load: Load) -> None:
    caption = caption_of(with_two_runs_a_cell(load("cifar")))
    for fact in (
        "scale: `paper`; seeds: 5.",
        "mean ± standard deviation over seeds of the test error after the last epoch",
        "`results/paper/table01.csv`",
        "95 % interval: of the difference, by Welch's t-test",
    ):
        assert fact in caption
    assert "not shown beside" not in caption


def test_a_smaller_scale_is_named_and_its_files_have_a_folder_of_their_own(load: Load, tmp_path: Path) -> None:
    table = load("cifar", "scale=smoke")
    caption = caption_of(table)
    assert (
        "data: `cifar10` (digits standing in, 128 for training, 100 for testing); epochs: 2; scale: `smoke`" in caption
    )
    assert "Images, networks and epochs are not the paper's, so that its numbers are not shown beside these." in caption
    assert {file.parent.relative_to(tmp_path).parts[0] for file in tables.write(table)} == {"smoke-digits"}


def test_digits_in_place_of_a_data_set_have_a_folder_of_their_own(load: Load, tmp_path: Path) -> None:
    table = load("cifar", "dataset.source=digits")
    assert folder_of(table) == tmp_path / "paper-digits"
    assert "not shown beside these" in caption_of(table)
    assert folder_of(load("cifar")) == tmp_path


# -------------------------------------------------------------------------------------------------------- the files


def test_the_csv_has_the_results_in_full(load: Load) -> None:
    table = with_two_runs_a_cell(load("beside"))
    read = pd.read_csv(tables.write(table)[1], dtype=str, keep_default_na=False)
    assert list(read) == list(results(table))
    assert read["mean"].astype(float).tolist() == results(table)["mean"].tolist()


def test_the_markdown_has_title_rows_and_caption(load: Load) -> None:
    table = with_two_runs_a_cell(load("beside"))
    title, _, header, _, *rows = tables.write(table)[0].read_text().splitlines()
    assert title == "# A & B_1, 50 % of each"
    assert [cell.strip() for cell in header.strip("|").split("|")] == list(tables.readable(table))
    assert [row.split("|")[1].strip() for row in rows[:10]] == ["WRN28-10", *[""] * 7, "ViT-B16", ""]
    assert [row.split("|")[2].strip() for row in rows[:5]] == ["digits", "", "", "", "digits, 20 % wrong labels"]
    assert " ".join(rows[11:]) == caption_of(table)


def test_the_latex_is_well_formed_and_escaped(load: Load) -> None:
    text = tables.write(with_two_runs_a_cell(load("beside")))[2].read_text()
    bare = re.sub(r"\\[\\&%$#_{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert bare.count(r"\begin{longtable}") == bare.count(r"\end{longtable}") == 1
    assert text.index(r"\toprule") < text.index(r"\midrule") < text.index(r"\bottomrule")
    assert text.isascii()
    assert r"\caption{A \& B\_1, 50 \% of each}" in text
    assert r"G-RST[50\%]" in text
    assert r"\shortstack{$\Delta$$\eta$\\{}expected}" in text
    assert r"GNR $\dagger$" in text
    assert not re.search(r"(?<!\S)-\d", text)  # minus signs, not hyphens
    # All rows but the one for the foot of a page.
    rows = [line for line in bare.splitlines() if "&" in line and not line.startswith("%")]
    columns = len(tables.readable(load("beside")).columns)
    assert len(rows) == 2 + 10  # the header is there twice, for the first page and for further ones
    assert {line.count("&") + 1 for line in rows} == {columns}


@pytest.mark.parametrize(
    ("plain", "latex"),
    [
        ("a_b & c % d # e $ f {g}", r"a\_b \& c \% d \# e \$ f \{g\}"),
        ("x^2 ~ \\", r"x\textasciicircum{}2 \textasciitilde{} \textbackslash{}"),
        ("γ_rst ≤ Δη ± ρ π θ †", r"$\gamma$\_rst $\leq$ $\Delta$$\eta$ $\pm$ $\rho$ $\pi$ $\theta$ $\dagger$"),
    ],
)
def test_every_symbol_is_escaped_for_latex(load: Load, plain: str, latex: str) -> None:
    table = replace(load("alone"), title=plain)
    assert rf"\caption{{{latex}}}" in tables.write(table)[2].read_text()


def test_the_same_records_give_the_same_bytes(load: Load) -> None:
    table = with_two_runs_a_cell(load("beside"))
    files = tables.write(table)
    before = [file.read_bytes() for file in files]
    tables.write(table)
    assert [file.read_bytes() for file in files] == before


def test_a_row_whose_gate_decides_after_the_clean_pass_shows_what_it_cost_and_no_expected_cost(load: Load) -> None:
    table = load("adaptive")
    for run in table.runs:
        finish(run, extra_propagations_expected=None, extra_propagations_realised=0.25)
    rows = tables.readable(table).set_index("Scheme")
    assert rows.loc["AE-SAM", "Δη realised"] == "0.250"
    assert rows.loc["AE-SAM", "Δη expected"] in ("", "-")
    assert rows.loc["F-SAM", "Δη expected"] == "1.00"
    assert "AE-SAM" in tables.write(table)[0].read_text(encoding="utf-8")
