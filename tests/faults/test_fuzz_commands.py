"""Each of hundreds of wrong command lines is refused in one sentence, and changes no file."""

import shutil
from pathlib import Path

import pytest

from .answers import REPORT, Wrong, answer_all
from .wrong_commands import WRONG

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("family", WRONG)
def test_wrong_command_lines_are_refused_in_one_sentence_and_change_nothing(family: str, project: Path) -> None:
    defects = answer_all(WRONG[family], project)
    assert defects == [], "\n".join(defects)


def test_a_name_that_is_no_table_is_refused_before_any_other_table_is_written(project: Path) -> None:
    shutil.rmtree(project / "results" / "tables")
    assert answer_all([Wrong(REPORT, ["two", "nothing"])], project) == []


def test_at_least_300_different_wrong_command_lines_are_tried() -> None:
    print(f"\n{sum(map(len, WRONG.values()))} wrong command lines are tried.")
    assert len({str(wrong) for family in WRONG.values() for wrong in family}) >= 300
