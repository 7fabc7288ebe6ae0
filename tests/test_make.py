"""``make``: what is asked for in a wrong way is answered by one sentence, before anything is installed or trained."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")


def make(tmp_path: Path, *words: str, ready: bool = False) -> tuple[int, str]:
    """``make`` with these words; its status and what it prints. With ``ready``, it finds the project installed."""
    stamp = tmp_path / "ready"
    if ready:
        stamp.touch()
    # Tests may run under `make test`, whose own options these commands would inherit.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    command = ["make", f"READY={stamp}", f"PYTHON={sys.executable}", "BIN=/nowhere", *words]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["table3"], "there is no target table3: did you mean table03?"),
        (["tabel03"], "there is no target tabel03: did you mean table03?"),
        (["figure1"], "there is no target figure1: did you mean figure01?"),
        (["table"], "there is no target table: did you mean tables?"),
        (["doc"], "there is no target doc: did you mean docs?"),
        (["nonsense"], "there is no target nonsense: make help lists all."),
        (["table01", "scale=smoke"], "write SCALE= in capital letters, as in make table03 SCALE=smoke"),
        (["table01", "workers=2"], "write WORKERS= in capital letters"),
        (["table01", "data=/data"], "write DATA= in capital letters"),
        (["table01", "yes=1"], "write YES= in capital letters"),
        (["bench", "parts=loader"], "write PARTS= in capital letters"),
        (["table01", "SCALE=smok"], "there is no SCALE=smok: write one of cpu digits gpu paper smoke"),
        (["demo", "SCALE=smoke"], "the demo has one scale and its own images: leave SCALE and DATA out"),
        (["demo", "SCALE=cpu"], "the demo has one scale and its own images: leave SCALE and DATA out"),
        (["demo", "DATA=/data"], "the demo has one scale and its own images: leave SCALE and DATA out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_is_answered_by_a_sentence_before_anything_is_installed(
    tmp_path: Path, words: list[str], sentence: str
) -> None:
    status, said = make(tmp_path, *words)
    assert status != 0
    assert sentence in said
    assert len([line for line in said.splitlines() if not line.startswith("make: ***")]) <= 1
    assert "venv" not in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["demo"], "scripts/sweep.py --report demo"),
        (["table03", "SCALE=smoke"], "scripts/sweep.py --report table03 scale=smoke"),
        (["figure01"], "scripts/sweep.py --report figure01 scale=paper"),
        (
            ["tables", "WORKERS=2", "YES=1", "DATA=/a b"],
            "scripts/sweep.py --report --workers 2 --yes tables scale=paper 'paths.data=\"/a b\"'",
        ),
        (["report", "SCALE=cpu"], "scripts/report.py --page scale=cpu"),
        (["bench"], "scripts/bench.py"),
        (["bench", "PARTS=steps loader"], "scripts/bench.py steps loader"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_target_is_one_command(tmp_path: Path, words: list[str], command: str) -> None:
    status, said = make(tmp_path, "-n", *words, ready=True)
    assert status == 0
    [line] = said.splitlines()
    assert " ".join(line.split()) == f"/nowhere/python {command}"


def test_help_lists_every_target(tmp_path: Path) -> None:
    status, said = make(tmp_path)
    assert status == 0
    targets = ["setup", "demo", "table%", "figure%", "tables", "figures", "report", "test", "docs", "lint", "bench"]
    for target in targets:
        assert f"  make {target} " in said
    assert "YES=1" in said
