"""What table files mean, and how wrong ones are refused."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rst.experiments.errors import InputError
from rst.experiments.tables import table_file
from rst.experiments.tables.expansion import Cell, load_table, load_tables

Write = Callable[[str, "str | bytes"], None]
DIGITS = "overrides: [dataset=digits, model=wrn10_1]\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Put a file into a folder of table files that has no others."""
    monkeypatch.setattr(table_file, "TABLES", tmp_path)

    def write(name: str, content: str | bytes) -> None:
        (tmp_path / f"{name}.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def labels(cells: list[Cell]) -> list[tuple[str, ...]]:
    return [(cell.group, cell.network, cell.row, cell.dataset) for cell in cells]


# ----------------------------------------------------------------------------------------------------- what files mean


def test_a_table_has_every_row_with_every_network_on_every_data_set(write: Write) -> None:
    write(
        "all",
        "title: All\nseeds: 2\n"
        "datasets: {few: [dataset.train_images=100], many: [dataset.train_images=200]}\n"
        "networks: {narrow: [model=wrn10_1], wide: [model=wrn10_2]}\n"
        "overrides: [dataset=digits, recipe.batch_size=100, recipe.perturbation_batch=100]\n"
        "rows:\n  SGD: [scheme=sgd]\n  SAM: [scheme=sam]\n",
    )
    table = load_table("all")
    assert labels(table.cells) == [
        ("", network, row, dataset)
        for network in ("narrow", "wide")
        for row in ("SGD", "SAM")
        for dataset in ("few", "many")
    ]
    wide = table.cells[-1]
    assert (wide.spec.network, wide.spec.scheme.name, wide.spec.dataset.train_images) == ("wrn10_2", "sam", 200)
    assert [run.spec.seed for run in wide.runs] == [0, 1]
    assert len(table.runs) == 16


def test_a_grid_stands_for_one_row_for_each_combination_of_its_values(write: Write) -> None:
    write(
        "grid",
        "title: Grid\n" + DIGITS + "rows:\n  R[<a>, <b>]:\n"
        "    overrides: [scheme=rst, schedule=piecewise, 'schedule.a=<a>', 'schedule.b=<b>']\n"
        "    grid: {a: [0, 1], b: [0.25, 0.5, 0.75]}\n    paper: {scheme: RST, note: a <a>}\n",
    )
    cells = load_table("grid").cells
    assert [(cell.row, cell.spec.schedule.options, cell.paper) for cell in cells] == [
        (f"R[{a}, {b}]", {"a": a, "b": b}, {"scheme": "RST", "note": f"a {a}"})
        for a in (0, 1)
        for b in (0.25, 0.5, 0.75)
    ]


def test_a_group_may_have_networks_and_overrides_of_its_own(write: Write) -> None:
    write(
        "groups",
        "title: Groups\n" + DIGITS + "networks: {A: [], B: []}\nrows: {SGD: [scheme=sgd]}\ngroups:\n  all:\n"
        "    overrides: [schedule.p=0.25]\n    rows: {RST: [scheme=rst]}\n  some:\n    networks: {B: []}\n"
        "    rows:\n      SAM: {overrides: [scheme=sam], not_in_paper: true}\n",
    )
    cells = load_table("groups").cells
    assert [(cell.group, cell.network, cell.row, cell.not_in_paper) for cell in cells] == [
        *(("", network, "SGD", False) for network in "AB"),
        *(("all", network, "RST", False) for network in "AB"),
        ("some", "B", "SAM", True),
    ]
    assert cells[2].spec.schedule.options == {"p": 0.25}


def test_a_table_that_extends_others_has_their_rows_and_its_own_layout(write: Write) -> None:
    write(
        "first",
        "title: First\nseeds: 1\n" + DIGITS + "rows: {SGD: [scheme=sgd]}\ngroups: {A: {rows: {SAM: [scheme=sam]}}}\n",
    )
    write("second", "title: Second\nextends: [first]\ngroups: {B: {rows: {RST: [scheme=rst]}}}\n")
    write(
        "both",
        "title: Both\nextends: [first, second]\ndatasets: {C: [dataset.validation=100]}\nrows: {GNR: [scheme=gnr]}\n",
    )
    table = load_table("both")
    assert table.title == "Both"
    assert labels(table.cells) == [
        ("", "", "SGD", "C"),
        ("", "", "GNR", "C"),
        ("A", "", "SAM", "C"),
        ("B", "", "RST", "C"),
    ]
    assert {cell.spec.dataset.validation for cell in table.cells} == {100}
    assert len(table.runs) == 4


def test_a_table_may_take_back_the_networks_of_the_file_that_it_extends(write: Write) -> None:
    write("first", "title: First\nseeds: 1\nnetworks: {A: [], B: []}\n" + DIGITS + "rows: {SGD: [scheme=sgd]}\n")
    write("second", "title: Second\nextends: [first]\nnetworks: {}\n")
    assert labels(load_table("second").cells) == [("", "", "SGD", "")]


def test_yaml_anchors_and_merge_keys_work(write: Write) -> None:
    write(
        "merged",
        "title: Merged\n" + DIGITS + "rows:\n  SGD: {overrides: [scheme=sgd], paper: &note {note: a, scheme: b}}\n"
        "  SAM: {overrides: [scheme=sam], paper: *note}\n"
        "  GNR: {overrides: [scheme=gnr], paper: {<<: *note, scheme: c}}\n",
    )
    assert [cell.paper for cell in load_table("merged").cells] == [
        {"scheme": "b", "note": "a"},
        {"scheme": "b", "note": "a"},
        {"scheme": "c", "note": "a"},
    ]


def test_a_row_wins_over_its_file_and_the_command_line_over_both(write: Write) -> None:
    write(
        "order",
        "title: Order\noverrides: [dataset=digits, model=wrn10_1, recipe.epochs=1, recipe.batch_size=10]\n"
        "rows: {RST: [scheme=rst, recipe.epochs=2, recipe.batch_size=20]}\n",
    )
    (cell,) = load_table("order", ["recipe.batch_size=30", "recipe.perturbation_batch=null"]).cells
    assert (cell.spec.recipe.epochs, cell.spec.recipe.batch_size) == (2, 30)


@pytest.mark.parametrize(
    ("override", "seeds"), [("max_seeds=null", 5), ("max_seeds=2", 2), ("max_seeds=9", 5), ("scale=smoke", 1)]
)
def test_a_scale_may_have_fewer_seeds_but_not_more(write: Write, override: str, seeds: int) -> None:
    write("seeds", "title: Seeds\n" + DIGITS + "rows: {SGD: [scheme=sgd]}\n")
    assert [run.spec.seed for run in load_table("seeds", [override]).runs] == list(range(seeds))


def test_a_run_carries_the_names_of_its_table_and_row_to_wandb(write: Write) -> None:
    write("named", "title: Named\nseeds: 1\n" + DIGITS + "networks: {Net: []}\nrows: {'G-RST[50%]': [scheme=grst]}\n")
    (run,) = load_table("named").runs
    assert (run.spec.wandb.group, run.spec.wandb.job_type) == ("named", "Net G-RST[50%]")


def test_tables_and_figures_stand_for_all_files_of_that_name_each_once(write: Write) -> None:
    for name in ("table02", "table01", "figure01", "demo"):
        write(name, "title: x\nseeds: 1\n" + DIGITS + "rows: {SGD: [scheme=sgd]}\n")
    assert [table.name for table in load_tables(["figure01", "tables", "table01"])] == [
        "figure01",
        "table01",
        "table02",
    ]


def test_tables_whose_data_set_the_scale_lacks_are_left_out_with_a_sentence(write: Write) -> None:
    write("table01", "title: x\nrows: {SGD: [dataset=cifar10, scheme=sgd]}\n")
    write("table02", "title: x\nrows: {SGD: [dataset=imagenet, model=resnet50, scheme=sgd]}\n")
    told: list[str] = []
    assert [table.name for table in load_tables(["tables"], ["scale=cpu"], told.append)] == ["table01"]
    assert told[0].startswith("table02 is left out: ")
    assert "scale=cpu has no imagenet" in told[0]


def test_a_table_whose_data_set_the_scale_lacks_is_refused_if_it_is_named(write: Write) -> None:
    write("table02", "title: x\nrows: {SGD: [dataset=imagenet, model=resnet50, scheme=sgd]}\n")
    with pytest.raises(InputError, match="scale=cpu has no imagenet"):
        list(load_tables(["table02"], ["scale=cpu"]))


# ----------------------------------------------------------------------------------------------------- what is refused


def test_an_unknown_table_is_answered_with_the_names_of_all_tables() -> None:
    with pytest.raises(InputError, match=r"no table tabel: choose one of .*demo.*table14"):
        load_table("tabel")


ROW = "title: x\n" + DIGITS + "rows:\n  SGD: [scheme=sgd]\n"  # further lines start at 5

WRONG = {
    "an unknown key": ("titel: x\n", "bad.yaml, line 1, titel: there is no such key: write title."),
    "an unknown key of a row": (
        "title: x\nrows:\n  SGD:\n    override: []\n",
        "bad.yaml, line 4, rows.SGD.override: there is no such key: write overrides.",
    ),
    "an unknown key of a group": ("title: x\ngroups:\n  A:\n    row: {}\n", "bad.yaml, line 4, groups.A.row: "),
    "a key that is a number": (ROW + "  7: [scheme=sam]\n", "bad.yaml, line 3, rows: the key 7 is not a text"),
    "a text for a number": (ROW + "seeds: five\n", "bad.yaml, line 5, seeds: write an integer from 0 to 1000."),
    "a negative number of seeds": (ROW + "seeds: -1\n", "bad.yaml, line 5, seeds: write an integer from 0 to 1000."),
    "seeds without end": (ROW + "seeds: 99999999999\n", "bad.yaml, line 5, seeds: write an integer from 0 to 1000."),
    "a text for true or false": (
        ROW + "  SAM: {not_in_paper: perhaps}\n",
        "bad.yaml, line 5, rows.SAM.not_in_paper: write true or false.",
    ),
    "a text for a list": (
        ROW + "networks:\n  A: model=resnet18\n",
        "bad.yaml, line 6, networks.A: write a list of texts, [...].",
    ),
    "a list for groups": (ROW + "groups: [A]\n", "bad.yaml, line 5, groups: write keys with their values, {...}."),
    "a value in a long list": (
        ROW + "metrics:\n- test_error\n- 1\n",
        "bad.yaml, line 5, metrics: write a list of texts, [...].",
    ),
    "a grid without values": (ROW + "  SAM: {grid: {p: []}}\n", "bad.yaml, line 5, rows.SAM.grid.p: write a list of "),
    "no title": ("rows:\n  SGD: [scheme=sgd]\n", "bad.yaml, line 1, title: the key is missing"),
    "no rows": ("title: x\n", "bad.yaml, line 1: the table has no rows"),
    "no keys at all": ("", "bad.yaml, line 1: "),
    "a bracket that stays open": ("title: x\nrows:\n  SGD: [scheme=sgd\n  SAM: [scheme=sam]\n", "bad.yaml, line 4: "),
    "a row twice": (
        ROW + "  SGD: [scheme=sam]\n",
        'bad.yaml, line 5: found duplicate key "SGD": remove one of the two.',
    ),
    "an unknown choice": (ROW + "  SAM: [scheme=sma]\n", "bad.yaml, line 5, rows.SAM: scheme=sma does not exist"),
    "a value out of range": (
        ROW + "groups:\n  A:\n    rows:\n      R: [scheme=rst, schedule.p=2]\n",
        "bad.yaml, line 8, groups.A.rows.R: schedule: p must be a number in",
    ),
    "a placeholder without values": (
        ROW + "  R[<q>]:\n    overrides: [scheme=rst, 'schedule.p=<p>']\n    grid: {p: [0.5]}\n",
        "bad.yaml, line 5, rows.R[<q>]: <q> has no values: give them in grid.",
    ),
    "a row of another file": (
        "title: x\nextends: [other]\n",
        "other.yaml, line 3, rows.SAM: scheme=sma does not exist",
    ),
    "another file that is missing": (
        "title: x\nextends: [othr]\n",
        "bad.yaml, line 2, extends: there is no table othr",
    ),
    "a circle of files": (
        "title: x\nextends: [circle]\n",
        "circle.yaml, line 2, extends: bad extends circle extends bad, a circle",
    ),
}


@pytest.mark.parametrize("about", WRONG)
def test_a_wrong_file_is_refused_with_file_line_and_key(write: Write, about: str) -> None:
    text, message = WRONG[about]
    write("bad", text)
    write("other", "title: Other\nrows:\n  SAM: [scheme=sma]\n")
    write("circle", "title: Circle\nextends: [bad]\n")
    with pytest.raises(InputError) as refused:
        load_table("bad")
    assert str(refused.value).startswith(message)


DAMAGED = {
    "bytes that are not UTF-8": b"title: \xff\xfe",
    "a control character": b"title: \x00",
    "brackets without end": "[" * 3000,
    "keys in keys without end": "title: x\nrows: " + "{a: " * 2000,
    "a number of 5,000 digits": "seeds: " + "9" * 5000,
    "a date that does not exist": "title: 2001-13-45\n",
    "an alias of itself in a list": "title: x\nrows:\n  SGD: &s\n    overrides: [*s]\n",
    "an alias of itself in a mapping": "&a\ntitle: x\nrows: *a\n",
    "an alias of nothing": "title: *b\n",
    "a merge of a number": "title: x\n<<: 3\n",
    "a tag that runs code": "title: !!python/object/apply:os.system [touch canary]\n",
    "a tag with a wrong value": "title: !!bool maybe\n",
    "a list as a key": "title: x\n? [a, b]\n: 1\n",
    "two documents": "title: x\n---\ntitle: y\n",
    "another version of YAML": "%YAML 9.9\n---\ntitle: x\n",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_refused_in_one_sentence(write: Write, damage: str) -> None:
    write("bad", DAMAGED[damage])
    with pytest.raises(InputError) as refused:
        load_table("bad")
    assert str(refused.value).startswith("bad.yaml")
    assert str(refused.value).endswith(".")


def test_a_wrong_command_line_is_not_blamed_on_the_file(write: Write) -> None:
    write("right", "title: Right\n" + DIGITS + "rows: {SGD: [scheme=sgd]}\n")
    with pytest.raises(InputError) as refused:
        load_table("right", ["recipe.epochs=0"])
    assert str(refused.value) == "recipe.epochs=0: write an integer from 1."


def test_a_sweep_loads_no_library_that_only_reports_need() -> None:
    code = "import sys, rst.experiments.launch.local, rst.experiments.tables.estimate; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pandas", "matplotlib", "scipy", "tabulate"} & set(loaded)
