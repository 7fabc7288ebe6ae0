"""From ``configs/claims.yaml`` to runs: each claim with the cells that it compares."""

import difflib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from rst.experiments.compose import compose
from rst.experiments.errors import InputError, NotAtThisScale
from rst.experiments.tables.claim_file import ClaimContent, read_claims
from rst.experiments.tables.expansion import COLLECTIONS, Cell, Choice, PlannedRun, Table, load_table
from rst.experiments.tables.table_file import table_names

CLAIMS = "claims"
"""The name that stands for the runs of all claims, beside those of tables."""


@dataclass(frozen=True)
class Claim:
    """A claim of the paper at one scale."""

    name: str
    content: ClaimContent
    seeds: int
    table: Table
    """The rows that are compared, with the claim's seeds; it has no cells where the scale lacks the data set."""

    @property
    def places(self) -> list[dict[str, Cell]]:
        """The cells of the claim by their row, for each network and data set."""
        keys = dict.fromkeys((cell.network, cell.dataset) for cell in self.table.cells)
        return [{cell.row: cell for cell in self.table.cells if (cell.network, cell.dataset) == key} for key in keys]

    @property
    def runs(self) -> list[PlannedRun]:
        """The runs that the claim needs, each once."""
        return self.table.runs


def split(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of tables and names of claims, `CLAIMS` among the latter; a name of neither is taken for a table's.

    Raises `InputError` for a name of neither that is nearest to a claim's.
    """
    tables = {*table_names(), *COLLECTIONS}
    others = [name for name in names if name not in tables]
    known = {CLAIMS, *read_claims().content.claims} if others else set()
    claims = [name for name in others if name in known]
    for name in set(others) - known:
        near = difflib.get_close_matches(name, [*tables, *known], n=1, cutoff=0.8)
        if known.intersection(near):
            raise InputError(f"there is no table or claim {name}: did you mean {near[0]}?")
    return [name for name in names if name not in claims], claims


def load_claims(
    overrides: Sequence[str] = (), names: Collection[str] = (CLAIMS,), tell: Callable[[str], None] = print
) -> Iterator[Claim]:
    """Claims in the order of the file, with their runs at the scale that ``overrides`` choose.

    Args:
        overrides: words of a command line, which apply to all runs.
        names: names of claims; `CLAIMS` stands for all, and names of others have no effect.
        tell: gets a sentence for each claim that the scale lacks the data set of; it comes without cells.

    Raises:
        InputError: the file is wrong, and the sentence has file, line and key; or an override is wrong.
    """
    file = read_claims()
    scale = compose([word for word in overrides if word.startswith("scale=")]).scale
    with file.at("seeds"):
        if scale not in file.content.seeds:
            raise InputError(f"there is none for scale={scale}: add it, or take {' or '.join(file.content.seeds)}.")
    seeds = file.content.seeds[scale]
    for name, content in file.content.claims.items():
        if CLAIMS not in names and name not in names:
            continue
        choice = Choice(content.rows, seeds, content.group, content.networks, content.datasets)
        with file.at("claims", name):
            try:
                table = load_table(content.table, overrides, choice)
            except NotAtThisScale as error:
                tell(f"{name} is left out: {error}")
                table = Table(name, content.claim, "table", [], "", "", "", [])
            else:
                _check(content, table)
        yield Claim(name, content, seeds, replace(table, name=name, title=content.claim, draw="table"))


def _check(content: ClaimContent, table: Table) -> None:
    """Refuse a group, network or data set that the table lacks, and a row that some of them have not, or twice."""
    file = f"{content.table}.yaml"
    groups = [content.group] if content.group else []
    for what, asked in (("group", groups), ("network", content.networks or ()), ("dataset", content.datasets or ())):
        missing = [label for label in asked if label not in [getattr(cell, what) for cell in table.cells]]
        if missing:
            raise InputError(f"{file} has these rows for no {what} {missing[0]}: leave it out, or choose other rows.")
    for place in dict.fromkeys((cell.network, cell.dataset) for cell in table.cells) or [("", "")]:
        rows = [cell.row for cell in table.cells if (cell.network, cell.dataset) == place]
        for row in content.rows:
            if row not in rows:
                where = " for ".join([f"{file} has no row {row}", *filter(None, place)])
                raise InputError(f"{where}: write another row, or name the networks that have it.")
            if rows.count(row) > 1:
                raise InputError(f"{file} has {row} in several groups: write group: <one of them>.")
