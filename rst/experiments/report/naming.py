"""What a table is called at its scale, and where its files are: folder, file names, title and command."""

from pathlib import Path

from rst.experiments.report.labels import images_of
from rst.experiments.spec import RunSpec
from rst.experiments.tables.expansion import Table


def scale_of(table: Table) -> str:
    """The scale of the table's runs. It is empty for runs on all of the digits, which the paper has at no scale."""
    digits_alone = all(cell.spec.dataset.name == "digits" for cell in table.cells)
    return "" if digits_alone and table.cells[0].spec.scale == "paper" else table.cells[0].spec.scale


def command_of(table: Table) -> str:
    """The command that trains the table's missing runs and writes it; make has targets for those of the paper alone."""
    scale = scale_of(table)
    if table.name == "demo" or table.name.startswith(("table", "figure")):
        return f"make {table.name}" + f" SCALE={scale}" * bool(scale)
    return f"python scripts/sweep.py {table.name}" + f" scale={scale}" * bool(scale) + " --report"


def folder_of(table: Table) -> Path:
    """The folder for the table's files. Each scale has its own, and so have digits in place of a data set."""
    return folder_at(table.cells[0].spec, any(cell.spec.stands_in for cell in table.cells))


def folder_at(spec: RunSpec, stands_in: bool = False) -> Path:
    """The folder for what is made of runs of the spec's scale; ``stands_in``: with digits in place of a data set."""
    scale = spec.scale + "-digits" * stands_in
    return Path(spec.paths.runs).parent / ("" if scale == "paper" else scale)


def stem_of(table: Table) -> str:
    """How the names of the table's files begin. Off the paper's scale they have it too: a file may leave its folder."""
    folder = folder_of(table)
    return table.name if folder == Path(table.cells[0].spec.paths.runs).parent else f"{table.name}-{folder.name}"


def title_of(table: Table) -> str:
    """The table's title; off the paper's scale with the images that stand in the place of the paper's."""
    at_scale = table.runs and scale_of(table) not in ("", "paper")
    return f"{table.title}: {images_of(table.cells)}" if at_scale else table.title
