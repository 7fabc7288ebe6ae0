"""``records.csv``: what came out of the runs of a scale, one line each, in a file that is committed.

A report takes what came out of a run from its own record where the run has ended here, else from its line of this file.
Both become the same texts first, so that a clone that has trained nothing writes the same tables, to the byte.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from rst.experiments.errors import InputError
from rst.experiments.files import write_atomically, writing
from rst.experiments.runs.catalogue import NOT_OF_THE_RESULT
from rst.experiments.runs.record import ENDED, SHARPNESS_KEYS, SPLIT_KEYS, SUMMARY_KEYS, Record
from rst.experiments.spec import RunSpec
from rst.experiments.tables.expansion import PlannedRun

NAME = "records.csv"
"""The file's name; it lies in the folder with the tables of its scale."""
RESULTS = (*SUMMARY_KEYS, *SPLIT_KEYS, *SHARPNESS_KEYS)
"""The columns that a summary fills; a run that diverged has none of them."""
CONDITIONS = (
    *("device", "devices", "threads", "autocast", "tf32", "channels_last"),
    *("compile", "cuda_graphs", "deterministic", "alone"),
)
"""What a run ran on and how, as far as its time depends on it; times are compared only where all of it is equal, and
where the run was alone, with no more processes than cores. A column is empty where the starts of the run differ."""
UNSET = ("autocast", "cuda_graphs")
"""Those that may be empty for another reason: float32 has no autocast, and a CPU no graphs."""
ORIGIN = ("git_commit", "python", "torch", "platform", "data_digest")
"""Where the latest start of a run came from."""
OF_THE_RUN = ("id", "outcome", *RESULTS, *CONDITIONS, *ORIGIN)
"""The columns that the record of a run fills; those of its spec follow."""

NOT_OF_THE_RUN = (*NOT_OF_THE_RESULT, "dataset.root", "measure_sharpness", "seed")
"""How keys of a spec begin that have no column: they do not describe the run, or its record has them."""

Line = Mapping[str, str]
"""A line of the file: texts by column."""


@dataclass(frozen=True)
class Outcome:
    """What came out of a run that has ended."""

    line: Line

    @property
    def diverged(self) -> bool:
        """Whether it ended because its loss was no longer finite."""
        return self.line["outcome"] == "diverged"

    @cached_property
    def summary(self) -> dict[str, float]:
        """The numbers of its summary, by key; what it did not measure is left out."""
        return {key: float(self.line[key]) for key in RESULTS if self.line.get(key)}

    @property
    def conditions(self) -> tuple[str, ...] | None:
        """The values of `CONDITIONS`; None where the time tells nothing: starts differ, or the run was not alone."""
        known = {key: self.line.get(key, "") for key in CONDITIONS}
        whole = known["alone"] == "True" and all(text for key, text in known.items() if key not in UNSET)
        return tuple(known.values()) if whole else None


Outcomes = Mapping[str, Outcome]
"""What came out of runs, by id; runs that have not ended are left out."""


def outcomes_of(runs: Iterable[PlannedRun], file: Path | None) -> Outcomes:
    """What came out of these runs: by their own records, else by their lines of the file; None: by their records alone.

    Raises:
        InputError: a record or the file is damaged.
    """
    committed = read(file) if file else {}
    lines = {run.record.id: _line_of(run.record) or committed.get(run.record.id) for run in runs}
    return {name: Outcome(line) for name, line in lines.items() if line}


def _line_of(record: Record) -> Line | None:
    """What the record of a run that has ended fills of its line; None for a run that has not ended here."""
    if not (record.done or record.diverged):
        return None
    summary, starts = record.summary if record.done else {}, record.starts
    latest = record.environment
    same = {key: latest.get(key) for key in CONDITIONS if all(start.get(key) == latest.get(key) for start in starts)}
    outcome = "done" if record.done else "diverged"
    values = {"id": record.id, "outcome": outcome} | {key: summary.get(key) for key in RESULTS}
    values |= dict.fromkeys(CONDITIONS) | same | {key: latest.get(key) for key in ORIGIN}
    return {column: _text(value) for column, value in values.items()}


def _text(value: Any) -> str:
    return "" if value is None else str(value)


# ------------------------------------------------------------------------------------------------------------ the file


def read(file: Path) -> dict[str, Line]:
    """The lines of the file by id; none where there is no file.

    Raises:
        InputError: the file is damaged; the sentence has the line.
    """
    if not file.exists():
        return {}
    fix = f"git checkout {file.name}, or delete the file to write it anew from the records"
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            text = opened.read()
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        lines, columns = list(reader), reader.fieldnames or ()
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{file} cannot be read ({error}): {fix}.") from error
    if not {"id", "outcome"} <= {*columns}:  # What is written here has them even without a line.
        raise InputError(f"{file}, line 1 is damaged or of an older version: {fix}.")
    if not text.endswith("\n"):
        raise InputError(f"{file} is cut off within line {len(text.splitlines())}: {fix}.")
    for i, line in enumerate(lines, start=2):
        if None in line or None in line.values() or line.get("outcome") not in ENDED or not line.get("id"):
            raise InputError(f"{file}, line {i} is damaged or of an older version: {fix}.")
        for key in RESULTS:
            if not _is_number(line.get(key, "")):
                raise InputError(f"{file}, line {i}, {key}: {line[key]} is not a number: {fix}.")
    return {line["id"]: line for line in lines}


def _is_number(text: str) -> bool:
    try:
        float(text or 0)
    except ValueError:
        return False
    return True


def write(runs: Sequence[PlannedRun], outcomes: Outcomes, file: Path, prune: bool = False) -> str:
    """Put what came out of the runs into the file, beside the runs that it has already, sorted by id.

    The spec's columns of a run that the file has stay as they are: what determines its result is the same, since its id
    is. With ``prune``, lines whose run has no record here are dropped.

    Returns:
        A sentence on the lines that were dropped; empty where none were.

    Raises:
        InputError: the file is damaged or cannot be written, or ``prune`` would leave none of its lines.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with writing(file), FileLock(file.with_name(f".{file.name}.lock")):  # Another report may write it at the same time.
        before = read(file)
        kept = _with_records(before, runs, file) if prune else before
        own = {run.record.id: _whole_line(run, outcomes, kept) for run in runs if run.record.id in outcomes}
        write_atomically(file, _csv({**kept, **own}))
    dropped = [name for name in before if name not in kept and name not in own]
    return f"{len(dropped)} lines of {file} are dropped, whose runs have no record here." if dropped else ""


def _with_records(lines: dict[str, Line], runs: Sequence[PlannedRun], file: Path) -> dict[str, Line]:
    folder = runs[0].record.folder.parent
    kept = {name: line for name, line in lines.items() if _line_of(Record(folder / name))}
    if lines and not kept:
        raise InputError(
            f"none of the {len(lines)} runs in {file} has a record in {folder}, since they were trained elsewhere: "
            "leave --prune out, which would drop them all."
        )
    return kept


def _whole_line(run: PlannedRun, outcomes: Outcomes, known: Mapping[str, Line]) -> Line:
    line, before = outcomes[run.record.id].line, known.get(run.record.id, {})
    if all(line.get(key, "") == before.get(key) for key in OF_THE_RUN):
        return before
    return {**_columns(run.spec), **{key: line.get(key, "") for key in OF_THE_RUN}}


def _columns(spec: RunSpec) -> dict[str, str]:
    """The keys that describe the run."""
    return {
        key: _text(value)
        for key, value in spec.flat().items()
        if not key.startswith(NOT_OF_THE_RUN) and key not in CONDITIONS
    }


def _csv(lines: Mapping[str, Line]) -> str:
    text = io.StringIO()
    others = sorted({column for line in lines.values() for column, value in line.items() if value} - set(OF_THE_RUN))
    writer = csv.DictWriter(text, [*OF_THE_RUN, *others], extrasaction="ignore", restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines[name] for name in sorted(lines))
    return text.getvalue()
