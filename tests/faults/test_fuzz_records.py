"""Records and ``records.csv`` with damage: one sentence names the file, unless the command can do without it."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .answers import PLOT, REPORT, RUNS, SWEEP, TRAIN, Wrong, answer_all, defect, run
from .wrong_files import AGAIN, DAMAGES, OWN, damage, defects_after_random_damage

pytestmark = pytest.mark.faults

Command = tuple[str, list[str]]
"""A script and its words, in which RUN stands for the id of the run."""

NEEDED: list[tuple[str, bool, Command]] = [
    ("summary.json", True, AGAIN),
    ("summary.json", True, (REPORT, ["two"])),
    ("summary.json", True, (SWEEP, ["two"])),
    ("starts.jsonl", True, (REPORT, ["two", "--page"])),
    ("checkpoint.pt", False, AGAIN),
    ("checkpoint.pt", True, (TRAIN, ["evaluate=RUN", "device=cpu"])),
    ("config.yaml", True, (RUNS, ["show", "RUN"])),
    ("summary.json", True, (RUNS, ["show", "RUN"])),
    ("config.yaml", True, (RUNS, ["list", "scheme=grst"])),
    ("summary.json", True, (RUNS, ["compare", "scheme=sgd,grst"])),
    ("metrics.jsonl", True, (PLOT, ["scheme=grst"])),
    ("config.yaml", True, (PLOT, ["scheme=grst"])),
]
"""A file of a record, whether the run is done, and a command that cannot do without the file."""

RECORDED = ("config.yaml", "starts.jsonl", "metrics.jsonl", "checkpoint.pt", "summary.json")
LISTS = (["list"], ["list", "--mean", "--sort", "test_error"])

DISPENSABLE: list[tuple[str, bool, Command]] = [
    ("config.yaml", False, (SWEEP, ["two", "--dry-run"])),
    ("starts.jsonl", False, (SWEEP, ["two", "--dry-run"])),
    ("metrics.jsonl", False, (SWEEP, ["two", "--dry-run"])),
    ("metrics.jsonl", False, AGAIN),
    ("starts.jsonl", False, AGAIN),
    ("config.yaml", False, AGAIN),
    ("config.yaml", True, (REPORT, ["two"])),
    ("starts.jsonl", True, (RUNS, ["show", "RUN"])),
    ("metrics.jsonl", True, (RUNS, ["show", "RUN"])),
    *((file, True, (RUNS, words)) for file in RECORDED for words in LISTS),
    *((file, False, (RUNS, words)) for file in RECORDED if file != "summary.json" for words in LISTS),
    *((file, True, (PLOT, ["two"])) for file in RECORDED),
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


TEXTS: dict[str, Callable[[str], str]] = {
    "no header": lambda text: text.split("\n", 1)[1],
    "a header alone, cut off": lambda text: text[:20],
    "signs of a merge": lambda text: f"<<<<<<< HEAD\n{text}=======\n{text}>>>>>>> theirs\n",
    "signs of a merge between the lines": lambda text: text.replace("\n", "\n<<<<<<< HEAD\n", 1),
    "semicolons, as a spreadsheet writes them": lambda text: text.replace(",", ";"),
    "a byte order mark": lambda text: "\ufeff" + text,
    "a cell too few": lambda text: text.replace("done,", "done", 1),
    "an outcome that is none": lambda text: text.replace(",done,", ",gone,", 1),
    "no id": lambda text: "\n".join(line if line.startswith("id") else "," + line for line in text.split("\n")),
    "a comma in numbers": lambda text: re.sub(r"(\d)\.(\d)", r'"\1,\2"', text),
    "a letter in a number": lambda text: text.replace("done,", "done,l", 1),
    "the last line cut off": lambda text: text[:-30],
    "a column less": lambda text: text.replace("outcome", "result"),
    "a quote that nothing closes": lambda text: text.replace("done", '"done', 1),
}
"""Changes of ``records.csv``, each of which makes it one that the project never writes."""


@pytest.mark.parametrize("words", [["two"], ["claims"], ["--page"]], ids=" ".join)
def test_damaged_records_csv_is_named_in_one_sentence_and_left_as_it_is(words: list[str], project: Path) -> None:
    file = project / "results" / "records.csv"
    text, defects = file.read_text(), []
    for kind in DAMAGES:
        file.write_text(text)
        damage(file, kind)
        defects += [f"{kind}: {found}" for found in answer_all([Wrong(REPORT, words)], project)]
        file.rmdir() if kind == "folder" else file.unlink()
    for kind, change in TEXTS.items():
        file.write_text(change(text))
        defects += [f"{kind}: {found}" for found in answer_all([Wrong(REPORT, words)], project)]
    assert defects == [], "\n".join(defects)


def test_records_csv_with_random_damage_is_read_or_refused_in_one_sentence(project: Path) -> None:
    """As in a clone, which has the file and no records."""
    shutil.rmtree(project / "results" / "runs")
    file = project / "results" / "records.csv"
    defects = defects_after_random_damage(file, ["two"])
    assert defects == [], "\n".join(defects)


def test_at_least_90_damaged_records_are_tried() -> None:
    records = sum(len(damages(command)) for _, _, command in [*NEEDED, *DISPENSABLE])
    print(f"\n{records} damaged records are tried.")
    assert records >= 90
