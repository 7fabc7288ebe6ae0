"""A file of ``configs/tables``: what it may say."""

import difflib
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from rst.experiments.compose import CONFIGS
from rst.experiments.errors import InputError
from rst.experiments.keys import Flag, Part, wanted
from rst.experiments.tables.checked_file import CheckedFile, Text, Texts

TABLES = CONFIGS / "tables"

MOST_SEEDS = 1000
"""Far more than a table needs. Without a limit, a mistyped number of seeds would take for ever to plan."""

# ------------------------------------------------------------------------------------------------- what a file may say


Overrides = Texts
"""Words of the command line of ``train.py``."""
Seeds = Annotated[int, Field(strict=True, ge=0, le=MOST_SEEDS), wanted(f"an integer from 0 to {MOST_SEEDS}")]
Values = Annotated[
    tuple[StrictStr | StrictInt | StrictFloat | StrictBool, ...],
    Field(min_length=1),
    wanted("a list of numbers or texts, [...], with at least one"),
]


class Row(Part):
    """A row of a table: a method, which is trained with every network on every data set."""

    overrides: Overrides = ()
    grid: dict[Text, Values] = Field(default_factory=dict)
    """Values of the placeholders <name> in the label, the overrides and ``paper``. A row stands for the product of all
    values: one row for each combination."""
    paper: dict[Text, Text] = Field(default_factory=dict)
    """Which numbers of the paper belong to the row: values of columns of ``results/paper/<table>.csv``."""
    not_in_paper: Flag = False

    @model_validator(mode="before")
    @classmethod
    def _list_is_overrides(cls, value: Any) -> Any:
        return {"overrides": value} if isinstance(value, list) else value


class Family(Part):
    """Rows that belong together, such as the points of one line of a figure."""

    overrides: Overrides = ()
    networks: dict[Text, Overrides] = Field(default_factory=dict)
    """The paper's spelling of each network, and the overrides that choose it."""
    datasets: dict[Text, Overrides] = Field(default_factory=dict)
    """The paper's spelling of each data set, and the overrides that choose it."""
    rows: dict[Text, Row] = Field(default_factory=dict)


class Content(Family):
    """All that a file says."""

    title: Text
    draw: Text = "table"
    """"table", or a figure of `rst.experiments.report.figures`."""
    x: Text = ""
    """The key of the config that a figure of errors has as its x axis, such as "variant.rho"; empty for Δη."""
    caption: Text = ""
    """What a reader should look at: a sentence or two below the table or figure."""
    seeds: Seeds = 5
    metrics: Texts = ("test_error",)
    """The keys of run summaries that the table shows."""
    paper: Text = ""
    """The file of ``results/paper`` with the paper's numbers, without .csv; empty where the paper prints none."""
    extends: Texts = ()
    """Other files whose rows and groups the table has too. Its own keys win, then those of the first of these files."""
    groups: dict[Text, Family] = Field(default_factory=dict)

    def families(self) -> Iterator[tuple[str, Family]]:
        """The file's own rows, under the name "", and then its groups."""
        yield "", self
        yield from self.groups.items()

    def row_keys(self) -> Iterator[tuple[str, str]]:
        """Group and label of every row."""
        return ((group, label) for group, family in self.families() for label in family.rows)


# -------------------------------------------------------------------------------------------------------- reading it


class TableFile(CheckedFile[Content]):
    """A file of ``configs/tables``, checked, with the rows of the files that it extends.

    Args:
        name: the file's name, without .yaml.
        extended_by: the files that extend it, from the first to the last.

    Raises:
        InputError: the file does not exist or is wrong. The sentence has the file, the line and the key.
    """

    def __init__(self, name: str, extended_by: tuple[str, ...] = ()) -> None:
        super().__init__(_path_of(name, extended_by), Content, "a table file has keys, at least title and rows")
        own, above = self.content, (*extended_by, name)
        with self.at("extends"):
            for other in own.extends:
                _path_of(other, above)
        self._owners = dict.fromkeys(own.row_keys(), self)
        said = {key: getattr(own, key) for key in own.model_fields_set - {"rows", "groups"}}
        said["caption"] = own.caption  # a sentence on one layout is wrong below another
        for base in [TableFile(other, above) for other in reversed(own.extends)]:
            rows, groups = base.content.rows | self.content.rows, base.content.groups | self.content.groups
            self.content = base.content.model_copy(update={**said, "rows": rows, "groups": groups})
            self._owners = base._owners | self._owners
        if not any(self.content.row_keys()):
            raise InputError(f"{self.path.name}, line 1: the table has no rows: write them under rows or in groups.")

    def at_row(self, group: str, label: str) -> AbstractContextManager[None]:
        """A context whose errors are about this row, in this file or in the one that it is extended from."""
        return self._owners[group, label].at(*(("groups", group) if group else ()), "rows", label)


def table_names() -> list[str]:
    """The names of all files of ``configs/tables``, in alphabetical order."""
    return sorted(path.stem for path in TABLES.glob("*.yaml"))


def _path_of(name: str, extended_by: tuple[str, ...]) -> Path:
    if name in extended_by:
        raise InputError(f"{' extends '.join([*extended_by, name])}, a circle: remove one of these extends.")
    if name not in table_names():
        in_full = re.sub(r"(?<!\d)(\d)$", r"0\1", name)  # table3 is table03, and not table13, which is as near
        near = difflib.get_close_matches(in_full, table_names(), n=1, cutoff=0.8)
        better = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(table_names())}."
        raise InputError(f"there is no table {name}: {better}")
    return TABLES / f"{name}.yaml"
