"""Tables for readers, as Markdown and LaTeX, each with a CSV file that has its results in full."""

import operator
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from rst.experiments.files import write_atomically
from rst.experiments.report.labels import dataset_of, network_of, unlike_the_paper
from rst.experiments.report.naming import folder_of, scale_of, stem_of, title_of
from rst.experiments.report.paper import of_the_paper
from rst.experiments.report.results import results
from rst.experiments.runs.record import SHARPNESS_KEYS
from rst.experiments.tables.expansion import Cell, Table

WHERE = ("Network", "Data set", "Error", "Metric")

ERRORS = {
    "test_error": "top-1",
    "top5_error": "top-5",
    "train_error": "on training images",
    "validation_error": "on held-out images",
}
"""What a reader is told of a metric in a table of errors alone."""
METRICS = {
    **{"test_error": "test error [%]", "top5_error": "top-5 error [%]"},
    **{"train_error": "error on training images [%]", "validation_error": "error on held-out images [%]"},
    **{"gradient_norm": "‖∇L‖", "sharpness": "sharpness", "lambda_max": "λ_max"},
    "train_seconds": "training time [s]",
}
"""What a reader is told of a metric where there are others than errors."""

MEANINGS = {
    "Test error [%]": "Test error: mean ± standard deviation over seeds, after the last epoch.",
    "Metric": (
        "Metric: L is the loss on training images without augmentation at the end of a run; sharpness is its rise by "
        "a step of length ρ along ∇L, and λ_max the largest eigenvalue of its Hessian; n counts runs that measured it."
    ),
    "Ours": "Ours: mean ± standard deviation over seeds, after the last epoch.",
    "Ours [%]": "Ours: mean ± standard deviation over seeds of the test error after the last epoch.",
    "Paper [%]": "Paper: as printed (`results/paper/<paper>.csv`), empty where its text has no number.",
    "Difference": "Difference: our mean less the paper's.",
    "95 % interval": "95 % interval: of the difference, by Welch's t-test, with the paper's n = 5 (ImageNet: 3).",
    "Passes": "Passes: forward-backward passes over a batch in the whole training, whose number of steps differs.",
    "Δη expected": "Δη: extra passes a step.",
    "Δη by steps": "Δη: extra passes a step, as the mean of p(t) over the steps and by the formula for many steps.",
    "γ_rst / ρ": "γ_rst / ρ = p c: the regularisation in units of ρ.",
    "Time / SGD": "Time / SGD: training time over that without sharp steps, of runs with nothing else on their cores.",
    "Paper time": "Paper time: the paper's training time over that without sharp steps.",
    "Extra time / SAM": (
        "Extra time / SAM: training time beyond SGD's over SAM's beyond SGD's, of runs with nothing else on their "
        "cores."
    ),
}
"""What the caption says of a column."""

LATEX = str.maketrans(
    {symbol: f"\\{symbol}" for symbol in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"±": r"$\pm$", "≤": r"$\leq$", "†": r"$\dagger$"}
    | {"‖": r"$\|$", "∇": r"$\nabla$", "λ": r"$\lambda$"}
    | {"γ": r"$\gamma$", "η": r"$\eta$", "θ": r"$\theta$", "π": r"$\pi$", "ρ": r"$\rho$", "Δ": r"$\Delta$"}
)


def write(table: Table) -> list[Path]:
    """Write the table as Markdown, CSV and LaTeX; return the files."""
    folder, frame = folder_of(table) / "tables", results(table)
    shown = _readable(frame)
    contents = {
        folder / f"{stem_of(table)}.md": _markdown_file(table, shown),
        folder / f"{stem_of(table)}.csv": frame.to_csv(index=False),
        folder / f"{stem_of(table)}.tex": _latex_file(table, shown),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in contents.items():
        write_atomically(file, content)
    return list(contents)


# ------------------------------------------------------------------------------------------------------ rows, columns


def readable(table: Table) -> pd.DataFrame:
    """`results` as texts for a reader, one line for each network, data set and scheme, without empty columns."""
    return _readable(results(table))


def best_rows(frame: pd.DataFrame) -> list[bool]:
    """Of each line of `readable`, whether no other of its network, data set and metric has a smaller error.

    A line that is alone is not marked.
    """
    frame = _by_place(frame)
    places = frame.groupby(["network", "dataset", "metric"], sort=False)["mean"]
    return ((frame["mean"] == places.transform("min")) & (places.transform("count") > 1)).tolist()


def _by_place(frame: pd.DataFrame) -> pd.DataFrame:
    """The lines by network, data set and metric, each in the order of the table file."""
    return frame.sort_values(["network", "dataset", "metric"], key=lambda labels: labels.factorize()[0], kind="stable")


def _readable(frame: pd.DataFrame) -> pd.DataFrame:
    frame = _by_place(frame)
    where = {"Network": frame["network"], "Data set": frame["dataset"], "Error": frame["metric"].map(ERRORS)}
    where = {header: labels for header, labels in where.items() if labels.nunique() > 1}
    if frame["metric"].isin(SHARPNESS_KEYS).any():
        where = {header: where[header] for header in where if header != "Error"}
        where["Metric"] = frame["metric"].map(METRICS)
    if not frame["planned"].any():
        what = _formulas(frame)
    elif not frame["metric"].any():
        what = {"n": _counts(frame)} | _costs(frame)
        what["Extra time / SAM"] = _text(frame["relative_extra_time"], "{:.2f}")
    else:
        what = _errors(frame) | _costs(frame)
    shown = pd.DataFrame(where | {"Scheme": _schemes(frame)} | what).reset_index(drop=True)
    return shown.loc[:, (shown != "").any()]


def _schemes(frame: pd.DataFrame) -> pd.Series:
    """The labels of the rows, each with its group where two rows have the same label; † marks rows not in the paper."""
    alike = frame.duplicated(["network", "dataset", "metric", "row"], keep=False) & (frame["group"] != "")
    marks = frame["not_in_paper"].map({True: " †", False: ""})
    return frame["row"] + (" (" + frame["group"] + ")").where(alike, "") + marks


def _errors(frame: pd.DataFrame) -> dict[str, pd.Series]:
    header = "Ours [%]" if frame["paper_mean"].notna().any() else "Test error [%]"
    ours = _text(frame["mean"], "{:.2f}") + _text(frame["std"], " ± {:.2f}")
    sharp = frame["metric"].isin(SHARPNESS_KEYS)  # These may have any magnitude, so that decimals would not do.
    if sharp.any():
        header = "Ours"
        ours = ours.mask(sharp, _text(frame["mean"], "{:.3g}") + _text(frame["std"], " ± {:.2g}"))
    ours += " (n = " + _counts(frame) + ")"
    low, high = (_signed(frame[f"difference_{end}"]) for end in ("low", "high"))
    return {
        header: ours.where(frame["n"] > 0, ours.str.strip(" ()")),
        "Paper [%]": _text(frame["paper_mean"], "{:.2f}") + _text(frame["paper_std"], " ± {:.2f}"),
        "Difference": _signed(frame["difference"]),
        "95 % interval": (low + " to " + high).where(low != "", ""),
    }


def _costs(frame: pd.DataFrame) -> dict[str, pd.Series]:
    steps = (frame["passes"] / (1 + frame["extra_propagations_realised"])).round(6)
    differ = steps.groupby([frame["network"], frame["dataset"]]).transform("nunique") > 1
    return {
        "Passes": _text(frame["passes"].where(differ), "{:,.0f}"),
        "Δη expected": _text(frame["extra_propagations_expected"], "{:.2f}"),
        "Δη realised": _text(frame["extra_propagations_realised"], "{:.3f}"),
        "Time / SGD": _text(frame["relative_time"], "{:.2f}"),
        "Paper time": _text(frame["paper_relative_time"], "{:.2f}"),
    }


def _formulas(frame: pd.DataFrame) -> dict[str, pd.Series]:
    exact, closed = frame["extra_propagations_expected"], frame["extra_propagations_closed_form"]
    costs = {
        "Δη by steps": _text(exact, "{:.6f}"),
        "Δη by Table 2": _text(closed, "{:.6f}"),
        "Deviation": _text((exact - closed).round(12) + 0.0, "{:+.1e}").replace("+0.0e+00", "0"),
    }
    if (frame["c"].dropna() == 1).all():
        return costs
    return costs | {"c = γ / ρ": _text(frame["c"], "{:g}"), "γ_rst / ρ": _text(frame["gamma_rst"], "{:g}")}


def _counts(frame: pd.DataFrame) -> pd.Series:
    """How many runs are done; where some are not, as "n/planned"."""
    planned = ("/" + frame["planned"].astype(str)).where(frame["n"] != frame["planned"], "")
    diverged = (", " + frame["diverged"].astype(str) + " diverged").where(frame["diverged"] > 0, "")
    return frame["n"].astype(str) + planned + diverged


def _text(values: pd.Series, form: str) -> pd.Series:
    return pd.Series(["" if pd.isna(value) else form.format(value) for value in values], values.index, dtype=str)


def _signed(values: pd.Series) -> pd.Series:
    return _text(values.round(2) + 0.0, "{:+.2f}")  # + 0.0 turns -0.00 into +0.00


# ------------------------------------------------------------------------------------------------------- the caption


def caption(table: Table, shown: pd.DataFrame) -> str:
    """What the numbers are of (networks, images, epochs, scale, seeds), and what each column of `readable` means."""
    cells = table.cells
    scale = f"scale: `{cells[0].spec.scale}`; " * (scale_of(table) != "")
    if table.runs:
        sentences = [
            f"Network: {', '.join(_values(cells, lambda cell: f'`{cell.spec.network}`'))}; "
            f"data: {', '.join(_values(cells, lambda cell: f'`{cell.spec.dataset.name}`'))} ({_said(cells, _images)}); "
            f"{_wrong_labels(cells)}"
            f"epochs: {_said(cells, lambda cell: f'{cell.spec.recipe.epochs:,}')}; "
            f"{scale}seeds: {_said(cells, lambda cell: str(len(cell.runs)))}."
        ]
        if not of_the_paper(cells):
            what = unlike_the_paper(cells).capitalize()
            sentences += [f"{what} are not the paper's, so that its numbers are not shown beside these."]
    else:
        sentences = [f"T = {_said(cells, lambda cell: f'{cell.spec.total_steps:,}')} steps; {scale}".strip("; ") + "."]
    sentences += [text.replace("<paper>", table.paper) for header, text in MEANINGS.items() if header in shown]
    sentences += ["† not in the paper."] * any(cell.not_in_paper for cell in cells)
    return " ".join(sentences)


def _images(cell: Cell) -> str:
    data = cell.spec.dataset
    kind = "digits standing in" if cell.spec.stands_in else "real images"
    return f"{kind}, {data.train_images - data.validation:,} for training, {data.test_images:,} for testing"


def _wrong_labels(cells: Sequence[Cell]) -> str:
    if not any(cell.spec.dataset.label_noise for cell in cells):
        return ""
    shares = _values(cells, lambda cell: f"{100 * cell.spec.dataset.label_noise:g} %")
    return f"wrong training labels: {', '.join(shares)}; "


def _values(cells: Sequence[Cell], fact: Callable[[Cell], str]) -> list[str]:
    """The values of a fact, each once, in the order of the cells."""
    return list(dict.fromkeys(map(fact, cells)))


def _said(cells: Sequence[Cell], fact: Callable[[Cell], str]) -> str:
    """The values of a fact. Of several, each has the networks, data sets, groups or rows that have no other value."""
    values = _values(cells, fact)
    for label in (network_of, dataset_of, operator.attrgetter("group"), operator.attrgetter("row")):
        owners = [_values([cell for cell in cells if fact(cell) == value], label) for value in values]
        if len(values) > 1 and sum(map(len, owners)) == len(set().union(*owners)):
            return ", ".join(f"{value} ({', '.join(names)})" for value, names in zip(values, owners, strict=True))
    return ", ".join(values)


# --------------------------------------------------------------------------------------------------------- the files


def markdown(shown: pd.DataFrame) -> str:
    """`readable` as a table in Markdown."""
    return _sparse(shown).to_markdown(index=False, disable_numparse=True, colalign=_sides(shown))


def wrapped(text: str) -> str:
    """The text in lines of at most 120 characters."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _markdown_file(table: Table, shown: pd.DataFrame) -> str:
    text = wrapped(f"{table.caption} {caption(table, shown)}".strip())
    return f"# {title_of(table)}\n\n{markdown(shown)}\n\n{text}\n"


def _latex_file(table: Table, shown: pd.DataFrame) -> str:
    """A ``longtable``, which may span several pages, with the caption as a paragraph under it."""
    cells = _sparse(shown).apply(
        lambda texts: texts.str.translate(LATEX).str.replace(r"(?<!\S)-(?=\d)", "$-$", regex=True)
    )
    cells.columns = [r"\shortstack{" + header.translate(LATEX).replace(" ", r"\\{}", 1) + "}" for header in shown]
    lines = cells.style.hide(axis="index").to_latex(
        environment="longtable",
        hrules=True,
        column_format="".join(side[0] for side in _sides(shown)),
        caption=title_of(table).translate(LATEX),
        label=f"tab:{table.name}",
    )
    said = f"{table.caption} {caption(table, shown)}".strip()
    text = re.sub("`(.+?)`", r"\\texttt{\1}", said.translate(LATEX))
    packages = r"% In the preamble: \usepackage{booktabs,longtable}"
    return packages + "\n{\\scriptsize\\setlength{\\tabcolsep}{2pt}\n" + lines + "\\noindent " + text + "\\par}\n"


def _sparse(shown: pd.DataFrame) -> pd.DataFrame:
    """Network and data set only in the first line that has them."""
    where = shown[[header for header in WHERE if header in shown]]
    return shown.assign(**where.mask(where.eq(where.shift()).astype(int).cummin(axis=1).astype(bool), ""))


def _sides(shown: pd.DataFrame) -> list[str]:
    return ["left" if header in (*WHERE, "Scheme") else "right" for header in shown]
