"""``records.csv`` has what came out of every run, and a clone without records writes the same files from it."""

import io
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_up_runs import ALONE, CPU, SMALL, Load, finish, finished, loading, standing_in

from rst.experiments.errors import InputError
from rst.experiments.report import records
from rst.experiments.report.files import write
from rst.experiments.report.naming import folder_of
from rst.experiments.report.records import CONDITIONS, Outcome, outcomes_of
from rst.experiments.report.results import results
from rst.experiments.tables.expansion import PlannedRun, Table, runs_of

FILES = {
    "alone": ALONE,
    "other": f"""
        title: A network with other keys
        seeds: 1
        overrides: {SMALL}
        rows: {{SAM: [scheme=sam], "SAM, of VGG": [scheme=sam, model=vgg16_bn]}}
        """,
    "figure": f"""
        title: Error over cost
        draw: error_over_cost
        seeds: 3
        overrides: {SMALL}
        rows: {{SGD: [scheme=sgd], SAM: [scheme=sam]}}
        groups:
          constant:
            rows: {{"RST[<p>]": {{overrides: [scheme=rst, "schedule.p=<p>"], grid: {{p: [0.2, 0.8]}}}}}}
        """,
    "minima": """
        title: How sharp minima are
        seeds: 1
        metrics: [test_error, sharpness]
        overrides: [dataset=digits, model=wrn10_1, wandb.mode=disabled, measure_sharpness=true]
        rows: {SGD: [scheme=sgd]}
        """,
}

_files = standing_in(FILES)
load = loading()


def file_of(table: Table) -> Path:
    return folder_of(table) / records.NAME


def lines_of(table: Table) -> pd.DataFrame:
    return pd.read_csv(file_of(table), dtype=str, keep_default_na=False, index_col="id")


def forget(*runs: PlannedRun) -> None:
    """Delete the records of runs, as in a clone that has not trained them."""
    for run in runs:
        shutil.rmtree(run.record.folder)


# ---------------------------------------------------------------------------------------------------- a fresh clone


def test_a_clone_without_records_writes_the_same_bytes_from_the_committed_lines(load: Load) -> None:
    table = finished(load("figure"), runs=10)
    table.runs[10].record.folder.mkdir(parents=True)
    table.runs[10].record.append_start(CPU)
    table.runs[10].record.diverge(7, "the loss is not finite")
    files = write([table])
    before = {file: file.read_bytes() for file in files}
    assert len(before) == 3 + 3 + 1
    forget(*table.runs[:11])
    for file in files:
        if file.name != records.NAME:
            file.unlink()
    assert write([table]) == files
    assert {file: file.read_bytes() for file in files} == before


def test_a_record_wins_over_the_committed_line(load: Load) -> None:
    table = load("alone")
    finish(table.runs[0], test_error=5)
    write([table])
    forget(table.runs[0])
    finish(table.runs[0], test_error=6)
    assert results(table)["mean"].iloc[0] == 6
    write([table])
    assert lines_of(table)["test_error"].tolist() == ["6"]


def test_committed_lines_of_other_runs_fill_no_cell(load: Load) -> None:
    alone, other = load("alone"), load("other")
    finish(other.runs[1])
    write([other])
    forget(other.runs[1])
    assert results(alone)["n"].tolist() == [0, 0, 0]


def test_a_run_that_diverged_is_an_outcome_with_a_line_of_its_own(load: Load) -> None:
    table = load("alone")
    table.runs[2].record.folder.mkdir(parents=True)
    table.runs[2].record.append_start(CPU)
    table.runs[2].record.diverge(7, "the loss is not finite")
    for _ in range(2):  # from the record, then from the line
        assert results(table)[["n", "diverged"]].to_numpy().tolist() == [[0, 0], [0, 1], [0, 0]]
        write([table])
        shutil.rmtree(table.runs[2].record.folder, ignore_errors=True)
    [line] = lines_of(table).to_dict("records")
    assert (line["outcome"], line["test_error"], line["device"]) == ("diverged", "", "cpu")
    assert line["scheme.name"] == "sam"


def test_thousands_of_lines_are_read_in_a_moment(load: Load) -> None:
    table = load("alone")
    finish(table.runs[0])
    write([table])
    [line] = records.read(file_of(table)).values()
    text = records._csv({f"{line['id']}-{i}": {**line, "id": f"{line['id']}-{i}"} for i in range(3000)})
    file_of(table).write_text(text)
    begin = time.perf_counter()
    assert len(records.read(file_of(table))) == 3000
    assert time.perf_counter() - begin < 2


# ------------------------------------------------------------------------------------------------------- conditions


@pytest.mark.parametrize("differing", ["device", "devices", "threads", "compile", "alone"])
def test_times_of_a_run_whose_starts_differ_are_not_compared(load: Load, differing: str) -> None:
    table = load("alone")
    for run in table.runs:
        finish(run, train_seconds=2 + run.spec.mean_p)
    table.runs[0].record.append_start(CPU | {differing: "another"})
    forget(table.runs[1])
    for _ in range(2):  # from the record, then from the line
        assert results(table)["relative_time"].isna().all()
        write([table])
        shutil.rmtree(table.runs[0].record.folder, ignore_errors=True)
    assert lines_of(table).loc[table.runs[0].record.id, differing] == ""
    assert lines_of(table).loc[table.runs[2].record.id, differing] == str(CPU[differing])


def test_times_of_runs_beside_which_others_ran_are_not_compared(load: Load) -> None:
    table = load("alone")
    for run in table.runs:
        finish(run, on=CPU | {"alone": False}, train_seconds=2 + run.spec.mean_p)
    assert results(table)["relative_time"].isna().all()


def test_the_columns_of_conditions_are_those_of_the_machine_and_stand_once(load: Load) -> None:
    table = load("alone")
    finish(table.runs[0], on=CPU | {"device": "A GPU", "threads": 3, "autocast": "bfloat16", "torch": "9.9"})
    write([table])
    [line] = lines_of(table).to_dict("records")
    assert {key: line[key] for key in CONDITIONS} == {
        **dict.fromkeys(CONDITIONS, "False"),
        **{"device": "A GPU", "devices": "1", "threads": "3", "autocast": "bfloat16", "alone": "True"},
    }
    assert line["torch"] == "9.9"
    header = file_of(table).read_text().partition("\n")[0].split(",")
    assert len(header) == len(set(header))


def test_an_outcome_is_the_same_from_a_record_and_from_a_line(load: Load) -> None:
    table = load("minima")
    [run] = table.runs
    finish(run, test_error=1 / 3, gradient_norm=0.5, sharpness=None, lambda_max=8.0, peak_memory_bytes=None)
    own = outcomes_of(table.runs, None)[run.record.id]
    write([table])
    forget(run)
    line = outcomes_of(table.runs, file_of(table))[run.record.id]
    assert own.summary == line.summary == Outcome(own.line).summary
    assert own.conditions == line.conditions
    assert own.summary["test_error"] == 1 / 3
    assert "sharpness" not in own.summary
    assert "measure_sharpness" not in line.line


# ---------------------------------------------------------------------------------------------------------- the file


def test_the_line_of_a_run_does_not_depend_on_the_order_of_writing(load: Load) -> None:
    alone, other = load("alone"), load("other")
    runs = {run.record.id: run for run in runs_of([alone, other])}
    for i, run in enumerate(runs.values()):
        finish(run, test_error=3.25, train_seconds=i)
    texts = []
    for order in ([alone], [other]), ([other], [alone], [other]), ([alone, other],):
        for tables in order:
            write(tables)
        texts.append(file_of(alone).read_text())
        file_of(alone).unlink()
    assert len(set(texts)) == 1
    lines = pd.read_csv(io.StringIO(texts[0]), index_col="id")
    assert list(lines.index) == sorted(runs)
    assert len(runs) == 7  # seed 0 of SAM is in both tables
    vgg = next(run for run in runs if "vgg" in run)
    assert lines.loc[vgg, "network"] == "vgg16_bn"
    assert lines["model.depth"].isna().sum() == 1
    assert "10.0" not in texts[0]
    assert (lines["test_error"] == 3.25).all()
    assert not [key for key in lines if key.startswith(("paths", "wandb", "slurm", "dataset.root"))]


def test_two_reports_at_once_lose_no_line(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, other = load("alone"), load("other")
    for run in runs_of([alone, other]):
        finish(run)
    read = records.read

    def slow(file: Path) -> Any:
        lines = read(file)
        time.sleep(0.2)  # The other report has the time to read the file.
        return lines

    monkeypatch.setattr(records, "read", slow)
    reports = [threading.Thread(target=write, args=([table],)) for table in (alone, other)]
    for report in reports:
        report.start()
    for report in reports:
        report.join()
    assert sorted(lines_of(alone).index) == sorted(run.record.id for run in runs_of([alone, other]))


def test_a_number_that_nobody_knows_is_an_empty_cell(load: Load) -> None:
    table = load("alone")
    finish(table.runs[0], peak_memory_bytes=None)
    finish(table.runs[1], peak_memory_bytes=2**30)
    write([table])
    memory = lines_of(table)["peak_memory_bytes"]
    assert memory[[run.record.id for run in table.runs[:2]]].tolist() == ["", str(2**30)]


DAMAGED = {
    "a line that is cut off": (lambda text: text[:-40], "is cut off within line 2"),
    "a header that is cut off": (lambda text: text[:40], "is cut off within line 1"),
    "a letter in a number": (lambda text: text.replace("2.125", "2.l25"), "line 2, test_error: 2.l25 is not a number"),
    "no column for the outcome": (lambda text: text.replace("outcome", "end"), "line 1 is damaged or of an older"),
    "nothing left": (lambda text: "", "line 1 is damaged or of an older version: git checkout records.csv"),
    "another file in its place": (lambda text: "# notes\n", "line 1 is damaged or of an older version"),
    "signs of a merge": (lambda text: text + "<<<<<<< HEAD\n", "line 3 is damaged or of an older version"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_answered_in_one_sentence_and_stays(load: Load, damage: str) -> None:
    change, sentence = DAMAGED[damage]
    table = load("alone")
    finish(table.runs[0], test_error=2.125)
    write([table])
    text = change(file_of(table).read_text())
    file_of(table).write_text(text)
    with pytest.raises(InputError, match=sentence):
        write([table])
    assert file_of(table).read_text() == text


def test_a_run_whose_starts_are_cut_off_does_not_lose_its_conditions_in_the_file(load: Load) -> None:
    table = load("alone")
    finish(table.runs[0], test_error=2.125)
    write([table])
    before, starts = file_of(table).read_text(), table.runs[0].record.folder / "starts.jsonl"
    starts.write_text(starts.read_text()[:20])
    with pytest.raises(InputError, match=r"starts\.jsonl is damaged: delete the folder to train the run again\."):
        write([table])
    assert file_of(table).read_text() == before


# ----------------------------------------------------------------------------------------------------------- pruning


def test_runs_without_a_record_leave_the_file_only_where_that_is_asked_for_and_said(load: Load) -> None:
    alone, other = load("alone"), load("other")
    for run in runs_of([alone, other]):
        finish(run)
    write([alone, other])
    forget(other.runs[-1])  # It is in this table alone.
    write([alone])
    assert other.runs[-1].record.id in lines_of(alone).index
    told: list[str] = []
    write([alone], prune=True, tell=told.append)
    assert sorted(lines_of(alone).index) == sorted(run.record.id for run in runs_of([alone, other])[:-1])
    assert told == [f"1 lines of {file_of(alone)} are dropped, whose runs have no record here."]


def test_what_is_pruned_is_in_no_table(load: Load) -> None:
    table = load("alone")
    finish(table.runs[0]), finish(table.runs[1])
    write([table])
    forget(table.runs[1])
    markdown, *_ = write([table], prune=True, tell=str)
    assert "n = 1/2" in markdown.read_text(encoding="utf-8")


def test_pruning_is_refused_where_it_would_drop_every_line_that_a_clone_was_given(load: Load) -> None:
    table = finished(load("alone"))
    write([table])
    before = file_of(table).read_bytes()
    forget(*table.runs)
    with pytest.raises(InputError, match=r"none of the 6 runs in .* has a record in .*: leave --prune out"):
        write([table], prune=True)
    assert file_of(table).read_bytes() == before


def test_pruning_makes_a_file_where_there_is_none(load: Load) -> None:
    table = load("alone")
    finish(table.runs[0])
    write([table], prune=True)
    assert lines_of(table).index.tolist() == [table.runs[0].record.id]
