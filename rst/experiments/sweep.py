"""A table is data: one file of ``configs/tables`` names its runs, for the runner and for the reporter alike."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rst.experiments.config import CONFIGS, InputError, bad_input, load_config
from rst.experiments.record import Record, open_record

TABLES = CONFIGS / "tables"


@dataclass(frozen=True)
class Cell:
    """One run of a table: its row, its config, and the record where its result is or will be."""

    row: str
    cfg: DictConfig
    record: Record


@dataclass(frozen=True)
class Table:
    """A table: what stands over it, and its runs in the order of its rows and seeds."""

    name: str
    title: str
    seeds: list[int]
    rows: list[str]
    cells: list[Cell]


def load_table(name: str, overrides: Iterable[str] = ()) -> Table:
    """The table of ``configs/tables/<name>.yaml``: every row with every seed, under the overrides of all its runs."""
    file = TABLES / f"{name}.yaml"
    if not file.exists():
        known = ", ".join(sorted(path.stem for path in TABLES.glob("*.yaml")))
        raise InputError(f"there is no table {name}: choose one of {known}.")
    with bad_input(f"{file.name}: "):
        data: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(file))  # type: ignore[assignment]
    cells = []
    for row, own in data["rows"].items():
        composed = load_config([*data["overrides"], *own, *overrides])
        for seed in data["seeds"]:
            cfg = composed.copy()
            cfg.seed = seed
            cells.append(Cell(row, cfg, open_record(cfg)))
    return Table(name, data["title"], data["seeds"], list(data["rows"]), cells)
