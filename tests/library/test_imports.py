"""The library needs torch alone, so that `pip install` gives it without what the experiments need."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rst

PACKAGE = Path(rst.__file__).parent
LIBRARY = sorted(path for path in PACKAGE.rglob("*.py") if "experiments" not in path.relative_to(PACKAGE).parts)
FORBIDDEN = {
    *("hydra", "omegaconf", "pydantic", "pandas", "matplotlib", "wandb", "timm", "torchvision", "yaml", "numpy"),
    *("jinja2", "scipy", "sklearn", "submitit", "tqdm"),
}


def modules_after(statement: str, folder: Path) -> set[str]:
    """All modules that a fresh Python process has loaded after the statement."""
    code = f"import sys\n{statement}\nprint(*sys.modules, sep='\\n')"
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines())


def test_importing_the_library_loads_nothing_but_torch_and_the_standard_library(tmp_path):
    by_torch, by_library = modules_after("import torch", tmp_path), modules_after("import rst", tmp_path)
    packages = {name.partition(".")[0] for name in by_library - by_torch}
    assert packages - sys.stdlib_module_names <= {"rst", "torch"}
    assert {name for name in by_library if name.startswith("rst.experiments")} == set()
    assert FORBIDDEN & by_library <= by_torch


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_of_the_library_names_no_other_package_and_no_experiment(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = f"rst.{node.module or ''}" if node.level else str(node.module)
            imported |= {f"{module}.{alias.name}" for alias in node.names}
    assert {name.partition(".")[0] for name in imported} - sys.stdlib_module_names <= {"rst", "torch"}
    assert {name for name in imported if name.startswith("rst.experiments")} == set()


def test_the_version_is_a_literal_that_can_be_read_without_importing_torch():
    (version,) = (
        node.value
        for node in ast.parse((PACKAGE / "__init__.py").read_text("utf-8")).body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__version__"]
    )
    assert ast.literal_eval(version) == rst.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?(\.dev\d+)?", rst.__version__)
