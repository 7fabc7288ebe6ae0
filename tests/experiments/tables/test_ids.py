"""The ids of all runs of all tables are those of ``ids.csv``, so that a change of ids cannot pass unseen.

A record is found by the id of its run, so that a changed id trains the run again. To write the file anew:

    python tests/experiments/tables/test_ids.py
"""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from rst.experiments.errors import NotAtThisScale
from rst.experiments.tables.expansion import load_table
from rst.experiments.tables.table_file import table_names

FILE = Path(__file__).with_name("ids.csv")
COMMAND = "python tests/experiments/tables/test_ids.py"
SCALES = ("paper", "gpu", "cpu", "digits", "smoke")
COLUMNS = ("scale", "table", "group", "network", "dataset", "row", "id")


def cells_of(scale: str) -> Iterator[tuple[str, ...]]:
    """A line of the file for each cell that has runs, with the id of seed 0; tables that the scale lacks have none."""
    of_imagenet = ["paths.data=/nowhere"] * (scale == "paper")  # so that no folder of images of this machine counts
    for name in table_names():
        try:
            table = load_table(name, [f"scale={scale}", *of_imagenet * (name != "demo")])
        except NotAtThisScale:
            continue
        for cell in table.cells:
            if cell.runs:
                yield (scale, name, cell.group, cell.network, cell.dataset, cell.row, cell.runs[0].record.id)


def committed() -> list[tuple[str, ...]]:
    with FILE.open(encoding="utf-8", newline="") as file:
        header, *lines = map(tuple, csv.reader(file))
    assert header == COLUMNS
    return lines


@pytest.mark.parametrize("scale", SCALES)
def test_ids_are_those_of_the_committed_file(scale: str) -> None:
    now = {cell[:-1]: cell[-1] for cell in cells_of(scale)}
    then = {cell[:-1]: cell[-1] for cell in committed() if cell[0] == scale}
    changed = [cell for cell in {**then, **now} if now.get(cell) != then.get(cell)]
    if changed:
        first = changed[0]
        pytest.fail(
            f"at scale {scale}, {len(changed)} of {len({**then, **now})} cells have another id than in {FILE.name}, "
            f"of which the first is {' '.join(filter(None, first[1:]))}, {then.get(first, 'no cell')} before and "
            f"{now.get(first, 'no cell')} now: if that is meant, run {COMMAND} and say in the commit why."
        )


if __name__ == "__main__":
    lines = [cell for scale in SCALES for cell in cells_of(scale)]
    with FILE.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *lines])
    print(f"{FILE} is written.")
