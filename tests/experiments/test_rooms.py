"""The rooms of the reproduction stand in one order, and none imports a room above it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import rst

PACKAGE = Path(rst.__file__).parent / "experiments"
ROOMS = [
    *("errors", "keys", "files", "spec", "devices", "models", "data", "sentences", "compose", "build", "runs"),
    *("training", "tables", "launch", "report", "bench"),
]
"""From the ground up."""
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(file: Path) -> Iterator[str]:
    """The rooms that a file imports anywhere, also inside a function."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name.startswith("rst.experiments."):
                yield name.split(".")[2]


def test_every_file_is_in_a_room_of_the_order() -> None:
    assert {room_of(file) for file in FILES} == {*ROOMS, "__init__"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_file_imports_a_room_above_its_own(file: Path) -> None:
    own = room_of(file)
    above = ROOMS[ROOMS.index(own) + 1 :] if own in ROOMS else ROOMS
    assert set(imported_rooms(file)).isdisjoint(above)


def test_reports_need_no_training() -> None:
    files = [file for file in FILES if room_of(file) in ("report", "tables")]
    assert all({"training", "launch"}.isdisjoint(imported_rooms(file)) for file in files)
