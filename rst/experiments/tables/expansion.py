"""From table files to runs: a table is cells, and a cell is one run for each seed.

Each cell is composed from the overrides of the file, the data set, the network and the row. The sweep and the report
expand the same files, so that the report knows which runs are missing.
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rst.experiments.compose import compose
from rst.experiments.errors import InputError, NotAtThisScale
from rst.experiments.runs.identity import run_id
from rst.experiments.runs.record import Record
from rst.experiments.spec import RunSpec
from rst.experiments.tables.table_file import Content, Family, Row, TableFile, table_names

COLLECTIONS = ("tables", "figures")
"""Names that stand for all tables and for all figures of the paper."""


@dataclass(frozen=True)
class Choice:
    """A part of a table: the cells that a claim compares, and how many seeds it has."""

    rows: Sequence[str]
    seeds: int
    """From seed 0; this wins over the file and the scale."""
    group: str | None = None
    """Of which group the rows are, beside those without a group; None: of any."""
    networks: Sequence[str] | None = None
    """None: all of the file."""
    datasets: Sequence[str] | None = None
    """None: all of the file."""

    def has(self, cell: "_Place", row: str) -> bool:
        """Whether the cell of this place and row is chosen."""
        return (
            row in self.rows
            and cell.group in ("", self.group or cell.group)
            and (self.networks is None or cell.network[0] in self.networks)
            and (self.datasets is None or cell.dataset[0] in self.datasets)
        )


@dataclass(frozen=True)
class PlannedRun:
    """A run that a table asks for, and the record that holds or will hold its result."""

    spec: RunSpec
    record: Record


@dataclass(frozen=True)
class Cell:
    """A row of a table with one network on one data set: one spec, trained from several seeds."""

    table: str
    group: str
    """The family of rows that the row belongs to, such as the points of one line; empty for rows without a family."""
    network: str
    """The paper's spelling of the network, such as "WRN28-10"; empty where the file names no networks."""
    row: str
    dataset: str
    """The paper's spelling of the data set; empty where the file names no data sets."""
    not_in_paper: bool
    """Whether the row is an addition to the paper's rows."""
    paper: dict[str, str]
    """Which numbers of the paper belong to the cell: values of columns of ``results/paper/<table>.csv``."""
    spec: RunSpec
    """The spec that its runs share, but for their seeds."""
    runs: list[PlannedRun]
    """One run for each seed, from seed 0."""


@dataclass(frozen=True)
class Table:
    """A table or a figure: its title, its layout, and its cells in the order of the file."""

    name: str
    title: str
    draw: str
    """"table", or a figure of `rst.experiments.report.figures`."""
    metrics: list[str]
    """The keys of run summaries that the table shows."""
    paper: str
    """The file of ``results/paper`` with the paper's numbers, without .csv; empty where the paper prints none."""
    x: str
    """The key of the config that a figure of errors has as its x axis; empty for Δη."""
    caption: str
    """What a reader should look at."""
    cells: list[Cell]

    @property
    def runs(self) -> list[PlannedRun]:
        """The runs of all cells, each once: two cells that mean the same share their runs."""
        return _once(run for cell in self.cells for run in cell.runs)


def runs_of(tables: Iterable[Table]) -> list[PlannedRun]:
    """The runs of all tables, each once, though many runs are in several tables."""
    return _once(run for table in tables for run in table.runs)


def _once(runs: Iterable[PlannedRun]) -> list[PlannedRun]:
    return list({run.record.id: run for run in runs}.values())


def load_tables(
    names: Sequence[str], overrides: Sequence[str] = (), tell: Callable[[str], None] = print
) -> Iterator[Table]:
    """The tables of these names, each once; "tables" and "figures" stand for all of the paper's.

    Args:
        names: names of files of ``configs/tables``, without .yaml, or of `COLLECTIONS`.
        overrides: words of a command line, which apply to all runs and win over the files.
        tell: gets a sentence for each table of a collection that is left out because the scale lacks its data set.

    Raises:
        InputError: a file or an override is wrong, or the scale lacks the data set of a table that ``names`` has.
    """
    members = {group: [name for name in table_names() if name.startswith(group[:-1])] for group in COLLECTIONS}
    for member in dict.fromkeys(member for name in names for member in members.get(name, [name])):
        try:
            yield load_table(member, overrides)
        except NotAtThisScale as error:
            if member in names:
                raise
            tell(f"{member} is left out: {error}")


def load_table(name: str, overrides: Iterable[str] = (), choice: Choice | None = None) -> Table:
    """The table of ``configs/tables/<name>.yaml``; ``overrides`` apply to all its runs and win over the file.

    Args:
        name: the name of the file, without .yaml.
        overrides: words of a command line.
        choice: of which cells and seeds; None: of all.

    Raises:
        InputError: the file is wrong, and the sentence has file, line and key; or an override is wrong.
    """
    overrides = tuple(overrides)
    if owned := next((text for text in overrides if text.lstrip("+~").startswith("seed=")), None):
        raise InputError(f"a table trains its rows from several seeds: leave {owned} out; max_seeds=1 is seed 0 alone.")
    file = TableFile(name)
    content = file.content
    places = [place for place in _places(content) if choice is None or choice.has(place, _label(file, place))]
    cells = [_cell(file, place, overrides, choice) for place in places]
    metrics, paper, caption = list(content.metrics), content.paper, " ".join(content.caption.split())
    return Table(name, content.title, content.draw, metrics, paper, content.x, caption, cells)


# ----------------------------------------------------------------------------------------------------------- the cells


@dataclass(frozen=True)
class _Place:
    """Where a cell stands: its group and row in the file, the values of the row's placeholders, network, data set."""

    group: str
    family: Family
    network: tuple[str, Sequence[str]]
    label: str
    row: Row
    values: Mapping[str, Any]
    dataset: tuple[str, Sequence[str]]


def _places(content: Content) -> Iterator[_Place]:
    for group, family in content.families():
        networks = family.networks or content.networks or {"": ()}
        datasets = family.datasets or content.datasets or {"": ()}
        rows = [(label, row, values) for label, row in family.rows.items() for values in _grid(row.grid)]
        for network, (label, row, values), dataset in itertools.product(networks.items(), rows, datasets.items()):
            yield _Place(group, family, network, label, row, values, dataset)


def _grid(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the values of the placeholders; without placeholders one, which is empty."""
    return (dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values()))


def _label(file: TableFile, place: _Place) -> str:
    with file.at_row(place.group, place.label):
        return _filled(place.label, place.values)


def _cell(file: TableFile, place: _Place, overrides: tuple[str, ...], choice: Choice | None) -> Cell:
    (network, of_network), (dataset, of_dataset) = place.network, place.dataset
    label = _label(file, place)
    with file.at_row(place.group, place.label):
        of_row = [_filled(text, place.values) for text in place.row.overrides]
        paper = {"scheme": label, **{key: _filled(text, place.values) for key, text in place.row.paper.items()}}
    of_family = place.family.overrides if place.group else ()
    choices = (*file.content.overrides, *of_family, *of_dataset, *of_network, *of_row)
    everything = (*choices, *overrides)
    try:
        composed = _composed(everything)
    except InputError:
        with file.at_row(place.group, place.label):
            _composed(choices)
        raise  # without the overrides the file is right, so that they are wrong
    names = {"group": file.path.stem, "job_type": f"{network} {label}".strip()}
    spec = composed.model_copy(update={"wandb": composed.wandb.model_copy(update=names)})
    seeds = choice.seeds if choice else min(file.content.seeds, spec.max_seeds or file.content.seeds)
    runs = [_run(spec, everything, seed) for seed in range(seeds)]
    not_in_paper = place.row.not_in_paper
    return Cell(file.path.stem, place.group, network, label, dataset, not_in_paper, paper, spec, runs)


@functools.cache
def _composed(overrides: tuple[str, ...]) -> RunSpec:
    return compose(overrides)


def _run(spec: RunSpec, overrides: tuple[str, ...], seed: int) -> PlannedRun:
    """The run of a seed. Nothing is checked anew: a seed contradicts no other key."""
    return PlannedRun(spec.model_copy(update={"seed": seed}), Record(Path(spec.paths.runs) / _id(overrides, seed)))


@functools.cache
def _id(overrides: tuple[str, ...], seed: int) -> str:
    """The id of a run; tables share many of them, and their names are not in it."""
    return run_id(_composed(overrides).model_copy(update={"seed": seed}))


def _filled(text: str, values: Mapping[str, Any]) -> str:
    """The text with the values in place of the placeholders <name>."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise InputError(f"{match[0]} has no values: give them in grid.")
        return str(values[match[1]])

    return re.sub(r"<(\w+)>", value, text)
