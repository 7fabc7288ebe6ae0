"""A table is data: one file of ``configs/tables`` names its runs, for the runner and for the reporter alike."""

import warnings
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

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


def run_table(table: Table, workers: int = 1) -> list[str]:
    """Train the runs that are missing, each in one of ``workers`` processes; the failures, one sentence each.

    A worker takes run after run, so that it starts Python and torch once. A run that fails does not stop the others.
    """
    missing = [cell for cell in table.cells if not cell.record.done]
    # Seed by seed, so that a machine that slows down slows all rows alike, and their times still compare.
    missing.sort(key=lambda cell: table.seeds.index(cell.cfg.seed))
    print(f"{table.name}: {len(table.cells)} runs, {len(table.cells) - len(missing)} done, {len(missing)} to train")
    failures = []
    threads = max(1, torch.get_num_threads() // workers)
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _set_up_worker, (threads,))
    runs = {pool.submit(_train, cell.cfg): cell for cell in missing}
    try:
        with tqdm(as_completed(runs), total=len(missing), desc=table.name, unit="run") as bar:
            for run in bar:
                failure = run.result() if run.exception() is None else str(run.exception())
                if failure is not None:
                    failures.append(f"{runs[run].row}, seed {runs[run].cfg.seed}: {failure}")
                    bar.write(failures[-1])
    except KeyboardInterrupt:
        failures.append("stopped; the same command goes on from here")
    finally:
        pool.shutdown(cancel_futures=True)
    return failures


def _set_up_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")


def _train(cfg: DictConfig) -> str | None:
    """Train one run in a worker; what went wrong, if anything."""
    from rst.training import Interrupted, train

    try:
        train(cfg, show_progress=False)
    except (InputError, Interrupted) as error:
        return str(error)
    except Exception as error:  # one run's bug or full disk must not end the others
        return f"{type(error).__name__}: {error}"
    return None
