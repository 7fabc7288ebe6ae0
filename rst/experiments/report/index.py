"""The overview of a scale as Markdown, with every table and figure inline: results are read where the code is."""

from collections.abc import Sequence
from pathlib import Path

from rst.experiments.files import write_atomically
from rst.experiments.report import figures
from rst.experiments.report.contents import common_folder, done_of, files_of, headline, label_of
from rst.experiments.report.labels import images_of, unlike_the_paper
from rst.experiments.report.naming import command_of, scale_of, title_of
from rst.experiments.report.paper import of_the_paper
from rst.experiments.report.results import Filled, fill
from rst.experiments.report.tables import caption, markdown, readable, wrapped
from rst.experiments.report.verdict import VerdictLine, counted
from rst.experiments.tables.expansion import Table, runs_of

FEW = 12
"""Up to this many lines, a table is unfolded."""


def write(tables: Sequence[Table], verdicts: Sequence[VerdictLine] = (), command: str = "make report") -> Path:
    """Write ``README.md`` into the folder of the tables' results, which names the command that wrote it.

    Returns the file.

    At the paper's scale, whose folder is that of all results, the file is ``paper.md``.

    Raises:
        InputError: the tables have different scales or images.
    """
    folder = common_folder(tables)
    filled = fill(tables)
    first = headline(filled)
    parts = [_head(filled, command), *_verdicts(verdicts)]
    parts += [_picture(first), figures.caption_of(first)] if first else []
    parts += [_contents(filled), *(_section(table, table is first) for table in filled)]
    is_scale = folder != Path(tables[0].cells[0].spec.paths.runs).parent
    file = folder / ("README.md" if is_scale else "paper.md")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(file, "\n\n".join(parts) + "\n")
    return file


def _head(tables: Sequence[Filled], command: str) -> str:
    runs = runs_of(tables)
    cells = [cell for table in tables for cell in table.cells if cell.runs]
    scale = next(filter(None, map(scale_of, tables)), "")
    done = len({name for table in tables for name, outcome in table.outcomes.items() if not outcome.diverged})
    lines = [f"# Results{f' at scale {scale}' if scale else ''}: {images_of(cells) or 'formulas'}", ""]
    lines += [f"{done:,} of {len(runs):,} runs are done. `{command}` writes this page, and `report.html`, which has "
              "links to the records of your own runs besides."]  # fmt: skip
    if not of_the_paper(cells):
        lines += ["", f"**Not the paper's setting:** {unlike_the_paper(cells)} differ from the paper's, so that its "
                  "numbers are not shown beside these."]  # fmt: skip
    return "\n".join(lines)


def _verdicts(verdicts: Sequence[VerdictLine]) -> list[str]:
    if not verdicts:
        return []
    said = ", ".join(words for _, words in counted(verdicts))
    lines = [
        f"- **{verdict.outcome}**: {verdict.claim}{f' ([evidence]({verdict.evidence}))' if verdict.evidence else ''}"
        for verdict in verdicts
        if verdict.outcome != "not run"
    ]
    return [f"## {len(verdicts)} claim{'s' * (len(verdicts) > 1)} of the paper: {said}", "\n".join(lines)]


def _contents(tables: Sequence[Filled]) -> str:
    lines = []
    for table in tables:
        count = f"{done_of(table)}/{len(table.runs)} runs" if table.runs else "no runs needed"
        lines.append(f"| [{label_of(table) or table.name}](#{table.name}) | {table.title} | {count} |")
    return "\n".join(["## Contents", "", "| | | |", "|:--|:--|--:|", *lines])


def _section(table: Filled, is_first: bool) -> str:
    done, shown = done_of(table), readable(table)
    label = label_of(table)
    parts = [f'<a id="{table.name}"></a>\n\n## {f"{label}. " if label else ""}{title_of(table)}']
    if done < len(table.runs):
        parts.append(f"{len(table.runs) - done} of {len(table.runs)} runs are missing: `{command_of(table)}`.")
    drawn = figures.drawn_as(table) if done or not table.runs else ""
    if drawn and not is_first:
        parts += [_picture(table), figures.caption_of(table)]
    elif table.caption and not is_first:
        parts.append(table.caption)
    numbers = f"{markdown(shown)}\n\n{wrapped(caption(table, shown))}"
    if len(shown) > FEW and (drawn or not done):
        numbers = f"<details>\n<summary>Numbers ({len(shown)} lines)</summary>\n\n{numbers}\n\n</details>"
    links = ", ".join(f"[{kind}]({place})" for kind, place in files_of(table))
    return "\n\n".join([*parts, numbers, f"Files: {links}"])


def _picture(table: Table) -> str:
    place = dict(files_of(table))["PNG"]
    return f"![{label_of(table) or table.name}: {title_of(table)}]({place})"
