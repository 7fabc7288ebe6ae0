"""The tables and figures of the paper: the runs that their files name, and the paper's numbers beside them."""

import json
from collections import Counter
from math import pi
from typing import Any

import pandas as pd
import pytest
from conftest import ROOT

from rst.experiments.compose import compose
from rst.experiments.report.paper import PAPER, paper_numbers
from rst.experiments.report.results import results
from rst.experiments.runs.identity import run_id
from rst.experiments.spec import RunSpec
from rst.experiments.tables.expansion import Table, load_table, runs_of
from rst.experiments.tables.table_file import table_names

NUMBERED = [f"table{i:02}" for i in range(1, 15)] + [f"figure{i:02}" for i in range(1, 10)]

# The steps of a training: epochs times whole batches (Tables 16 to 18, Table 12, and the single GPU of Table 14).
CIFAR, VIT, VIT_300, ONE_GPU, IMAGENET = 200 * 195, 1200 * 195, 300 * 195, 200 * 390, 100 * 2502

# The passes of a step: 1 for SGD, 2 for SAM, 1 + Δη for RST (eq. 3). NINE is those of the nine rows "from 0.1 to 0.9
# with an interval of 0.1" together.
SGD, SAM, HALF = 1, 2, 1.5
NINE = sum(1 + i / 10 for i in range(1, 10))
SINE, ONE_MINUS_SINE = 1 + 2 / pi, 2 - 2 / pi
# The extra passes of a sharp step: LookSAM(5) makes its second pass at every fifth step. ESAM's second pass is one
# forward pass over all images, and a forward and a backward pass over half of them.
LOOKSAM, ESAM = 1 / 5, 1 / 3 + 1 / 2

# Of each table the number of runs, as (seeds x data sets) x networks x rows, and the passes of all of them.
RUNS_AND_PASSES = {
    "table01": (10 * 2 * 2, CIFAR * 10 * 2 * (SGD + SAM)),
    "table02": (0, 0),
    "table03": (
        10 * (4 * 3 + 3 * 3 + 2 * 5),  # four CNNs, three ViTs, and two CNNs with GNR and four kinds of one half
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
    """All tables at the scale of the paper. It takes half a minute, so that few tests ask for it."""
    return {name: load_table(name, ["scale=paper", "paths.data=/nowhere"]) for name in NUMBERED}


def test_every_table_and_figure_of_the_paper_has_a_file() -> None:
    assert set(NUMBERED) == set(table_names()) - {"demo", "choices", "equal_passes", "flatness", "noise", "resnet18"}


def test_tables_have_as_many_runs_as_in_the_paper(tables: dict[str, Table]) -> None:
    assert {name: len(table.runs) for name, table in tables.items()} == {
        name: runs for name, (runs, _) in RUNS_AND_PASSES.items()
    }


def test_tables_have_as_many_passes_as_in_the_paper(tables: dict[str, Table]) -> None:
    for name, (_, expected) in RUNS_AND_PASSES.items():
        passes = sum(run.spec.expected_passes for run in tables[name].runs)
        assert passes == pytest.approx(expected, rel=1e-4), name  # a mean over T steps is off by up to 1/T


def test_the_readme_says_how_many_runs_all_tables_have(tables: dict[str, Table]) -> None:
    assert f"{len(runs_of(tables.values())):,} runs in all" in (ROOT / "README.md").read_text()


def test_only_figures_are_drawn(tables: dict[str, Table]) -> None:
    assert {name for name, table in tables.items() if table.draw == "table"} == set(NUMBERED[:14])


def test_tables_7_to_10_train_with_cutout(tables: dict[str, Table]) -> None:
    cells = [cell for table in tables.values() for cell in table.cells]
    cutout = {cell.table for cell in cells if cell.spec.augmentation.cutout}
    assert cutout == {"table07", "table08", "table09", "table10"}


def test_only_the_vits_of_table_3_train_with_mixup(tables: dict[str, Table]) -> None:
    cells = [cell for table in tables.values() for cell in table.cells]
    assert {(cell.table, cell.group) for cell in cells if cell.spec.augmentation.mixup_alpha} == {("table03", "ViT")}


def test_table_14_decays_weights_as_the_code_that_each_group_ran_on(tables: dict[str, Table]) -> None:
    assert {
        (cell.group, cell.spec.scheme.name, cell.spec.optimizer.weight_decay) for cell in tables["table14"].cells
    } == {
        *(("LookSAM(5)", scheme, 0.0) for scheme in ("sgd", "sam", "grst")),
        *(
            (group, scheme, 5e-4 if scheme == "sgd" else 1e-3)
            for group in ("ESAM", "SSAM")
            for scheme in ("sgd", "sam", "grst")
        ),
    }


def test_every_number_of_the_paper_is_that_of_one_cell(tables: dict[str, Table]) -> None:
    kinds = {"error_pct": "test_error", "top1_error_pct": "test_error", "top5_error_pct": "top5_error"}
    files = [path.stem for path in PAPER.glob("table*.csv")]
    assert len(files) == 12
    for name in files:
        assert tables[name].paper == name
        printed = paper_numbers(name)
        printed = printed[printed["metric"].isin(kinds) & printed["mean"].notna()].replace({"metric": kinds})
        shown = results(tables[name])  # raises where two numbers fit a cell
        shown = shown[shown["paper_mean"].notna()].replace(
            {"dataset": {"CIFAR-10": "Cifar10", "CIFAR-100": "Cifar100"}}
        )
        ours = shown[["network", "dataset", "metric", "paper_mean", "paper_std"]]
        papers = printed[["model", "dataset", "metric", "mean", "std"]]
        assert Counter(ours.itertuples(index=False, name=None)) == Counter(papers.itertuples(index=False, name=None)), (
            name
        )


def test_the_costs_that_pick_numbers_of_the_paper_are_those_of_the_schedules(tables: dict[str, Table]) -> None:
    cells = [cell for table in tables.values() for cell in table.cells if "delta_eta" in cell.paper]
    assert len(cells) > 50
    for cell in cells:
        assert cell.spec.mean_p == pytest.approx(float(cell.paper["delta_eta"]), abs=1e-4), (cell.table, cell.row)


def meaning(spec: RunSpec) -> str:
    """What determines the result of a run, put together in another way than for its id."""
    what = spec.dump()
    keys = ("network", "model", "dataset", "augmentation", "optimizer", "recipe", "autocast")
    kept: dict[str, Any] = {key: what[key] for key in keys}
    stride = spec.total_steps // 50 | 1  # odd, so that it meets both kinds of steps of a periodic schedule
    p = [spec.p(t, spec.total_steps) for t in range(0, spec.total_steps, stride)]
    if any(p):
        kept |= {"p": p, "c": round(spec.gamma_ratio, 9), "variant": what["variant"]}
        kept["normalised"] = spec.scheme.normalise_clean and spec.gamma_ratio != 1
    return json.dumps(kept, sort_keys=True)


def test_no_table_has_a_cell_twice(tables: dict[str, Table]) -> None:
    cells = [cell for table in tables.values() for cell in table.cells]
    assert len({(cell.table, cell.group, cell.network, cell.row, cell.dataset) for cell in cells}) == len(cells)


def test_cells_share_their_runs_if_and_only_if_they_mean_the_same(tables: dict[str, Table]) -> None:
    trained = [cell for table in tables.values() for cell in table.cells if cell.runs]
    meanings = [meaning(cell.spec) for cell in trained]
    ids = [cell.runs[0].record.id for cell in trained]
    assert len(set(zip(meanings, ids, strict=True))) == len(set(meanings)) == len(set(ids))


def test_rows_that_several_tables_have_share_their_runs(tables: dict[str, Table]) -> None:
    cells = {
        (cell.table, cell.group, cell.network, cell.row, cell.dataset): cell
        for table in tables.values()
        for cell in table.cells
    }

    def id_of(table: str, group: str, row: str, network: str = "WRN28-10", dataset: str = "Cifar100") -> str:
        return cells[table, group, network, row, dataset].runs[0].record.id

    tables_with_sgd = ["table01", "table03", "table13", "figure02", "figure04", "figure06"]
    assert len({id_of(table, "", "SGD", "ResNet18", "Cifar10") for table in tables_with_sgd}) == 1
    assert id_of("table14", "LookSAM(5)", "SGD") == id_of("table01", "", "SGD") != id_of("table14", "ESAM", "SGD")
    assert id_of("table14", "ESAM", "SGD") == id_of("table14", "SSAM", "SGD")
    tail = id_of("table03", "not in the paper", "RST[tail 50%]")
    assert tail == id_of("figure04", "piecewise 1", "RST[a = 0, b = 0.5]")
    assert id_of("figure09", "grid", "G-RST[p = 0.5, γ_rst = 1]") == id_of("table03", "", "G-RST[50%]")
    assert id_of("figure09", "grid", "G-RST[p = 0.5, γ_rst = 0.5]") == id_of("figure02", "constant", "RST[p = 0.5]")


def test_the_tail_schedules_of_table_8_are_group_1_of_the_piecewise_schedules() -> None:
    common = ["model=wrn28_10", "augmentation=cutout", "scheme=rst"]
    for i in range(1, 10):
        tail = compose([*common, "schedule=tail", f"schedule.fraction={i / 10}"])
        piecewise = compose([*common, "schedule=piecewise", "schedule.a=0", f"schedule.b={(10 - i) / 10}"])
        assert run_id(tail) == run_id(piecewise)


def test_the_committed_records_are_those_of_the_demo() -> None:
    kept = pd.read_csv(PAPER.parent / "records.csv")["id"]
    assert {run.record.id for run in load_table("demo").runs} <= set(kept)
