"""Tables of results: every number is that of its runs, stands beside the paper's, and what is missing is said."""

import functools
import io
import json
import re
import shutil
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from rst import schedules
from rst.experiments import sweep
from rst.experiments.config import InputError
from rst.experiments.record import SUMMARY_KEYS, Record
from rst.experiments.sweep import Job, Table, load_table
from rst.report import tables
from rst.report.formulas import closed_form
from rst.report.results import folder_of, results
from rst.training import train

SMALL = "[dataset=digits, model=wrn10_1, wandb.mode=disabled, device=cpu]"

FILES = {
    # Cells of Table 3, on digits. Of ViT-B16 the paper's text has lost Cifar100.
    "beside": f"""
        title: A & B_1, 50 % of each
        paper: table03
        overrides: {SMALL}
        columns: {{Cifar10: [], Cifar100: [dataset.label_noise=0.2]}}
        blocks: {{WRN28-10: []}}
        rows: {{SGD: [scheme=sgd], SAM: [scheme=sam], "G-RST[50%]": [scheme=grst]}}
        groups:
          more:
            rows: {{GNR: {{overrides: [scheme=gnr], ours: true}}}}
          ViT:
            blocks: {{ViT-B16: [recipe.epochs=1200]}}
            rows: {{SAM: [scheme=sam]}}
        """,
    "alone": f"""
        title: Without the paper
        seeds: 2
        overrides: {SMALL}
        rows: {{SGD: [scheme=sgd], SAM: [scheme=sam], "RST[50%]": [scheme=rst]}}
        """,
    "other": f"""
        title: A network with other keys
        seeds: 1
        overrides: {SMALL}
        rows: {{SAM: [scheme=sam], "SAM, of VGG": [scheme=sam, model=vgg16_bn]}}
        """,
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
        overrides: {SMALL}
        columns: {{ImageNet: []}}
        blocks: {{ResNet50: []}}
        rows: {{SAM: [scheme=sam]}}
        """,
    "times": f"""
        title: Times alone
        seeds: 1
        metrics: []
        overrides: {SMALL}
        rows: {{SGD: [scheme=sgd], SAM: [scheme=sam], "RST[p = 0.3]": [scheme=rst, schedule.p=0.3]}}
        """,
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
    "cifar": """
        title: A data set of which there is a smaller scale
        paper: table01
        columns: {Cifar10: [dataset=cifar10]}
        blocks: {ResNet18: [model=resnet18]}
        rows: {SAM: [scheme=sam]}
        """,
}


@pytest.fixture(scope="module", autouse=True)
def _files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """FILES in place of the project's table files."""
    folder = tmp_path_factory.mktemp("tables")
    for name, text in FILES.items():
        (folder / f"{name}.yaml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "TABLES", folder)
        yield


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Table]:
    """A table whose runs are in a folder of the test."""

    def load(name: str, *overrides: str) -> Table:
        table, cells = composed(name, overrides), []
        for cell in table.cells:
            cfg = OmegaConf.merge(cell.cfg, {"paths": {"runs": str(tmp_path / "runs")}})
            jobs = [Job(job.cfg, Record(tmp_path / "runs" / job.record.id)) for job in cell.jobs]
            cells.append(replace(cell, cfg=cfg, jobs=jobs))
        return replace(table, cells=cells)

    return load


composed = functools.cache(load_table)


def jobs_of(table: Table, row: str, column: str = "") -> list[Job]:
    [jobs] = [cell.jobs for cell in table.cells if (cell.row, cell.column) == (row, column) and cell.block != "ViT-B16"]
    return jobs


def finish(job: Job, **came_out: float) -> None:
    """The record of a run that has ended so."""
    job.record.folder.mkdir(parents=True)
    OmegaConf.save(job.cfg, job.record.folder / "config.yaml")
    job.record.finish(dict.fromkeys(SUMMARY_KEYS, 1) | {"seed": job.cfg.seed} | came_out)


def finish_two(table: Table) -> Table:
    """The table with two runs of each cell."""
    for i, job in enumerate(job for job in table.jobs if job.cfg.seed < 2):
        finish(job, test_error=5 + i % 7 / 10, train_seconds=100 + i, extra_propagations_realised=0.25)
    return table


def shown(table: Table, row: str, column: str = "") -> dict[str, str]:
    """The line of a row, as a reader finds it."""
    lines = tables.readable(table)
    lines = lines[lines["Scheme"] == row]
    if "Network" in lines:
        lines = lines[lines["Network"] != "ViT-B16"]
    if column:
        lines = lines[lines["Data set"] == column]
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


def test_a_cell_is_mean_and_standard_deviation_over_its_seeds(load: Callable[..., Table]) -> None:
    table, errors = load("beside"), [3.1, 3.7, 3.2, 3.9, 3.3]
    for job, error in zip(jobs_of(table, "SGD", "Cifar10"), errors, strict=True):
        finish(job, test_error=error)
    line = results(table).iloc[0]
    assert (line["row"], line["column"], line["n"], line["wanted"]) == ("SGD", "Cifar10", 5, 5)
    assert line["mean"] == pytest.approx(statistics.mean(errors))
    assert line["std"] == pytest.approx(statistics.stdev(errors))
    assert shown(table, "SGD", "Cifar10")["Ours [%]"] == "3.44 ± 0.34 (n = 5)"


@pytest.mark.parametrize(
    ("errors", "text"), [([], "n = 0/5"), ([3.0], "3.00 (n = 1/5)"), ([3.0, 4.0], "3.50 ± 0.71 (n = 2/5)")]
)
def test_a_cell_that_lacks_runs_says_how_many_it_has(
    load: Callable[..., Table], errors: list[float], text: str
) -> None:
    table = load("beside")
    for job, error in zip(jobs_of(table, "SAM", "Cifar10"), errors, strict=False):
        finish(job, test_error=error)
    assert shown(table, "SAM", "Cifar10")["Ours [%]"] == text


def test_a_run_that_is_removed_changes_its_cell_alone(load: Callable[..., Table]) -> None:
    table = finish_two(load("beside"))
    before = tables.readable(table)
    shutil.rmtree(jobs_of(table, "G-RST[50%]", "Cifar100")[1].record.folder)
    changed = (tables.readable(table) != before).any(axis=1)
    assert before[changed][["Scheme", "Data set"]].to_numpy().tolist() == [["G-RST[50%]", "Cifar100"]]
    assert shown(table, "G-RST[50%]", "Cifar100")["Ours [%]"].endswith("(n = 1/5)")


def test_times_are_over_those_without_sharp_steps_in_the_same_family(load: Callable[..., Table]) -> None:
    table = load("families")
    for job, seconds in zip(table.jobs, (100, 190, 20, 30), strict=True):
        finish(job, train_seconds=seconds)
    times = tables.readable(table).set_index("Scheme")["Time / SGD"]
    assert times.to_dict() == {"SGD (long)": "1.00", "SAM (long)": "1.90", "SGD (short)": "1.00", "SAM (short)": "1.50"}


def test_extra_passes_are_shown_as_expected_and_as_they_came(load: Callable[..., Table]) -> None:
    table = load("alone")
    for job, share in zip(jobs_of(table, "RST[50%]"), (0.48, 0.49), strict=True):
        finish(job, extra_propagations_realised=share)
    line = shown(table, "RST[50%]")
    assert (line["Δη expected"], line["Δη realised"]) == ("0.50", "0.485")
    assert shown(table, "SAM")["Δη realised"] == ""


def test_a_table_of_times_shows_the_share_of_sams_extra_time(load: Callable[..., Table]) -> None:
    table = load("times")
    for job, seconds in zip(table.jobs, (100, 190, 127), strict=True):
        finish(job, train_seconds=seconds)
    line = shown(table, "RST[p = 0.3]")
    assert (line["n"], line["Time / SGD"], line["Extra time / SAM"]) == ("1", "1.27", "0.30")
    assert not [header for header in line if "%" in header]


def test_rows_stand_by_network_and_data_set_in_the_order_of_the_file(load: Callable[..., Table]) -> None:
    lines = tables.readable(load("beside"))[["Network", "Data set", "Scheme"]].to_numpy().tolist()
    schemes = ["SGD", "SAM", "G-RST[50%]", "GNR †"]
    assert lines == [
        *(["WRN28-10", "Cifar10", scheme] for scheme in schemes),
        *(["WRN28-10", "Cifar100", scheme] for scheme in schemes),
        ["ViT-B16", "Cifar10", "SAM"],
        ["ViT-B16", "Cifar100", "SAM"],
    ]


def test_a_table_without_paper_and_runs_has_no_columns_of_theirs(load: Callable[..., Table]) -> None:
    assert list(tables.readable(load("alone"))) == ["Scheme", "Test error [%]", "Δη expected"]
    finish_two(load("alone"))
    assert list(tables.readable(load("alone"))) == [
        *("Scheme", "Test error [%]", "Δη expected", "Δη realised", "Time / SGD")
    ]


# ------------------------------------------------------------------------------------------------ the paper's numbers


def test_the_papers_number_stands_beside_ours_with_the_signed_difference(load: Callable[..., Table]) -> None:
    table, paper = load("beside"), printed("table03", model="WRN28-10", scheme="SAM", dataset="Cifar10")
    for job in jobs_of(table, "SAM", "Cifar10"):
        finish(job, test_error=paper["mean"] + 0.3)
    line = shown(table, "SAM", "Cifar10")
    assert line["Paper [%]"] == f"{paper['mean']:.2f} ± {paper['std']:.2f}"
    assert line["Difference"] == "+0.30"
    shutil.rmtree(folder_of(table) / "runs")
    for job in jobs_of(table, "SAM", "Cifar10"):
        finish(job, test_error=paper["mean"] - 0.3)
    assert shown(table, "SAM", "Cifar10")["Difference"] == "-0.30"


@pytest.mark.parametrize(
    ("errors_of_difference", "within"), [(1.99, "yes"), (-1.99, "yes"), (2.01, "no"), (-2.01, "no")]
)
def test_two_standard_errors_are_as_by_hand(
    load: Callable[..., Table], errors_of_difference: float, within: str
) -> None:
    table, paper = load("beside"), printed("table03", model="WRN28-10", scheme="SGD", dataset="Cifar100")
    spread = [-0.2, -0.1, 0.0, 0.1, 0.2]  # variance 0.025, so 0.005 of the mean of five
    standard_error = (0.005 + paper["std"] ** 2 / 5) ** 0.5
    for job, deviation in zip(jobs_of(table, "SGD", "Cifar100"), spread, strict=True):
        finish(job, test_error=paper["mean"] + errors_of_difference * standard_error + deviation)
    assert shown(table, "SGD", "Cifar100")["≤ 2 SE"] == within


def test_one_run_has_a_difference_but_no_standard_error(load: Callable[..., Table]) -> None:
    table = load("beside")
    finish(jobs_of(table, "SAM", "Cifar10")[0], test_error=9.0)
    assert "≤ 2 SE" not in tables.readable(table)
    assert shown(table, "SAM", "Cifar10")["Difference"] != ""


def test_numbers_that_the_papers_text_has_lost_stay_empty(load: Callable[..., Table]) -> None:
    lines = tables.readable(finish_two(load("beside")))
    lost = lines[(lines["Network"] == "ViT-B16") & (lines["Data set"] == "Cifar100")]
    assert lost[["Paper [%]", "Difference", "≤ 2 SE"]].to_numpy().tolist() == [["", "", ""]]


def test_the_papers_time_is_that_of_its_minutes(load: Callable[..., Table]) -> None:
    table = load("beside")
    where = {"model": "WRN28-10", "dataset": "Cifar10&100"}
    minutes = printed("table03", scheme="SGD", **where)["mean"]
    extra = printed("table03", scheme="SAM", **where)["mean"]
    assert (minutes, extra) == (33.5, 27.7)
    assert shown(table, "SGD", "Cifar10")["Paper time"] == "1.00"
    assert shown(table, "SAM", "Cifar10")["Paper time"] == shown(table, "SAM", "Cifar100")["Paper time"] == "1.83"
    assert shown(table, "GNR †", "Cifar10")["Paper time"] == ""


def test_two_errors_of_a_cell_are_two_lines_and_the_papers_seeds_three(load: Callable[..., Table]) -> None:
    table = load("two_errors")
    for job, deviation in zip(table.jobs, (-0.1, 0, 0.1), strict=True):
        finish(job, test_error=23.0 + deviation, top5_error=7.0 + 2 * deviation)
    lines = tables.readable(table).set_index("Error")
    assert lines["Ours [%]"].to_dict() == {"top-1": "23.00 ± 0.10 (n = 3)", "top-5": "7.00 ± 0.20 (n = 3)"}
    where = {"model": "ResNet50", "scheme": "SAM"}
    for metric, error in (("top1_error_pct", "top-1"), ("top5_error_pct", "top-5")):
        paper = printed("table04", metric=metric, **where)
        assert lines.loc[error, "Paper [%]"] == f"{paper['mean']:.2f} ± {paper['std']:.2f}"
    top5 = results(table).set_index("metric").loc["top5_error"]
    assert top5["standard_error"] == pytest.approx((0.2**2 / 3 + paper["std"] ** 2 / 3) ** 0.5)


def caption_of(table: Table) -> str:
    return tables.caption(table, tables.readable(table))


def test_rows_of_our_own_are_marked_and_the_mark_explained(load: Callable[..., Table]) -> None:
    assert [row for row in tables.readable(load("beside"))["Scheme"] if "†" in row] == ["GNR †", "GNR †"]
    assert caption_of(load("beside")).endswith("† not in the paper.")
    assert "†" not in caption_of(load("alone"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "paper: {metric: error_pct, dataset: Cifar10, scheme: 'SAM | SGD'}",
            "2 numbers fit WRN28-10 Cifar10: pick one",
        ),
        ("paper: {shape: round}", "there is no column shape: choose of table, model"),
    ],
)
def test_a_pick_that_is_wrong_is_answered_in_one_sentence(
    load: Callable[..., Table], change: str, message: str
) -> None:
    text = FILES["beside"].replace("SAM: [scheme=sam], ", f"SAM: {{overrides: [scheme=sam], {change}}}, ")
    (sweep.TABLES / "wrong.yaml").write_text(text)
    with pytest.raises(InputError, match=rf"wrong\.yaml, SAM, paper: {message}"):
        results(load_table("wrong"))


def test_a_metric_that_no_run_has_is_answered_with_those_there_are(load: Callable[..., Table]) -> None:
    with pytest.raises(
        InputError, match=r"alone\.yaml, metrics: there is no accuracy: choose of test_error, top5_error"
    ):
        results(replace(load("alone"), metrics=["accuracy"]))


def test_a_file_of_the_paper_that_does_not_exist_is_named(load: Callable[..., Table]) -> None:
    with pytest.raises(InputError, match=r"there is no table02\.csv among the paper's numbers"):
        results(replace(load("beside"), paper="table02"))


# ---------------------------------------------------------------------------------------------------------- formulas


def closed(family: str, **parameters: float) -> float:
    return closed_form(OmegaConf.create({"_target_": f"rst.schedules.{family}", **parameters}))


unit, steps = st.floats(0, 1), st.integers(1, 300)


@given(unit, unit, steps)
def test_closed_forms_of_constant_and_piecewise_are_their_means(a: float, b: float, total_steps: int) -> None:
    whole = round(b * total_steps) / total_steps  # where the step falls between two steps
    assert closed("constant", p=a) == schedules.constant(a).mean()
    assert closed("piecewise", a=a, b=whole) == pytest.approx(schedules.piecewise(a, whole).mean(total_steps), abs=1e-9)
    assert abs(closed("tail", fraction=b) - schedules.tail(b).mean(total_steps)) <= 1 / total_steps + 1e-9


@given(unit, steps)
def test_closed_forms_of_lines_are_off_by_half_a_steps_rise(m: float, total_steps: int) -> None:
    rise = (2 * m if m <= 0.5 else 2 * (1 - m)) / total_steps
    assert closed("linear", m=m) - rise / 2 == pytest.approx(schedules.linear(m).mean(total_steps), abs=1e-9)
    rise = (1 - 2 * m) / total_steps
    assert closed("linear_through", b=m) - rise / 2 == pytest.approx(
        schedules.linear_through(m).mean(total_steps), abs=1e-9
    )


def test_a_table_without_runs_shows_what_follows_from_its_configs(load: Callable[..., Table], tmp_path: Path) -> None:
    table = load("formulas")
    lines = tables.readable(table).set_index("Scheme")
    assert lines["γ_rst / ρ"].to_dict() == {"SGD": "0", "GNR": "0.8", "G-RST": "1", "sine": "0.636614"}
    assert lines["Δη by Table 2"].to_dict() == {"SGD": "0.000000", "GNR": "1.000000", "G-RST": "0.250000", "sine": ""}
    assert lines.loc["G-RST", "Δη by steps"] == "0.249167"  # 300 steps, a rise of half a step too little
    assert lines.loc["G-RST", "Deviation"] == "-8.3e-04"
    assert caption_of(table).startswith("T = 300 steps; scale: `paper`.")
    assert [file.name for file in tables.write(table)] == ["formulas.md", "formulas.csv", "formulas.tex"]


# -------------------------------------------------------------------------------------------------------- the caption


def test_the_caption_says_what_the_numbers_are_of(load: Callable[..., Table]) -> None:
    caption = caption_of(load("beside"))
    for fact in (
        "Network: `wrn10_1`;",
        "data: `digits` (real images, 1,000 for training, 797 for testing (Cifar10), real images, 1,000 for training "
        "with 20% of their labels wrong, 797 for testing (Cifar100));",
        "epochs: 20 (WRN28-10), 1,200 (ViT-B16);",
        "scale: `paper`; seeds: 5.",
        "mean ± standard deviation over seeds of the test error after the last epoch",
        "`results/paper/table03.csv`",
    ):
        assert fact in caption
    assert "no target" not in caption


def test_a_smaller_scale_is_named_and_its_files_stand_apart(load: Callable[..., Table], tmp_path: Path) -> None:
    table = load("cifar", "scale=smoke")
    caption = caption_of(table)
    assert (
        "data: `cifar10` (digits standing in, 128 for training, 100 for testing); epochs: 2; scale: `smoke`" in caption
    )
    assert "Images, networks and epochs are not the paper's, so that its numbers are no target for these." in caption
    assert {file.parent.relative_to(tmp_path).parts[0] for file in tables.write(table)} == {"smoke-digits"}


def test_digits_in_place_of_a_data_set_stand_apart_at_full_size_too(load: Callable[..., Table], tmp_path: Path) -> None:
    table = load("cifar", "dataset.source=digits")
    assert folder_of(table) == tmp_path / "paper-digits"
    assert "no target" in caption_of(table)
    assert folder_of(load("cifar")) == tmp_path


# ---------------------------------------------------------------------------------------------------------- the files


def test_the_csv_is_the_long_form_in_full(load: Callable[..., Table]) -> None:
    table = finish_two(load("beside"))
    file = tables.write(table)[1]
    read = pd.read_csv(file, dtype=str, keep_default_na=False)
    assert list(read) == list(results(table))
    assert read["mean"].astype(float).tolist() == results(table)["mean"].tolist()


def test_the_markdown_has_title_rows_and_caption(load: Callable[..., Table]) -> None:
    table = finish_two(load("beside"))
    title, _, header, _, *rows = tables.write(table)[0].read_text().splitlines()
    assert title == "# A & B_1, 50 % of each"
    assert [cell.strip() for cell in header.strip("|").split("|")] == list(tables.readable(table))
    assert [row.split("|")[1].strip() for row in rows[:10]] == ["WRN28-10", *[""] * 7, "ViT-B16", ""]
    assert [row.split("|")[2].strip() for row in rows[:5]] == ["Cifar10", "", "", "", "Cifar100"]
    assert " ".join(rows[11:]) == caption_of(table)


def test_the_latex_is_well_formed_and_escaped(load: Callable[..., Table]) -> None:
    text = tables.write(finish_two(load("beside")))[2].read_text()
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
    # All but the line that a page break would show.
    rows = [line for line in bare.splitlines() if "&" in line and not line.startswith("%")]
    columns = len(tables.readable(load("beside")).columns)
    assert len(rows) == 2 + 10  # the header also on further pages
    assert {line.count("&") + 1 for line in rows} == {columns}


@pytest.mark.parametrize(
    ("plain", "latex"),
    [
        ("a_b & c % d # e $ f {g}", r"a\_b \& c \% d \# e \$ f \{g\}"),
        ("x^2 ~ \\", r"x\textasciicircum{}2 \textasciitilde{} \textbackslash{}"),
        ("γ_rst ≤ Δη ± ρ π θ †", r"$\gamma$\_rst $\leq$ $\Delta$$\eta$ $\pm$ $\rho$ $\pi$ $\theta$ $\dagger$"),
    ],
)
def test_every_symbol_is_escaped_for_latex(load: Callable[..., Table], plain: str, latex: str) -> None:
    table = replace(load("alone"), title=plain)
    assert rf"\caption{{{latex}}}" in tables.write(table)[2].read_text()


def test_the_same_records_give_the_same_bytes(load: Callable[..., Table]) -> None:
    table = finish_two(load("beside"))
    files = tables.write(table)
    before = [file.read_bytes() for file in files]
    tables.write(table)
    assert [file.read_bytes() for file in files] == before


def test_a_run_is_one_line_of_the_records_whatever_is_written_before_or_after(load: Callable[..., Table]) -> None:
    alone, other = load("alone"), load("other")
    runs = {job.record.id: job for table in (alone, other) for job in table.jobs}
    for i, job in enumerate(runs.values()):
        finish(job, test_error=3.25, train_seconds=i)
    texts = []
    for order in ((alone, other), (other, alone, other)):
        *_, file = [tables.write(table)[3] for table in order]
        texts.append(file.read_text())
        file.unlink()
    assert texts[0] == texts[1]
    lines = pd.read_csv(io.StringIO(texts[0]), index_col="id")
    assert list(lines.index) == sorted(runs)
    assert len(runs) == 7  # SAM's first seed is in both
    vgg = next(run for run in runs if "vgg" in run)
    assert lines.loc[vgg, "network"] == "vgg16_bn"
    assert lines["model.depth"].isna().sum() == 1
    assert "10.0" not in texts[0]
    assert (lines["test_error"] == 3.25).all()
    assert not [key for key in lines if key.startswith(("paths", "wandb", "dataset.root"))]


# ------------------------------------------------------------------------------------------------------- real runs


TINY = ["dataset.train_images=64", "dataset.test_images=50", "recipe.epochs=3", "recipe.batch_size=32"]
TINY += ["recipe.perturbation_batch=32"]


def test_numbers_of_real_runs_are_those_of_their_records(tmp_path: Path) -> None:
    table = load_table("alone", [*TINY, f"paths.runs={tmp_path / 'runs'}"])
    for job in table.jobs[2:]:
        train(job.cfg, show_progress=False)
    lines = results(table).set_index("row")
    assert lines["n"].to_dict() == {"SGD": 0, "SAM": 2, "RST[50%]": 2}
    assert lines.loc["SAM", "extra_propagations_realised"] == 1
    errors = [json.loads((job.record.folder / "summary.json").read_text())["test_error"] for job in table.jobs[4:]]
    assert lines.loc["RST[50%]", "mean"] == statistics.mean(errors)
    records = pd.read_csv(tables.write(table)[3]).set_index("id")
    assert sorted(records.index) == sorted(job.record.id for job in table.jobs[2:])
    assert set(records["recipe.epochs"]) == {3}
    assert sorted(records["schedule.p"].dropna()) == [0.5, 0.5]


def test_the_command_prints_one_table_and_says_what_it_wrote(
    tmp_path: Path, script: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("report", "alone", f"paths.runs={tmp_path / 'runs'}") == 0
    out = capsys.readouterr().out
    assert out.startswith((tmp_path / "tables" / "alone.md").read_text())
    written = out.partition("Written:\n")[2].split()
    assert written == [
        str(tmp_path / name) for name in ("tables/alone.md", "tables/alone.csv", "tables/alone.tex", "records.csv")
    ]


def test_the_command_writes_several_tables_and_a_page_of_them(
    tmp_path: Path, script: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("report", "alone", "times", "--page", f"paths.runs={tmp_path / 'runs'}") == 0
    out, err = capsys.readouterr()
    assert "2/2" in err
    first, *written = out.split()
    assert first == "Written:"
    assert len(written) == len(set(written)) == 3 + 3 + 1 + 1
    assert str(tmp_path / "report.html") in written
    assert all(Path(file).exists() for file in written)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["tabel"], "report.py: there is no table tabel: choose one of alone, beside,"),
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
