"""The results of a table: the numbers of its runs, the paper's beside them, and how the two compare."""

import math
import shutil
import statistics
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from made_up_runs import ALONE, CPU, SMALL, Load, finish, loading, standing_in
from scipy import stats

from rst.experiments.errors import InputError
from rst.experiments.report import tables
from rst.experiments.report.labels import dataset_of, network_of
from rst.experiments.report.naming import folder_of
from rst.experiments.report.results import results
from rst.experiments.tables import table_file
from rst.experiments.tables.expansion import PlannedRun, Table, load_table

PAPER = "[model=resnet18, wandb.mode=disabled, device=cpu]"
"""Runs at the paper's scale, on its own images, which are not there: no run is trained."""

FILES = {
    # Cells of Table 3. The paper's text has lost ViT-B16 on Cifar100.
    "beside": f"""
        title: Beside the paper
        paper: table03
        overrides: {PAPER}
        datasets: {{Cifar10: [dataset=cifar10], Cifar100: [dataset=cifar100]}}
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
    "families": f"""
        title: The same row in two families
        seeds: 1
        overrides: {SMALL}
        groups:
          long: {{overrides: [recipe.epochs=40], rows: {{SGD: [scheme=sgd], SAM: [scheme=sam]}}}}
          short: {{overrides: [recipe.epochs=10], rows: {{SGD: [scheme=sgd], SAM: [scheme=sam]}}}}
        """,
    "two_errors": f"""
        title: Two errors
        paper: table04
        metrics: [test_error, top5_error]
        seeds: 3
        overrides: {PAPER}
        datasets: {{ImageNet: [dataset=imagenet]}}
        networks: {{ResNet50: []}}
        rows: {{SAM: [scheme=sam]}}
        """,
    "minima": f"""
        title: How sharp minima are
        seeds: 2
        metrics: [test_error, sharpness, lambda_max]
        overrides: [measure_sharpness=true, {SMALL[1:]}
        rows: {{SGD: [scheme=sgd], SAM: [scheme=sam]}}
        """,
    "unmeasured": f"""
        title: Asks for what its runs do not measure
        metrics: [lambda_max]
        overrides: {SMALL}
        rows: {{SGD: [scheme=sgd]}}
        """,
    "times": f"""
        title: Times alone
        seeds: 1
        metrics: []
        overrides: {SMALL}
        rows: {{SGD: [scheme=sgd], SAM: [scheme=sam], "RST[p = 0.3]": [scheme=rst, schedule.p=0.3]}}
        """,
}

_files = standing_in(FILES)
load = loading()


def runs_of_cell(table: Table, row: str, dataset: str = "") -> list[PlannedRun]:
    [runs] = [
        cell.runs for cell in table.cells if (cell.row, cell.dataset) == (row, dataset) and cell.network != "ViT-B16"
    ]
    return runs


def shown(table: Table, row: str, dataset: str = "") -> dict[str, str]:
    """The line of a row, as a reader sees it."""
    lines = tables.readable(table)
    lines = lines[lines["Scheme"] == row]
    if "Network" in lines:
        lines = lines[lines["Network"] != "ViT-B16"]
    if dataset:
        lines = lines[lines["Data set"] == dataset]
    [line] = lines.to_dict("records")
    return line


def printed(table: str, **where: str) -> pd.Series:
    """A number of the paper."""
    numbers = pd.read_csv(ROOT / "results" / "paper" / f"{table}.csv", dtype=str)
    for key, value in where.items():
        numbers = numbers[numbers[key] == value]
    [number] = numbers.to_dict("records")
    return pd.to_numeric(pd.Series(number)[["mean", "std"]])


# ------------------------------------------------------------------------------------------------------ our numbers


def test_a_cell_is_mean_and_standard_deviation_over_its_seeds(load: Load) -> None:
    table, errors = load("beside"), [3.1, 3.7, 3.2, 3.9, 3.3]
    for run, error in zip(runs_of_cell(table, "SGD", "Cifar10"), errors, strict=True):
        finish(run, test_error=error)
    line = results(table).iloc[0]
    assert (line["row"], line["dataset"], line["n"], line["planned"]) == ("SGD", "CIFAR-10", 5, 5)
    assert line["mean"] == pytest.approx(statistics.mean(errors))
    assert line["std"] == pytest.approx(statistics.stdev(errors))
    assert shown(table, "SGD", "CIFAR-10")["Ours [%]"] == "3.44 ± 0.34 (n = 5)"


@pytest.mark.parametrize(
    ("errors", "text"), [([], "n = 0/5"), ([3.0], "3.00 (n = 1/5)"), ([3.0, 4.0], "3.50 ± 0.71 (n = 2/5)")]
)
def test_a_cell_that_lacks_runs_says_how_many_it_has(load: Load, errors: list[float], text: str) -> None:
    table = load("beside")
    for run, error in zip(runs_of_cell(table, "SAM", "Cifar10"), errors, strict=False):
        finish(run, test_error=error)
    assert shown(table, "SAM", "CIFAR-10")["Ours [%]"] == text


def test_a_run_that_is_removed_changes_only_its_cell(load: Load) -> None:
    table = load("beside")
    for i, run in enumerate(run for run in table.runs if run.spec.seed < 2):
        finish(run, test_error=5 + i % 7 / 10, train_seconds=100 + i)
    before = tables.readable(table)
    shutil.rmtree(runs_of_cell(table, "G-RST[50%]", "Cifar100")[1].record.folder)
    changed = (tables.readable(table) != before).any(axis=1)
    assert before[changed][["Scheme", "Data set"]].to_numpy().tolist() == [["G-RST[50%]", "CIFAR-100"]]
    assert shown(table, "G-RST[50%]", "CIFAR-100")["Ours [%]"].endswith("(n = 1/5)")


def test_times_are_over_those_without_sharp_steps_in_the_same_family(load: Load) -> None:
    table = load("families")
    for run, seconds in zip(table.runs, (100, 190, 20, 30), strict=True):
        finish(run, train_seconds=seconds)
    times = tables.readable(table).set_index("Scheme")["Time / SGD"]
    assert times.to_dict() == {"SGD (long)": "1.00", "SAM (long)": "1.90", "SGD (short)": "1.00", "SAM (short)": "1.50"}


def test_extra_passes_are_shown_as_expected_and_as_realised(load: Load) -> None:
    table = load("alone")
    for run, share in zip(runs_of_cell(table, "RST[50%]"), (0.48, 0.49), strict=True):
        finish(run, extra_propagations_realised=share)
    line = shown(table, "RST[50%]")
    assert (line["Δη expected"], line["Δη realised"]) == ("0.50", "0.485")
    assert shown(table, "SAM")["Δη realised"] == ""


def test_a_table_of_times_shows_the_extra_time_over_that_of_sam(load: Load) -> None:
    table = load("times")
    for run, seconds in zip(table.runs, (100, 190, 127), strict=True):
        finish(run, train_seconds=seconds)
    line = shown(table, "RST[p = 0.3]")
    assert (line["n"], line["Time / SGD"], line["Extra time / SAM"]) == ("1", "1.27", "0.30")
    assert not [header for header in line if "[%]" in header]


def test_a_metric_that_no_run_has_is_answered_with_those_there_are(load: Load) -> None:
    with pytest.raises(
        InputError, match=r"alone\.yaml, metrics: there is no accuracy: choose of test_error, top5_error"
    ):
        results(replace(load("alone"), metrics=["accuracy"]))


# ------------------------------------------------------------------------------------------------------------- times


def test_times_are_not_divided_between_runs_of_unequal_conditions(load: Load) -> None:
    table = load("times")
    for run, threads in zip(table.runs, (1, 2, 1), strict=True):
        finish(run, on=CPU | {"threads": threads}, train_seconds=100 * (1 + run.spec.mean_p))
    times = results(table).set_index("row")
    assert times["relative_time"].fillna(0).to_dict() == {"SGD": 1, "SAM": 0, "RST[p = 0.3]": 1.3}
    assert times["relative_extra_time"].isna().all()


@pytest.mark.parametrize(
    "other",
    [
        *({"device": "NVIDIA H100"}, {"devices": 2}, {"autocast": "bfloat16"}, {"tf32": True}),
        *({"channels_last": True}, {"compile": True}, {"deterministic": True}),
    ],
    ids=str,
)
def test_each_condition_tells_times_apart(load: Load, other: dict[str, object]) -> None:
    sgd, sam, _ = (table := load("times")).runs
    finish(sgd, train_seconds=100)
    finish(sam, on=CPU | other, train_seconds=200)
    assert math.isnan(results(table).set_index("row").loc["SAM", "relative_time"])


def test_the_time_of_a_row_is_compared_once_all_its_runs_that_are_done_have_a_partner(load: Load) -> None:
    """The machine was twice as slow in seed 1, which SAM alone has at first."""
    table = load("alone")
    of_sgd = runs_of_cell(table, "SGD")
    finish(of_sgd[0], train_seconds=100)
    for run, seconds in zip(runs_of_cell(table, "SAM"), (190, 380), strict=True):
        finish(run, train_seconds=seconds)
    line = results(table).set_index("row").loc["SAM"]
    assert math.isnan(line["relative_time"])
    assert line["train_seconds"] == 285
    finish(of_sgd[1], train_seconds=200)
    assert results(table).set_index("row").loc["SAM", "relative_time"] == 1.9


def test_a_run_that_went_on_under_other_conditions_has_no_time_to_compare(load: Load) -> None:
    sgd, sam, _ = (table := load("times")).runs
    finish(sgd)
    sam.record.folder.mkdir(parents=True)
    sam.record.append_start(CPU | {"threads": 4})
    finish(sam)
    assert math.isnan(results(table).set_index("row").loc["SAM", "relative_time"])


def test_equal_times_of_sgd_and_sam_give_no_extra_time(load: Load) -> None:
    table = load("times")
    for run in table.runs:
        finish(run, train_seconds=100)
    assert results(table)["relative_extra_time"].isna().all()


# -------------------------------------------------------------------------------------------------------- divergence


@pytest.mark.parametrize(
    ("done", "diverged", "text"),
    [
        (4, 1, "3.00 ± 0.00 (n = 4/5, 1 diverged)"),
        (0, 5, "n = 0/5, 5 diverged"),
        (3, 1, "3.00 ± 0.00 (n = 3/5, 1 diverged)"),
    ],
)
def test_a_cell_says_how_many_of_its_runs_diverged(load: Load, done: int, diverged: int, text: str) -> None:
    table = load("beside")
    runs = runs_of_cell(table, "SAM", "Cifar10")
    for run in runs[:done]:
        finish(run, test_error=3.0)
    for run in runs[done : done + diverged]:
        with run.record.training(run.spec):
            run.record.append_start(CPU)
            run.record.diverge(7, "the loss is not finite")
    assert shown(table, "SAM", "CIFAR-10")["Ours [%]"] == text
    assert results(table)["diverged"].sum() == diverged


# --------------------------------------------------------------------------------------------- other images and sizes


@pytest.mark.parametrize("other", ["scale=smoke", "scale=cpu", "dataset.source=digits"])
def test_off_the_papers_setting_there_is_none_of_its_numbers(load: Load, other: str) -> None:
    table = load("beside", other)
    for run in table.runs:
        finish(run, test_error=3 + run.spec.seed)
    frame = results(table)
    theirs = ["paper_mean", "paper_std", "paper_relative_time", "difference", "difference_low", "p_value"]
    assert frame[theirs].isna().all().all()
    assert frame["mean"].notna().all()
    assert not {"Paper [%]", "Difference", "95 % interval", "Paper time"} & set(tables.readable(table))
    assert "Test error [%]" in tables.readable(table)


@pytest.mark.parametrize(
    ("overrides", "network", "dataset"),
    [
        ([], "WRN28-10", "CIFAR-10"),
        (["scale=cpu", "dataset.source=auto"], "slim WRN28-10", "CIFAR-10"),
        (["scale=smoke"], "slim WRN28-10", "digits as CIFAR-10"),
        (["dataset.source=digits"], "WRN28-10", "digits as CIFAR-10"),
    ],
)
def test_labels_say_where_a_network_is_slim_and_where_digits_stand_in(
    overrides: list[str], network: str, dataset: str
) -> None:
    table = load_table("beside", overrides)
    assert (network_of(table.cells[0]), dataset_of(table.cells[0])) == (network, dataset)
    line = tables.readable(table).iloc[0]
    assert (line["Network"], line["Data set"]) == (network, dataset)


# ------------------------------------------------------------------------------------------------ the paper's numbers


def test_the_papers_number_is_beside_ours_with_the_signed_difference(load: Load) -> None:
    table, paper = load("beside"), printed("table03", model="WRN28-10", scheme="SAM", dataset="Cifar10")
    for run in runs_of_cell(table, "SAM", "Cifar10"):
        finish(run, test_error=paper["mean"] + 0.3)
    line = shown(table, "SAM", "CIFAR-10")
    assert line["Paper [%]"] == f"{paper['mean']:.2f} ± {paper['std']:.2f}"
    assert line["Difference"] == "+0.30"
    shutil.rmtree(folder_of(table) / "runs")
    for run in runs_of_cell(table, "SAM", "Cifar10"):
        finish(run, test_error=paper["mean"] - 0.3)
    assert shown(table, "SAM", "CIFAR-10")["Difference"] == "-0.30"


def test_numbers_that_the_papers_text_has_lost_stay_empty(load: Load) -> None:
    table = load("beside")
    for run in table.runs:
        finish(run, test_error=3 + run.spec.seed / 10, train_seconds=100 * (1 + run.spec.mean_p))
    lines = tables.readable(table)
    lost = lines[(lines["Network"] == "ViT-B16") & (lines["Data set"] == "CIFAR-100")]
    assert lost[["Paper [%]", "Difference", "95 % interval"]].to_numpy().tolist() == [["", "", ""]]


def test_the_papers_time_is_its_minutes_over_those_without_sharp_steps(load: Load) -> None:
    table = load("beside")
    where = {"model": "WRN28-10", "dataset": "Cifar10&100"}
    minutes = printed("table03", scheme="SGD", **where)["mean"]
    extra = printed("table03", scheme="SAM", **where)["mean"]
    assert (minutes, extra) == (33.5, 27.7)
    assert shown(table, "SGD", "CIFAR-10")["Paper time"] == "1.00"
    assert shown(table, "SAM", "CIFAR-10")["Paper time"] == shown(table, "SAM", "CIFAR-100")["Paper time"] == "1.83"
    assert shown(table, "GNR †", "CIFAR-10")["Paper time"] == ""


def test_two_errors_of_a_cell_are_two_lines(load: Load) -> None:
    table = load("two_errors")
    for run, deviation in zip(table.runs, (-0.1, 0, 0.1), strict=True):
        finish(run, test_error=23.0 + deviation, top5_error=7.0 + 2 * deviation)
    lines = tables.readable(table).set_index("Error")
    assert lines["Ours [%]"].to_dict() == {"top-1": "23.00 ± 0.10 (n = 3)", "top-5": "7.00 ± 0.20 (n = 3)"}
    for metric, error in (("top1_error_pct", "top-1"), ("top5_error_pct", "top-5")):
        paper = printed("table04", metric=metric, model="ResNet50", scheme="SAM")
        assert lines.loc[error, "Paper [%]"] == f"{paper['mean']:.2f} ± {paper['std']:.2f}"


def test_how_sharp_minima_are_stands_beside_the_errors_and_counts_the_runs_that_measured_it(load: Load) -> None:
    table = load("minima")
    for run, error in zip(runs_of_cell(table, "SGD"), (5.0, 6.0), strict=True):
        finish(run, test_error=error, sharpness=0.001234 * error, lambda_max=120.0 * error)
    measured, done_before = runs_of_cell(table, "SAM")
    finish(measured, test_error=4.0, sharpness=0.002, lambda_max=None)
    finish(done_before, test_error=4.0)
    lines = tables.readable(table)
    ours = lines.set_index(["Scheme", "Metric"])["Ours"]
    assert ours["SGD", "test error [%]"] == "5.50 ± 0.71 (n = 2)"
    assert ours["SGD", "sharpness"] == "0.00679 ± 0.00087 (n = 2)"
    assert ours["SGD", "λ_max"] == "660 ± 85 (n = 2)"
    assert ours["SAM", "sharpness"] == "0.002 (n = 1/2)"
    assert ours["SAM", "λ_max"] == "n = 0/2"
    assert "λ_max the largest eigenvalue" in tables.caption(table, lines)


def test_a_table_of_what_its_runs_do_not_measure_is_answered_in_one_sentence(load: Load) -> None:
    match = r"unmeasured\.yaml, metrics: the runs of SGD do not measure lambda_max: write measure_sharpness=true"
    with pytest.raises(InputError, match=match):
        results(load("unmeasured"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "paper: {metric: error_pct, dataset: Cifar10, scheme: 'SAM | SGD'}",
            "2 numbers fit WRN28-10 Cifar10: name another column as well",
        ),
        ("paper: {shape: round}", "there is no column shape: choose of table, model"),
    ],
)
def test_a_wrong_choice_of_the_papers_numbers_is_answered_in_one_sentence(change: str, message: str) -> None:
    text = FILES["beside"].replace("SAM: [scheme=sam], ", f"SAM: {{overrides: [scheme=sam], {change}}}, ")
    (table_file.TABLES / "wrong.yaml").write_text(text)
    with pytest.raises(InputError, match=rf"wrong\.yaml, SAM, paper: {message}"):
        results(load_table("wrong"))


def test_a_file_of_the_paper_that_does_not_exist_is_named(load: Load) -> None:
    with pytest.raises(InputError, match=r"there is no table02\.csv among the paper's numbers"):
        results(replace(load("beside"), paper="table02"))


# ------------------------------------------------------------------------------------------------- the comparison


def samples_like_the_papers(mean: float, std: float, n: int) -> list[float]:
    """n numbers with exactly this mean and standard deviation."""
    raw = np.arange(n, dtype=float)
    return ((raw - raw.mean()) / raw.std(ddof=1) * std + mean).tolist()


@pytest.mark.parametrize("errors", [[18.0, 19.5, 18.7, 18.2, 19.1], [17.0, 17.1], [18.99, 18.98, 19.0, 19.01]])
def test_the_comparison_with_the_paper_is_welchs_t_test_against_five_seeds(load: Load, errors: list[float]) -> None:
    table, paper = load("beside"), printed("table03", model="WRN28-10", scheme="SGD", dataset="Cifar100")
    for run, error in zip(runs_of_cell(table, "SGD", "Cifar100"), errors, strict=False):
        finish(run, test_error=error)
    line = results(table).set_index(["row", "dataset"]).loc[("SGD", "CIFAR-100")]
    expected = stats.ttest_ind(errors, samples_like_the_papers(paper["mean"], paper["std"], 5), equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert line["difference"] == pytest.approx(statistics.mean(errors) - paper["mean"])
    assert (line["difference_low"], line["difference_high"]) == pytest.approx((interval.low, interval.high))
    assert line["p_value"] == pytest.approx(expected.pvalue)
    low, high = (f"{bound + 0.0:+.2f}" for bound in interval)
    assert shown(table, "SGD", "CIFAR-100")["95 % interval"] == f"{low} to {high}"


def test_the_papers_numbers_on_imagenet_are_over_three_seeds(load: Load) -> None:
    table, errors = load("two_errors"), [6.8, 7.0, 7.2]
    for run, error in zip(table.runs, errors, strict=True):
        finish(run, test_error=23.0, top5_error=error)
    paper = printed("table04", metric="top5_error_pct", model="ResNet50", scheme="SAM")
    theirs = samples_like_the_papers(paper["mean"], paper["std"], 3)
    line = results(table).set_index("metric").loc["top5_error"]
    assert line["p_value"] == pytest.approx(stats.ttest_ind(errors, theirs, equal_var=False).pvalue)


def test_one_run_has_a_difference_but_no_interval(load: Load) -> None:
    table = load("beside")
    finish(runs_of_cell(table, "SAM", "Cifar10")[0], test_error=9.0)
    assert "95 % interval" not in tables.readable(table)
    assert shown(table, "SAM", "CIFAR-10")["Difference"] != ""
    line = results(table).set_index(["row", "dataset"]).iloc[2]
    assert math.isnan(line["difference_low"])
    assert math.isnan(line["p_value"])
