"""The command that writes tables, figures and the page, and the numbers that it finds in real records."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from made_up_runs import ALONE, SMALL, standing_in

from rst.experiments.report.files import write
from rst.experiments.report.results import fill, results
from rst.experiments.tables.expansion import load_table
from rst.experiments.training import train

FILES = {
    "alone": ALONE,
    "times": f"""
        title: Times alone
        seeds: 1
        metrics: []
        overrides: {SMALL}
        rows: {{SGD: [scheme=sgd], SAM: [scheme=sam]}}
        """,
}


_files = standing_in(FILES, "seeds: {paper: 2}\nclaims: {}\n")


TINY = ["dataset.train_images=64", "dataset.test_images=50", "recipe.epochs=3", "recipe.batch_size=32"]
TINY += ["recipe.perturbation_batch=32"]


def test_numbers_of_real_runs_are_those_of_their_records(tmp_path: Path) -> None:
    table = load_table("alone", [*TINY, f"paths.runs={tmp_path / 'runs'}"])
    for run in table.runs[2:]:
        train(run.spec, show_progress=False)
    lines = results(table).set_index("row")
    assert lines["n"].to_dict() == {"SGD": 0, "SAM": 2, "RST[50%]": 2}
    assert lines.loc["SAM", "extra_propagations_realised"] == 1
    errors = [json.loads((run.record.folder / "summary.json").read_text())["test_error"] for run in table.runs[4:]]
    assert lines.loc["RST[50%]", "mean"] == statistics.mean(errors)
    records = pd.read_csv(write([table])[-1]).set_index("id")
    assert sorted(records.index) == sorted(run.record.id for run in table.runs[2:])
    assert set(records["recipe.epochs"]) == {3}
    assert sorted(records["schedule.p"].dropna()) == [0.5, 0.5]


def test_all_files_of_a_report_show_the_same_runs_though_one_ends_meanwhile(tmp_path: Path) -> None:
    table = load_table("alone", [*TINY, f"paths.runs={tmp_path / 'runs'}"])
    [filled] = fill([table])
    first = results(filled)
    first["n"] = 7  # What one reader does to its copy does not reach the next.
    train(table.runs[0].spec, show_progress=False)
    assert results(filled)["n"].tolist() == [0, 0, 0]
    assert results(table)["n"].tolist() == [1, 0, 0]


# ------------------------------------------------------------------------------------------------------ the command


def test_the_command_prints_one_table_and_lists_what_it_wrote(
    tmp_path: Path, script: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("report", "alone", f"paths.runs={tmp_path / 'runs'}") == 0
    out = capsys.readouterr().out
    assert out.startswith((tmp_path / "tables" / "alone.md").read_text())
    written = out.partition("Written:\n")[2].split()
    names = [f"tables/alone.{kind}" for kind in ("md", "csv", "tex")] + [
        f"figures/alone.{kind}" for kind in ("png", "svg", "pdf")
    ]
    assert written == [str(tmp_path / name) for name in (*names, "records.csv")]


def test_the_command_writes_several_tables_and_a_page_of_them(
    tmp_path: Path, script: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("report", "alone", "times", "--page", f"paths.runs={tmp_path / 'runs'}") == 0
    out, err = capsys.readouterr()
    assert err == ""  # A bar is for terminals.
    first, *written = out.split()
    assert first == "Written:"
    assert len(written) == len(set(written)) == (3 + 3) + 3 + 2 + 1  # `times` has no errors, and so no figure
    assert str(tmp_path / "report.html") in written
    assert all(Path(file).exists() for file in written)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["tabel"], "report.py: there is no table tabel: choose one of alone, times."),
        (["alone", "dataset.label_noise=2"], "report.py: dataset.label_noise=2: write a number from 0 to 1."),
        (["alone", "recipe.epoch=3"], "report.py: there is no key recipe.epoch: did you mean recipe.epochs?"),
    ],
)
def test_bad_input_is_answered_in_one_sentence(
    tmp_path: Path,
    script: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    sentence: str,
) -> None:
    assert script("report", *words, f"paths.runs={tmp_path / 'runs'}") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(sentence)
    assert err.count("\n") == 1
