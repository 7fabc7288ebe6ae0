"""Records with damaged files: one sentence names the file, unless the command can do without it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from .answers import REPORT, SWEEP, TRAIN, Wrong, answer_all, defect, run
from .wrong_files import AGAIN, DAMAGES, OWN, damage

pytestmark = pytest.mark.faults

Command = tuple[str, list[str]]
"""A script and its words, in which RUN stands for the id of the run."""

NEEDED: list[tuple[str, bool, Command]] = [
    ("summary.json", True, AGAIN),
    ("summary.json", True, (REPORT, ["two"])),
    ("summary.json", True, (SWEEP, ["two"])),
    ("config.yaml", True, (REPORT, ["two"])),
    ("starts.jsonl", True, (REPORT, ["two", "--page"])),
    ("checkpoint.pt", False, AGAIN),
    ("checkpoint.pt", True, (TRAIN, ["evaluate=RUN", "device=cpu"])),
]
"""A file of a record, whether the run is done, and a command that cannot do without the file."""

DISPENSABLE: list[tuple[str, bool, Command]] = [
    ("config.yaml", False, (SWEEP, ["two", "--dry-run"])),
    ("starts.jsonl", False, (SWEEP, ["two", "--dry-run"])),
    ("metrics.jsonl", False, (SWEEP, ["two", "--dry-run"])),
    ("metrics.jsonl", False, AGAIN),
    ("starts.jsonl", False, AGAIN),
    ("config.yaml", False, AGAIN),
]
"""The same of commands that may do without the file, and in any case must not end in a traceback."""


def damages(command: Command) -> list[str]:
    """The damages that are tried with a command: all of them, or every other one if the command takes seconds."""
    return DAMAGES if command in ((REPORT, ["two"]), (SWEEP, ["two", "--dry-run"])) else DAMAGES[1::2]


def damaged_records(project: Path, name: str, done: bool, command: Command) -> Iterator[tuple[str, Wrong]]:
    """Damage a file of a record in each way; what was done, and the command."""
    undamaged = project.parent / "undamaged"
    shutil.copytree(project / "results", undamaged)
    script, words = command
    for kind in damages(command):
        shutil.rmtree(project / "results")
        shutil.copytree(undamaged, project / "results")
        runs = project / "results" / "runs"
        [own] = runs.glob(OWN)
        if not done:
            (own / "summary.json").unlink()
        # A dry run takes what it needs from the first record that has it, so that the other one is damaged too.
        for folder in runs.iterdir() if "--dry-run" in words else [own]:
            damage(folder / name, kind)
        yield f"{name}: {kind}", Wrong(script, [word.replace("RUN", own.name) for word in words])


@pytest.mark.parametrize(("file", "done", "command"), NEEDED)
def test_a_damaged_record_is_named_in_one_sentence_and_left_as_it_is(
    file: str, done: bool, command: Command, project: Path
) -> None:
    defects = []
    for what, wrong in damaged_records(project, file, done, command):
        defects += [f"{what}: {found}" for found in answer_all([wrong], project)]
    assert defects == [], "\n".join(defects)


@pytest.mark.parametrize(("file", "done", "command"), DISPENSABLE)
def test_a_damaged_file_that_a_command_can_do_without_causes_no_traceback(
    file: str, done: bool, command: Command, project: Path
) -> None:
    defects = []
    for what, wrong in damaged_records(project, file, done, command):
        answer = run(wrong.script, wrong.arguments)
        found = defect(wrong.script, answer) if answer.code else ""
        defects += [f"{what}: {wrong} {found}"] if found else []
    assert defects == [], "\n".join(defects)


def test_at_least_90_damaged_records_are_tried() -> None:
    records = sum(len(damages(command)) for _, _, command in [*NEEDED, *DISPENSABLE])
    print(f"\n{records} damaged records are tried.")
    assert records >= 90
