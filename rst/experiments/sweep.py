"""A table is data: one file of ``configs/tables`` names its runs, for the runner and for the reporter alike.

A file says which cells there are (its rows, for every network in ``blocks`` and every data set in ``columns``) and how
many seeds a cell has. Each cell is composed by Hydra from the overrides that its row, block and column add up to.
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rst.experiments.config import CONFIGS, InputError, NotAtThisScale, load_config, one_sentence
from rst.experiments.record import Record, open_record

TABLES = CONFIGS / "tables"


@dataclass(frozen=True)
class Job:
    """One run: its config, and the record where its result is or will be."""

    cfg: DictConfig
    record: Record


@dataclass(frozen=True)
class Cell:
    """A row in a column: one config, trained from several seeds."""

    table: str
    group: str
    """Family of rows that belong together, as the points of a line; empty in a table without families."""
    block: str
    """Network, in the paper's spelling; empty in a table without blocks."""
    row: str
    column: str
    """Data set, in the paper's spelling; empty in a table with one."""
    ours: bool
    """Whether the paper has no such row."""
    paper: dict[str, str]
    """What picks the cell's numbers out of the paper's: values of columns of ``results/paper/<table>.csv``."""
    cfg: DictConfig
    jobs: list[Job]


@dataclass(frozen=True)
class Table:
    """A table or a figure: what stands over it, how it is laid out, and its cells in the order of the file."""

    name: str
    title: str
    draw: str
    """"table", or the figure that `rst.report.figures` draws."""
    metrics: list[str]
    """Keys of the summaries that it shows."""
    paper: str
    """File of ``results/paper`` with the paper's numbers, without .csv; empty where it has none."""
    cells: list[Cell]

    @property
    def jobs(self) -> list[Job]:
        """Every run once, cells in order: a run of two cells is one."""
        return _once(job for cell in self.cells for job in cell.jobs)


def jobs_of(tables: Iterable[Table]) -> list[Job]:
    """The runs of all tables, each once: many are in several."""
    return _once(job for table in tables for job in table.jobs)


def _once(jobs: Iterable[Job]) -> list[Job]:
    return list({job.record.id: job for job in jobs}.values())


def table_names() -> list[str]:
    """All files of ``configs/tables``."""
    return sorted(path.stem for path in TABLES.glob("*.yaml"))


GROUPS = ("tables", "figures")
"""Names for all tables of the paper, and for all its figures."""


def load_tables(
    names: Sequence[str], overrides: Sequence[str] = (), tell: Callable[[str], None] = print
) -> Iterator[Table]:
    """The tables of these names, each once; ``tables`` and ``figures`` are all of the paper's.

    Of those two, ones whose data set the scale lacks are left out, of which ``tell`` gets a sentence.
    """
    members = {group: [name for name in table_names() if name.startswith(group[:-1])] for group in GROUPS}
    for member in dict.fromkeys(member for name in names for member in members.get(name, [name])):
        try:
            yield load_table(member, overrides)
        except NotAtThisScale as error:
            if member in names:
                raise
            tell(f"{member} is left out: {error}")


def load_table(name: str, overrides: Iterable[str] = ()) -> Table:
    """The table of ``configs/tables/<name>.yaml``, under the overrides of all its runs.

    Raises `InputError` with file, line and key where the file is wrong.
    """
    file = _TableFile(name)
    data, cells = file.data, []
    for group_name, group in [("", data), *data.groups.items()]:
        above = data.overrides if group is data else data.overrides + group.overrides
        blocks, columns = group.blocks or data.blocks or {"": []}, group.columns or data.columns or {"": []}
        rows = [(key, values) for key, row in group.rows.items() for values in _grid(row.grid)]
        for block, (key, values), column in itertools.product(blocks, rows, columns):
            row = group.rows[key]
            with file.of_row(group_name, key):
                label, *own = (_fill(text, values) for text in (key, *row.overrides))
                paper = {"scheme": label, **{about: _fill(text, values) for about, text in row.paper.items()}}
            choices = (*above, *columns[column], *blocks[block], *own)
            try:
                cfg = _compose((*choices, *overrides)).copy()
            except InputError:
                with file.of_row(group_name, key):
                    _compose(choices)
                raise  # the file is right, so it is the overrides that are not
            cfg.wandb.group, cfg.wandb.job_type = name, f"{block} {label}".strip()
            seeds = min(data.seeds, cfg.max_seeds or data.seeds)
            jobs = [_job(cfg, seed) for seed in range(seeds)]
            cells.append(Cell(name, group_name, block, label, column, row.ours, paper, cfg, jobs))
    return Table(name, data.title, data.draw, list(data.metrics), data.paper, cells)


def _job(cfg: DictConfig, seed: int) -> Job:
    own = cfg.copy()
    own.seed = seed
    return Job(own, open_record(own))


@functools.cache
def _compose(overrides: tuple[str, ...]) -> DictConfig:
    """Composed once for all seeds and tables: it costs as much as a small run."""
    return load_config(overrides)


def _grid(grid: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the values of the placeholders; one, empty, where there are none."""
    return (dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values()))


def _fill(text: str, values: Mapping[str, Any]) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise InputError(f"{match[0]} has no values: give them in grid.")
        return str(values[match[1]])

    return re.sub(r"<(\w+)>", value, text)


# ------------------------------------------------------------------------------------------------- what a file may say


@dataclass
class _Row:
    overrides: list[str] = field(default_factory=list)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Values of the placeholders <name> in the row's label, overrides and paper: their product is so many rows."""
    paper: dict[str, str] = field(default_factory=dict)
    ours: bool = False


@dataclass
class _Group:
    overrides: list[str] = field(default_factory=list)
    blocks: dict[str, list[str]] = field(default_factory=dict)
    columns: dict[str, list[str]] = field(default_factory=dict)
    rows: dict[str, _Row] = field(default_factory=dict)


@dataclass
class _File(_Group):
    title: str = MISSING
    draw: str = "table"
    seeds: int = 5
    metrics: list[str] = field(default_factory=lambda: ["test_error"])
    paper: str = ""
    like: list[str] = field(default_factory=list)
    """Other files whose rows and groups this one shows; what it says itself wins."""
    groups: dict[str, _Group] = field(default_factory=dict)


class _TableFile:
    """A file of ``configs/tables``, checked, and the line on which each of its keys stands."""

    def __init__(self, name: str, above: tuple[str, ...] = ()) -> None:
        self.path = _path(name, above)
        try:
            text = self.path.read_text(encoding="utf-8")
            self._lines = dict(_lines(yaml.compose(text, Loader=yaml.SafeLoader)))
            content = yaml.safe_load(text)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise InputError(f"{self.path.name}, line {line}: {error.problem}.") from error
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise InputError(f"{self.path.name} cannot be read as YAML: {one_sentence(error)}") from error
        if not isinstance(content, dict):
            raise InputError(f"{self.path.name}, line 1: a table file has keys, at least title and rows.")
        with self.located():
            merged = OmegaConf.merge(OmegaConf.structured(_File), _with_lists_as_overrides(content))
            self.data: _File = OmegaConf.to_object(merged)  # type: ignore[assignment]
        for key, texts in _lists(content):
            if not all(isinstance(text, (str, int, float)) for text in texts):
                raise InputError(f"{self._place(key)}: write a list of texts.")
        for group, key in _row_keys(self.data):
            row = (self.data.groups[group] if group else self.data).rows[key]
            if not all(isinstance(text, str) for text in row.paper.values()):
                raise InputError(f"{self._place(f'groups.{group}.' * bool(group) + f'rows.{key}.paper')}: write texts.")
        if self.data.seeds < 0:
            raise InputError(f"{self._place('seeds')}: write an integer from 0.")
        self._owners = dict.fromkeys(_row_keys(self.data), self)
        with self.located("like"):
            for liked in self.data.like:
                _path(liked, (*above, name))
        others = [_TableFile(liked, (*above, name)) for liked in self.data.like]
        for other in reversed(others):  # so that the first comes first, and its keys win
            self.data = replace(
                other.data,
                **{key: getattr(self.data, key) for key in content if key not in ("rows", "groups")},
                rows=other.data.rows | self.data.rows,
                groups=other.data.groups | self.data.groups,
            )
            self._owners = other._owners | self._owners
        if not any(_row_keys(self.data)):
            raise InputError(f"{self.path.name}, line 1: a table has rows, its own or in groups.")

    def of_row(self, group: str, key: str) -> AbstractContextManager[None]:
        """Errors inside are about this row, in the file that has it."""
        return self._owners[group, key].located(*(["groups", group] if group else []), "rows", key)

    @contextmanager
    def located(self, *path: str) -> Iterator[None]:
        """Errors inside are about this key of the file, or about the one that they name."""
        try:
            yield
        except OmegaConfBaseException as error:
            key = ".".join([*path, error.full_key or ""]).strip(".")
            raise InputError(f"{self._place(key)}: {one_sentence(error)}") from error
        except InputError as error:
            raise type(error)(f"{self._place('.'.join(path))}: {error}") from error

    def _place(self, key: str) -> str:
        known = key
        while known and known not in self._lines:
            known = known.rpartition(".")[0]
        return f"{self.path.name}, line {self._lines.get(known, 1)}" + (f", {key}" if key else "")


def _path(name: str, above: Sequence[str] = ()) -> Path:
    """The file of a table; ``above`` are those that are like it."""
    if name in above:
        raise InputError(f"{' is like '.join([*above, name])}, which never ends.")
    path = TABLES / f"{name}.yaml"
    if name not in table_names():
        raise InputError(f"there is no table {name}: choose one of {', '.join(table_names())}.")
    return path


def _row_keys(data: _File) -> Iterator[tuple[str, str]]:
    return ((name, key) for name, group in [("", data), *data.groups.items()] for key in group.rows)


def _lines(node: yaml.Node | None, *path: str) -> Iterator[tuple[str, int]]:
    """Each dotted key with its line. Raises where a key stands twice, of which YAML would drop the first."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is a text", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} stands here twice", problem_mark=key.start_mark)
            seen.add(key.value)
            yield ".".join([*path, key.value]), key.start_mark.line + 1
            yield from _lines(value, *path, key.value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _lines(item, *path)


def _lists(node: Any, *path: str) -> Iterator[tuple[str, list[Any]]]:
    """Each list below a node with its dotted key."""
    if isinstance(node, list):
        yield ".".join(path), node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _lists(value, *path, str(key))


def _with_lists_as_overrides(content: dict[str, Any]) -> dict[str, Any]:
    """A row that is a list is its overrides: the short form of most rows."""

    def rows(group: Any) -> Any:
        if not isinstance(group, dict) or not isinstance(group.get("rows"), dict):
            return group
        long = {key: {"overrides": row} if isinstance(row, list) else row for key, row in group["rows"].items()}
        return group | {"rows": long}

    long = rows(content)
    if isinstance(content.get("groups"), dict):
        long = long | {"groups": {key: rows(group) for key, group in content["groups"].items()}}
    return long
