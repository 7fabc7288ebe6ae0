"""Wrong commands, run in this process, and what is wrong with the answers to them."""

import contextlib
import io
import re
import runpy
import sys
import traceback
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT
from hydra.core.hydra_config import HydraConfig

from rst.experiments.data.folder_cache import KEPT

TRAIN, SWEEP, REPORT = "train.py", "scripts/sweep.py", "scripts/report.py"
PREPARE, SHOW, IMPORT = "scripts/prepare_data.py", "scripts/show_augmentation.py", "scripts/import_wandb.py"
RUNS, PLOT, BENCH = "scripts/runs.py", "scripts/plot_runs.py", "scripts/bench.py"

TINY = ["dataset=digits", "model=wrn10_1", "device=cpu", "wandb.mode=disabled", "recipe.epochs=1"]
TINY += ["dataset.train_images=64", "dataset.test_images=50", "recipe.batch_size=16", "recipe.perturbation_batch=8"]
"""The overrides of a run of 4 steps."""


@dataclass
class Answer:
    """The exit status of a command, and what it has printed."""

    code: int
    out: str
    err: str


@dataclass
class Wrong:
    """A wrong command."""

    script: str
    arguments: list[str]

    def __str__(self) -> str:
        return f"{self.script} {' '.join(map(ascii, self.arguments))}"[:300]


def run(script: str, arguments: Iterable[str]) -> Answer:
    """Run a command in this process. ``err`` has the traceback and the warnings that a user would see."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = [script, *arguments]
    sys.stdin = io.StringIO()  # nobody answers a question
    HydraConfig.instance().cfg = None  # as in a new process
    with warnings.catch_warnings(record=True) as seen, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        warnings.simplefilter("default", UserWarning)
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        except Exception:
            traceback.print_exc()
            code = 1
    own = [f"{warning.filename}: {warning.message}\n" for warning in seen if "rst" in Path(warning.filename).parts]
    return Answer(code, out.getvalue(), "".join(own) + err.getvalue())


def defect(script: str, answer: Answer) -> str:
    """What is wrong with the answer to a wrong command; an empty text if nothing is.

    A good answer is one sentence on stderr that begins with the script's name, and exit status 1; or an error of
    argparse, with exit status 2.
    """
    name = Path(script).name
    err = re.sub(r"train\.py: \d+ of the images are test images: .*\n", "", answer.err)  # said of every run
    err = re.sub(r"\r[^\n]*\r +\r(?=\w+\.py: )", "", err)  # without a progress bar that was cleared
    lines = re.sub(r"\r[^\n]*(\n(?=\r|\Z|\w+\.py: )|(?=\n))", "", err).splitlines()
    if answer.code == 0:
        return "was taken as right"
    if "Traceback" in answer.err:
        return "ended in a traceback: " + lines[-1]
    if answer.code == 2:  # argparse shows the usage before its sentence
        head = "\n".join(lines[:-1])
        good = re.fullmatch(r"usage: .*(\n +.*)*", head) and lines[-1].startswith(f"{name}: error: ")
        return "" if good else f"is no usage error: {answer.err!r}"
    if len(lines) != 1:
        return f"has {len(lines)} lines on stderr: {answer.err[:600]!r}"
    if not lines[0].startswith(f"{name}: ") or not lines[0].endswith((".", "?", ")")):
        return f"is no sentence of {name}: {lines[0][:600]!r}"
    return ""


def contents(folder: Path) -> dict[str, bytes | None]:
    """The content of every file below the folder; None for a folder, and for a file that is unreadable.

    Locks are left out, and the list of folders whose images were counted, which a refused command may make.
    """
    found = {}
    for path in (path for path in sorted(folder.rglob("*")) if path.name not in (".lock", KEPT)):
        try:
            found[str(path)] = path.read_bytes()
        except OSError:
            found[str(path)] = None
    return found


def answer_all(wrong: Iterable[Wrong], folder: Path) -> list[str]:
    """Run wrong commands; those whose answer has a `defect` or that change a file of the folder, with the reason."""
    defects = []
    for command in wrong:
        before = contents(folder)
        found = defect(command.script, run(command.script, command.arguments))
        after = contents(folder)
        changed = sorted(path for path in before.keys() | after.keys() if before.get(path, "") != after.get(path, ""))
        if changed:
            found += f" and changed {changed}"
        if found:
            defects.append(f"{command} {found}")
    return defects
