"""The files of configs/tables: the runs they name, the paper's numbers they pick, and what is refused in them."""

import json
from collections import Counter
from collections.abc import Callable
from math import pi
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import ROOT
from omegaconf import DictConfig, OmegaConf

from rst.experiments import sweep
from rst.experiments.config import InputError, gamma_ratio, load_config, schedule_of, total_steps, variant
from rst.experiments.identity import run_id
from rst.experiments.sweep import Cell, Table, jobs_of, load_table, load_tables, table_names
from rst.report.results import PAPER, paper_numbers, results

# ---------------------------------------------------------------------------------------------- the tables of the paper

NUMBERED = [f"table{i:02}" for i in range(1, 15)] + [f"figure{i:02}" for i in range(1, 10)]

# Steps of one training: epochs times whole batches (Tables 16-18, Table 12, and one GPU for two thirds of Table 14).
CIFAR, VIT, VIT_300, ONE_GPU, IMAGENET = 200 * 195, 1200 * 195, 300 * 195, 200 * 390, 100 * 2502

# Passes of a step: SGD 1, SAM 2, RST 1 + Δη (eq. 3). "From 0.1 to 0.9 with an interval of 0.1" costs, over nine rows:
SGD, SAM, HALF = 1, 2, 1.5
NINE = sum(1 + i / 10 for i in range(1, 10))
SINE, ONE_MINUS_SINE = 1 + 2 / pi, 2 - 2 / pi
# Of two passes, LookSAM(5) saves four in five; ESAM's second is one forward of all images, and both of half of them.
LOOKSAM, ESAM = 1 / 5, 1 / 3 + 1 / 2

# Runs, as (seeds x data sets) x networks x rows, and all their passes.
RUNS_AND_PASSES = {
    "table01": (10 * 2 * 2, CIFAR * 10 * 2 * (SGD + SAM)),
    "table02": (0, 0),
    "table03": (
        10 * (4 * 3 + 3 * 3 + 2 * 5),  # four CNNs, three ViTs; two CNNs with GNR and four kinds of one half
        CIFAR * 10 * 4 * (SGD + SAM + HALF) + VIT * 10 * 3 * (SGD + SAM + HALF) + CIFAR * 10 * 2 * (SAM + 4 * HALF),
    ),
    "table04": (3 * 2 * 3, IMAGENET * 3 * 2 * (SGD + SAM + HALF)),
    "table05": (0, 0),
    "table06": (10 * (2 + 4 + 2), CIFAR * 10 * (SGD + SAM + 2 * HALF + SINE + ONE_MINUS_SINE + 2 * SINE)),
    "table07": (10 * 11, CIFAR * 10 * (SGD + SAM + NINE)),
    "table08": (10 * 11, CIFAR * 10 * (SGD + SAM + NINE)),
    "table09": (10 * 11, CIFAR * 10 * (SGD + SAM + NINE)),
    "table10": (10 * (2 + 2 + 1), CIFAR * 10 * (SGD + SAM + HALF + 2 * SINE)),
    "table11": (10 * 11, CIFAR * 10 * (SGD + SAM + NINE)),
    "table12": (10 * 11, VIT_300 * 10 * (SGD + SAM + NINE)),
    "table13": (10 * 3 * (1 + 6), CIFAR * 10 * 3 * (SGD + 2 * (SAM + 2 * HALF))),
    "table14": (
        10 * 3 * (4 + 4 + 3),  # ESAM and SSAM share their SGD
        CIFAR * 10 * 3 * (SGD + (1 + LOOKSAM) + (1 + LOOKSAM / 2) + (1 + LOOKSAM * 3 / 4))
        + ONE_GPU * 10 * 3 * (SGD + (1 + ESAM) + (1 + ESAM / 2) + (1 + ESAM * 3 / 4) + SAM + HALF + 1.75),
    ),
    "figure01": (10 * 2 * 11, CIFAR * 10 * 2 * (SGD + SAM + NINE)),
    "figure02": (10 * 2 * 11, CIFAR * 10 * 2 * (SGD + SAM + NINE)),
    "figure03": (0, 0),
    "figure04": (10 * 2 * (2 + 3 * 9), CIFAR * 10 * 2 * (SGD + SAM + NINE + NINE + 9 * HALF)),
    "figure05": (0, 0),
    "figure06": (10 * 2 * (2 + 2 * 9), CIFAR * 10 * 2 * (SGD + SAM + NINE + 9 * HALF)),
    "figure07": (  # the constant 0.5 is also a point of piecewise 3 and of linear 2
        10 * (2 + 9 + 27 + 18 + 6 - 2),
        CIFAR * 10 * (SGD + SAM + 4 * NINE + (18 - 2) * HALF + 2 * HALF + 3 * SINE + ONE_MINUS_SINE),
    ),
    "figure08": (0, 0),
    "figure09": (5 * (2 + 5 * 5), CIFAR * 5 * (SGD + SAM + 5 * (1.1 + 1.3 + 1.5 + 1.7 + 1.9))),
}


@pytest.fixture(scope="module")
def tables() -> dict[str, Table]:
    """All tables at the scale of the paper: a minute's work, so few tests ask for it."""
    return {name: load_table(name) for name in NUMBERED}


def passes(table: Table) -> float:
    """Expected, of each run once."""

    def of_a_run(cfg: DictConfig) -> float:
        steps = total_steps(cfg)
        return steps * (1 + schedule_of(cfg).mean(steps) * variant(cfg).extra_passes)

    runs: dict[str, float] = {}
    for cell in table.cells:
        runs |= dict.fromkeys((job.record.id for job in cell.jobs), of_a_run(cell.cfg))
    return sum(runs.values())


def test_every_table_and_figure_of_the_paper_has_a_file() -> None:
    assert set(NUMBERED) == set(table_names()) - {"demo"}


def test_tables_are_the_runs_of_the_paper(tables: dict[str, Table]) -> None:
    assert {name: len(table.jobs) for name, table in tables.items()} == {
        name: runs for name, (runs, _) in RUNS_AND_PASSES.items()
    }
    for name, (_, expected) in RUNS_AND_PASSES.items():
        assert passes(tables[name]) == pytest.approx(expected, rel=1e-4), name  # a mean over T steps is off by 1/T


def test_the_readme_says_how_many_runs_all_tables_are(tables: dict[str, Table]) -> None:
    assert f"{len(jobs_of(tables.values())):,} runs in all" in (ROOT / "README.md").read_text()


def test_tables_are_tables_and_figures_are_drawn_too(tables: dict[str, Table]) -> None:
    assert {name for name, table in tables.items() if table.draw == "table"} == set(NUMBERED[:14])


def test_tables_train_as_the_paper_says(tables: dict[str, Table]) -> None:
    everything = [(cell, cell.cfg) for table in tables.values() for cell in table.cells]
    cutout = {cell.table for cell, cfg in everything if cfg.augmentation.cutout}
    assert cutout == {"table07", "table08", "table09", "table10"}
    mixup = {(cell.table, cell.group) for cell, cfg in everything if cfg.augmentation.mixup_alpha}
    assert mixup == {("table03", "ViT")}
    decay = {
        (cell.group, cfg.scheme.name, cfg.optimizer.weight_decay) for cell, cfg in everything if "SAM" in cell.group
    }
    assert decay == {
        *(("LookSAM(5)", scheme, 0.0) for scheme in ("sgd", "sam", "grst")),
        *(
            (group, scheme, 5e-4 if scheme == "sgd" else 1e-3)
            for group in ("ESAM", "SSAM")
            for scheme in ("sgd", "sam", "grst")
        ),
    }


def test_every_number_of_the_paper_stands_in_one_cell(tables: dict[str, Table]) -> None:
    kinds = {"error_pct": "test_error", "top1_error_pct": "test_error", "top5_error_pct": "top5_error"}
    files = [path.stem for path in PAPER.glob("table*.csv")]
    assert len(files) == 12
    for name in files:
        assert tables[name].paper == name
        printed = paper_numbers(name)
        printed = printed[printed["metric"].isin(kinds) & printed["mean"].notna()].replace({"metric": kinds})
        shown = results(tables[name])  # raises where a cell picks two
        shown = shown[shown["paper_mean"].notna()]
        assert Counter(
            shown[["block", "column", "metric", "paper_mean", "paper_std"]].itertuples(index=False, name=None)
        ) == Counter(printed[["model", "dataset", "metric", "mean", "std"]].itertuples(index=False, name=None)), name
        for cell in tables[name].cells:
            if "delta_eta" in cell.paper:
                cost = schedule_of(cell.cfg).mean(total_steps(cell.cfg))
                assert cost == pytest.approx(float(cell.paper["delta_eta"]), abs=1e-4), (name, cell.row)


def meaning(cfg: DictConfig) -> str:
    """What determines a run's result, put together in another way than ids are."""
    what: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    kept = {
        key: what[key] for key in ("network", "model", "dataset", "augmentation", "optimizer", "recipe", "autocast")
    }
    schedule, steps = schedule_of(cfg), total_steps(cfg)
    p = [
        schedule(t, steps) for t in range(0, steps, steps // 50 | 1)
    ]  # an odd stride sees both kinds of a periodic step
    if any(p):
        kept |= {"p": p, "c": round(gamma_ratio(cfg), 9), "variant": what["variant"]}
        kept["normalised"] = cfg.scheme.normalise_clean and gamma_ratio(cfg) != 1
    return json.dumps(kept, sort_keys=True)


def test_cells_share_a_run_where_they_mean_the_same_and_nowhere_else(tables: dict[str, Table]) -> None:
    cells = {
        (cell.table, cell.group, cell.block, cell.row, cell.column): cell
        for table in tables.values()
        for cell in table.cells
    }
    assert len(cells) == sum(len(table.cells) for table in tables.values())  # no cell stands twice
    trained = [cell for cell in cells.values() if cell.jobs]
    meanings = [meaning(cell.cfg) for cell in trained]
    ids = [cell.jobs[0].record.id for cell in trained]
    assert len(set(zip(meanings, ids, strict=True))) == len(set(meanings)) == len(set(ids))

    def id_of(table: str, group: str, row: str, block: str = "WRN28-10", column: str = "Cifar100") -> str:
        return cells[table, group, block, row, column].jobs[0].record.id

    tables_with_sgd = ["table01", "table03", "table13", "figure02", "figure04", "figure06"]
    assert len({id_of(table, "", "SGD", "ResNet18", "Cifar10") for table in tables_with_sgd}) == 1
    assert id_of("table14", "LookSAM(5)", "SGD") == id_of("table01", "", "SGD") != id_of("table14", "ESAM", "SGD")
    assert id_of("table14", "ESAM", "SGD") == id_of("table14", "SSAM", "SGD")
    assert id_of("table03", "ours", "RST[tail 50%]") == id_of("figure04", "piecewise 1", "RST[a = 0, b = 0.5]")
    assert id_of("figure09", "grid", "G-RST[p = 0.5, γ_rst = 1]") == id_of("table03", "", "G-RST[50%]")
    assert id_of("figure09", "grid", "G-RST[p = 0.5, γ_rst = 0.5]") == id_of("figure02", "constant", "RST[p = 0.5]")


def test_table_8_is_piecewise_group_1() -> None:
    common = ["model=wrn28_10", "augmentation=cutout", "scheme=rst"]
    for i in range(1, 10):
        tail = load_config([*common, "schedule=tail", f"schedule.fraction={i / 10}"])
        piecewise = load_config([*common, "schedule=piecewise", "schedule.a=0", f"schedule.b={(10 - i) / 10}"])
        assert run_id(tail) == run_id(piecewise)


def test_ids_of_the_demo_are_those_of_the_records_that_are_kept() -> None:
    kept = pd.read_csv(PAPER.parent / "records.csv")["id"]
    assert {job.record.id for job in load_table("demo").jobs} <= set(kept)


# ------------------------------------------------------------------------------------------------------ what files mean


Write = Callable[[str, str], None]
DIGITS = "overrides: [dataset=digits, model=wrn10_1]\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Put a file into a folder of tables that has no others."""
    monkeypatch.setattr(sweep, "TABLES", tmp_path)
    return lambda name, text: (tmp_path / f"{name}.yaml").write_text(text) and None


def labels(cells: list[Cell]) -> list[tuple[str, ...]]:
    return [(cell.group, cell.block, cell.row, cell.column) for cell in cells]


def test_a_table_is_its_rows_in_every_block_and_column(write: Write) -> None:
    write(
        "grid",
        "title: All\nseeds: 2\n"
        "columns: {few: [dataset.train_images=100], many: [dataset.train_images=200]}\n"
        "blocks: {narrow: [model=wrn10_1], wide: [model=wrn10_2]}\n" + DIGITS.replace(", model=wrn10_1", "") + "rows:\n"
        "  SGD: [scheme=sgd]\n  SAM: [scheme=sam]\n",
    )
    table = load_table("grid")
    assert labels(table.cells) == [
        ("", block, row, column) for block in ("narrow", "wide") for row in ("SGD", "SAM") for column in ("few", "many")
    ]
    wide = table.cells[-1]
    assert (wide.cfg.network, wide.cfg.scheme.name, wide.cfg.dataset.train_images) == ("wrn10_2", "sam", 200)
    assert [job.cfg.seed for job in wide.jobs] == [0, 1]
    assert len(table.jobs) == 16


def test_a_grid_is_the_product_of_its_values(write: Write) -> None:
    write(
        "grid",
        "title: Grid\n" + DIGITS + "rows:\n  R[<a>, <b>]:\n"
        "    overrides: [scheme=rst, schedule=piecewise, 'schedule.a=<a>', 'schedule.b=<b>']\n"
        "    grid: {a: [0, 1], b: [0.25, 0.5, 0.75]}\n    paper: {scheme: RST, note: a <a>}\n",
    )
    cells = load_table("grid").cells
    assert [(cell.row, cell.cfg.schedule.a, cell.cfg.schedule.b, cell.paper) for cell in cells] == [
        (f"R[{a}, {b}]", a, b, {"scheme": "RST", "note": f"a {a}"}) for a in (0, 1) for b in (0.25, 0.5, 0.75)
    ]


def test_a_group_may_have_blocks_and_overrides_of_its_own(write: Write) -> None:
    write(
        "groups",
        "title: Groups\n" + DIGITS + "blocks: {A: [], B: []}\nrows: {SGD: [scheme=sgd]}\ngroups:\n  all:\n"
        "    overrides: [schedule.p=0.25]\n    rows: {RST: [scheme=rst]}\n  some:\n    blocks: {B: []}\n"
        "    rows:\n      SAM: {overrides: [scheme=sam], ours: true}\n",
    )
    cells = load_table("groups").cells
    assert [(cell.group, cell.block, cell.row, cell.ours) for cell in cells] == [
        *(("", block, "SGD", False) for block in "AB"),
        *(("all", block, "RST", False) for block in "AB"),
        ("some", "B", "SAM", True),
    ]
    assert cells[2].cfg.schedule.p == 0.25


def test_a_table_like_others_has_their_rows_and_its_own_layout(write: Write) -> None:
    write(
        "first",
        "title: First\nseeds: 1\n" + DIGITS + "rows: {SGD: [scheme=sgd]}\ngroups: {A: {rows: {SAM: [scheme=sam]}}}\n",
    )
    write("second", "title: Second\nlike: [first]\ngroups: {B: {rows: {RST: [scheme=rst]}}}\n")
    write(
        "both",
        "title: Both\nlike: [first, second]\ncolumns: {C: [dataset.train_images=100]}\nrows: {GNR: [scheme=gnr]}\n",
    )
    table = load_table("both")
    assert table.title == "Both"
    assert labels(table.cells) == [
        ("", "", "SGD", "C"),
        ("", "", "GNR", "C"),
        ("A", "", "SAM", "C"),
        ("B", "", "RST", "C"),
    ]
    assert {cell.cfg.dataset.train_images for cell in table.cells} == {100}
    assert len(table.jobs) == 4


def test_a_row_wins_over_the_file_and_the_command_line_over_both(write: Write) -> None:
    write(
        "order",
        "title: Order\noverrides: [dataset=digits, model=wrn10_1, recipe.epochs=1, recipe.batch_size=10]\n"
        "rows: {RST: [scheme=rst, recipe.epochs=2, recipe.batch_size=20]}\n",
    )
    (cell,) = load_table("order", ["recipe.batch_size=30", "recipe.perturbation_batch=null"]).cells
    assert (cell.cfg.recipe.epochs, cell.cfg.recipe.batch_size) == (2, 30)


@pytest.mark.parametrize(
    ("override", "seeds"), [("max_seeds=null", 5), ("max_seeds=2", 2), ("max_seeds=9", 5), ("scale=smoke", 1)]
)
def test_a_scale_may_have_fewer_seeds_but_not_more(write: Write, override: str, seeds: int) -> None:
    write("seeds", "title: Seeds\n" + DIGITS + "rows: {SGD: [scheme=sgd]}\n")
    assert [job.cfg.seed for job in load_table("seeds", [override]).jobs] == list(range(seeds))


def test_a_run_bears_the_names_of_its_table_and_row(write: Write) -> None:
    write("named", "title: Named\nseeds: 1\n" + DIGITS + "blocks: {Net: []}\nrows: {'G-RST[50%]': [scheme=grst]}\n")
    (job,) = load_table("named").jobs
    assert (job.cfg.wandb.group, job.cfg.wandb.job_type) == ("named", "Net G-RST[50%]")


def test_tables_and_figures_are_all_files_of_that_name_each_once(write: Write) -> None:
    for name in ("table02", "table01", "figure01", "demo"):
        write(name, "title: x\nseeds: 1\n" + DIGITS + "rows: {SGD: [scheme=sgd]}\n")
    assert [table.name for table in load_tables(["figure01", "tables", "table01"])] == [
        "figure01",
        "table01",
        "table02",
    ]


def test_of_all_tables_those_whose_data_the_scale_lacks_are_left_out_aloud(write: Write) -> None:
    write("table01", "title: x\nrows: {SGD: [dataset=cifar10, scheme=sgd]}\n")
    write("table02", "title: x\nrows: {SGD: [dataset=imagenet, model=resnet50, scheme=sgd]}\n")
    told: list[str] = []
    assert [table.name for table in load_tables(["tables"], ["scale=cpu"], told.append)] == ["table01"]
    assert told[0].startswith("table02 is left out: scale=cpu has no imagenet")
    with pytest.raises(InputError, match="scale=cpu has no imagenet"):
        list(load_tables(["table02"], ["scale=cpu"]))


# ----------------------------------------------------------------------------------------------------- what is refused


def test_an_unknown_table_is_answered_with_those_that_exist() -> None:
    with pytest.raises(InputError, match=r"no table tabel: choose one of .*demo.*table14"):
        load_table("tabel")


ROW = "title: x\n" + DIGITS + "rows:\n  SGD: [scheme=sgd]\n"  # five lines with the next

WRONG = {
    "an unknown key": ("titel: x\n", "bad.yaml, line 1, titel: "),
    "an unknown key of a row": ("title: x\nrows:\n  SGD:\n    override: []\n", "bad.yaml, line 4, rows.SGD.override: "),
    "an unknown key of a group": ("title: x\ngroups:\n  A:\n    row: {}\n", "bad.yaml, line 4, groups.A.row: "),
    "a text for a number": (ROW + "seeds: five\n", "bad.yaml, line 5, seeds: "),
    "a text for a list": (ROW + "blocks:\n  A: model=resnet18\n", "bad.yaml, line 6, blocks.A: "),
    "a list for groups": (ROW + "groups: [A]\n", "bad.yaml, line 1"),
    "no title": ("rows:\n  SGD: [scheme=sgd]\n", "bad.yaml, line 1, title: "),
    "no rows": ("title: x\n", "bad.yaml, line 1"),
    "no keys at all": ("", "bad.yaml, line 1: "),
    "a bracket that stays open": ("title: x\nrows:\n  SGD: [scheme=sgd\n  SAM: [scheme=sam]\n", "bad.yaml, line 4: "),
    "a row twice": (ROW + "  SGD: [scheme=sam]\n", "bad.yaml, line 5: SGD stands here twice"),
    "an unknown choice": (ROW + "  SAM: [scheme=sma]\n", "bad.yaml, line 5, rows.SAM: scheme=sma does not exist"),
    "a value out of range": (
        ROW + "groups:\n  A:\n    rows:\n      R: [scheme=rst, schedule.p=2]\n",
        "bad.yaml, line 8, groups.A.rows.R: schedule: p must be a number in",
    ),
    "a placeholder without values": (
        ROW + "  R[<q>]:\n    overrides: [scheme=rst, 'schedule.p=<p>']\n    grid: {p: [0.5]}\n",
        "bad.yaml, line 5, rows.R[<q>]: <q> ",
    ),
    "a row of another file": ("title: x\nlike: [other]\n", "other.yaml, line 3, rows.SAM: scheme=sma does not exist"),
    "another file that is missing": ("title: x\nlike: [othr]\n", "bad.yaml, line 2, like: there is no table othr"),
    "a circle of files": ("title: x\nlike: [circle]\n", "circle.yaml, line 2, like: "),
}


@pytest.mark.parametrize("about", WRONG)
def test_a_wrong_file_is_refused_with_file_line_and_key(write: Write, about: str) -> None:
    text, message = WRONG[about]
    write("bad", text)
    write("other", "title: Other\nrows:\n  SAM: [scheme=sma]\n")
    write("circle", "title: Circle\nlike: [bad]\n")
    with pytest.raises(InputError) as refused:
        load_table("bad")
    assert str(refused.value).startswith(message)


def test_a_wrong_command_line_is_not_blamed_on_the_file(write: Write) -> None:
    write("right", "title: Right\n" + DIGITS + "rows: {SGD: [scheme=sgd]}\n")
    with pytest.raises(InputError) as refused:
        load_table("right", ["recipe.epochs=0"])
    assert str(refused.value) == "recipe.epochs=0: write an integer from 1."
