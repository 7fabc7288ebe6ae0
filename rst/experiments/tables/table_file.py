"""A file of ``configs/tables``: what it may say, and on which line it says what."""

import difflib
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedBase
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError

from rst.experiments.compose import CONFIGS
from rst.experiments.errors import InputError, one_sentence
from rst.experiments.keys import Flag, wanted

TABLES = CONFIGS / "tables"

MOST_SEEDS = 1000
"""Far more than a table needs. Without a limit, a mistyped number of seeds would take for ever to plan."""

# ------------------------------------------------------------------------------------------------- what a file may say


Text = Annotated[StrictStr, wanted("a text")]
Texts = Annotated[tuple[Text, ...], wanted("a list of texts, [...]")]
Overrides = Texts
"""Words of the command line of ``train.py``."""
Seeds = Annotated[int, Field(strict=True, ge=0, le=MOST_SEEDS), wanted(f"an integer from 0 to {MOST_SEEDS}")]
Values = Annotated[
    tuple[StrictStr | StrictInt | StrictFloat | StrictBool, ...],
    Field(min_length=1),
    wanted("a list of numbers or texts, [...], with at least one"),
]


class Section(BaseModel):
    """Keys with their values; a key that is not declared is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Row(Section):
    """A row of a table: a method, which is trained with every network on every data set."""

    overrides: Overrides = ()
    grid: dict[Text, Values] = {}
    """Values of the placeholders <name> in the label, the overrides and ``paper``. A row stands for the product of all
    values: one row for each combination."""
    paper: dict[Text, Text] = {}
    """Which numbers of the paper belong to the row: values of columns of ``results/paper/<table>.csv``."""
    not_in_paper: Flag = False

    @model_validator(mode="before")
    @classmethod
    def _list_is_overrides(cls, value: Any) -> Any:
        return {"overrides": value} if isinstance(value, list) else value


class Family(Section):
    """Rows that belong together, such as the points of one line of a figure."""

    overrides: Overrides = ()
    networks: dict[Text, Overrides] = {}
    """The paper's spelling of each network, and the overrides that choose it."""
    datasets: dict[Text, Overrides] = {}
    """The paper's spelling of each data set, and the overrides that choose it."""
    rows: dict[Text, Row] = {}


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
    groups: dict[Text, Family] = {}

    def families(self) -> Iterator[tuple[str, Family]]:
        """The file's own rows, under the name "", and then its groups."""
        yield "", self
        yield from self.groups.items()

    def row_keys(self) -> Iterator[tuple[str, str]]:
        """Group and label of every row."""
        return ((group, label) for group, family in self.families() for label in family.rows)


# -------------------------------------------------------------------------------------------------------- reading it


class TableFile:
    """A file of ``configs/tables``, checked, with the rows of the files that it extends.

    Args:
        name: the file's name, without .yaml.
        extended_by: the files that extend it, from the first to the last.

    Raises:
        InputError: the file does not exist or is wrong. The sentence has the file, the line and the key.
    """

    def __init__(self, name: str, extended_by: tuple[str, ...] = ()) -> None:
        self.path = _path_of(name, extended_by)
        self._tree = self._parsed()
        own = self._checked()
        above = (*extended_by, name)
        with self.at("extends"):
            for other in own.extends:
                _path_of(other, above)
        self.content = own
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

    @contextmanager
    def at(self, *keys: str) -> Iterator[None]:
        """A context that puts file, line and dotted key before the sentence of an `InputError`."""
        try:
            yield
        except InputError as error:
            raise type(error)(f"{self._place(*keys)}: {error}") from error

    def _place(self, *keys: Any) -> str:
        """File, line and dotted key; the line is that of the innermost of the keys that the file has."""
        node, line = self._tree, 1
        for key in keys:
            lines = getattr(node.lc, "data", None) if isinstance(node, CommentedBase) else None
            if not lines or key not in lines:
                break
            line, node = lines[key][0] + 1, node[key]
        dotted = ".".join(key for key in keys if isinstance(key, str))
        return f"{self.path.name}, line {line}" + (f", {dotted}" if dotted else "")

    def _parsed(self) -> Any:
        """The file as ruamel.yaml has it: dictionaries and lists that know their lines."""
        name = self.path.name
        try:
            return YAML(typ="rt", pure=True).load(self.path.read_text(encoding="utf-8"))
        except MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            what = str(error.problem or error.context).rstrip(". ")
            if isinstance(error, DuplicateKeyError):
                what = what.partition(" with value ")[0] + ": remove one of the two"
            raise InputError(f"{name}, line {line}: {what}.") from error
        except Exception as error:  # on damaged text also ValueError, KeyError, RecursionError, UnicodeDecodeError, ...
            raise InputError(f"{name} cannot be read as YAML: {one_sentence(error)}") from error

    def _checked(self) -> Content:
        if not isinstance(self._tree, dict):
            raise InputError(f"{self.path.name}, line 1: a table file has keys, at least title and rows.")
        try:
            return Content.model_validate(self._tree)
        except ValidationError as error:
            errors = error.errors(include_url=False, include_input=False)
            wrong = min(errors, key=lambda one: one["type"] == "missing")  # a misspelt key explains a missing one
            raise InputError(self._sentence(wrong["type"], wrong["loc"], wrong["msg"])) from error

    def _sentence(self, kind: str, keys: tuple[Any, ...], message: str) -> str:
        """One sentence for an error of pydantic."""
        if kind == "invalid_key" or "[key]" in keys:  # the error is in the key itself, which pydantic marks by "[key]"
            *above, key = (part for part in keys if part != "[key]")
            return f"{self._place(*above)}: the key {key} is not a text: write it in quotes."
        if kind in ("dict_type", "model_type"):
            message = "write keys with their values, {...}"
        if kind == "missing":
            return f"{self._place(*keys)}: the key is missing: write {keys[-1]}: <value>."
        if kind == "extra_forbidden":
            known = [*Row.model_fields] if "rows" in keys[:-1] else [*Family.model_fields]
            known = [*Content.model_fields] if len(keys) == 1 else known
            near = difflib.get_close_matches(str(keys[-1]), known, n=1)
            better = near[0] if near else "one of " + ", ".join(known)
            return f"{self._place(*keys)}: there is no such key: write {better}."
        return f"{self._place(*keys)}: {message}."


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
