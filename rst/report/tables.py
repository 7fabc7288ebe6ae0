"""Tables of results: runs of a table file, averaged over their seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from rst.experiments.sweep import Cell, Table

RESULTS = [
    "test_error",
    "best_test_error",
    "extra_propagations_expected",
    "extra_propagations_realised",
    "propagations",
    "sharp_steps",
    "total_steps",
    "train_seconds",
    "images_per_second",
    "peak_memory_bytes",
]


def records(cells: Sequence[Cell]) -> pd.DataFrame:
    """One line a finished run: its id, its row in the table, what it was asked, what came out."""
    lines = []
    for cell in cells:
        if cell.record.done:
            summary = cell.record.summary
            line: dict[str, Any] = {"id": cell.record.id, "row": cell.row, "seed": cell.cfg.seed}
            lines.append(line | {key: summary[key] for key in RESULTS})
    return pd.DataFrame(lines, columns=["id", "row", "seed", *RESULTS])


def over_seeds(table: Table) -> pd.DataFrame:
    """Mean and standard deviation (n - 1) over the seeds of each row, with n; rows in the table's own order.

    ``relative_time`` is a row's mean training time over that of its first row.
    """
    runs = records(table.cells).groupby("row")
    means = pd.DataFrame(
        {
            "n": runs.size(),
            "test_error_mean": runs["test_error"].mean(),
            "test_error_std": runs["test_error"].std(),
            "extra_propagations_expected": runs["extra_propagations_expected"].mean(),
            "extra_propagations_realised": runs["extra_propagations_realised"].mean(),
            "train_seconds_mean": runs["train_seconds"].mean(),
        }
    ).reindex(table.rows)
    means["n"] = means["n"].fillna(0).astype(int)
    means["relative_time"] = means["train_seconds_mean"] / means["train_seconds_mean"].iloc[0]
    return means


def readable(table: Table) -> pd.DataFrame:
    """`over_seeds` as a person reads it; a row that lacks runs says so."""
    means, wanted = over_seeds(table), len(table.seeds)

    def error(row: pd.Series) -> str:
        n = int(row["n"])
        if n == 0:
            return f"n = 0/{wanted}"
        spread = f" ± {row['test_error_std']:.2f}" if n > 1 else ""
        return f"{row['test_error_mean']:.2f}{spread} (n = {n}{'' if n == wanted else f'/{wanted}'})"

    columns = {
        "Scheme": means.index,
        "Test error [%]": means.apply(error, axis=1).to_numpy(),
        "Δη expected": _formatted(means["extra_propagations_expected"], "{:.2f}"),
        "Δη realised": _formatted(means["extra_propagations_realised"], "{:.3f}"),
        f"Time / {table.rows[0]}": _formatted(means["relative_time"], "{:.2f}"),
    }
    return pd.DataFrame(columns)


def markdown(table: Table) -> str:
    """The table with its title, and under it what its numbers are of."""
    columns = readable(table)
    align = ("left", *["right"] * (columns.shape[1] - 1))
    rows = columns.to_markdown(index=False, disable_numparse=True, colalign=align)
    return f"# {table.title}\n\n{rows}\n\n{caption(table)}\n"


def caption(table: Table) -> str:
    """On what data and network, at which scale, the numbers were obtained."""
    cfg = table.cells[0].cfg
    images = "digits" if cfg.dataset.source == "digits" else cfg.dataset.name
    noise = f", {cfg.dataset.label_noise:.0%} of their labels wrong" if cfg.dataset.label_noise else ""
    scale = f"`{cfg.scale}`" + (" (nothing shrunk)" if cfg.scale == "paper" else "")
    return (
        f"Network `{cfg.network}`, data set `{cfg.dataset.name}` (images: {images}; {cfg.dataset.train_images:,} for "
        f"training{noise}; {cfg.dataset.test_images:,} for testing), {cfg.recipe.epochs} epochs, scale {scale}. "
        "Mean ± standard deviation over seeds of the test error after the last epoch. Δη: extra passes a step."
    )


def write(table: Table, folder: Path) -> list[Path]:
    """Write the table as Markdown and CSV, and its runs into ``records.csv``; the files."""
    tables = folder / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    files = [tables / f"{table.name}.md", tables / f"{table.name}.csv", folder / "records.csv"]
    files[0].write_text(markdown(table))
    over_seeds(table).to_csv(files[1])
    _merged_records(table, files[2]).to_csv(files[2], index=False)
    return files


def _merged_records(table: Table, file: Path) -> pd.DataFrame:
    """The records of this table's runs, and those of other runs that the file holds."""
    configs = [OmegaConf.to_container(cell.cfg) for cell in table.cells if cell.record.done]
    flat = pd.json_normalize(configs)
    flat = flat[[key for key in flat if not key.startswith(("paths.", "wandb.", "dataset.root", "evaluate", "seed"))]]
    own = records(table.cells).drop(columns="row").join(flat)
    if not file.exists():
        return own
    others = pd.read_csv(file)
    return pd.concat([others[~others["id"].isin(own["id"])], own]).sort_values("id", kind="stable")


def _formatted(values: pd.Series, form: str) -> list[str]:
    return ["" if pd.isna(value) else form.format(value) for value in values]
