"""What ``pip install .`` installs: the library alone, which runs with torch and what torch needs, and nothing else."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from packaging.requirements import Requirement
from test_docs import BLOCK

import rst

pytestmark = pytest.mark.slow

CHECKOUT = ("rst", "pyproject.toml", "README.md", "LICENSE")
"""What of the project a wheel is made from."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the project, without what it depends on."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in CHECKOUT:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    # Without isolation, pip builds with the setuptools that is here, and needs no network.
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", target, source], check=True)
    return target


def needed_by(name: str) -> set[str]:
    """The names of the installed distributions that one needs, and of itself."""
    found, todo = set[str](), {name}
    while todo:
        found |= todo
        lines = [line for known in todo for line in distribution(known).requires or ()]
        requirements = [requirement for requirement in map(Requirement, lines) if _applies(requirement)]
        todo = {_installed_name(requirement.name) for requirement in requirements} - found - {""}
    return found


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _installed_name(name: str) -> str:
    """The name, or an empty text where this machine has no such distribution."""
    try:
        return distribution(name).metadata["Name"]
    except PackageNotFoundError:
        return ""


@pytest.fixture(scope="module")
def torch_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with links to torch and to all that torch needs, and to nothing else."""
    links = tmp_path_factory.mktemp("torch_alone")
    packages = Path(torch.__file__).parents[1]
    for name in needed_by("torch"):
        for top in {file.parts[0] for file in distribution(name).files or ()} - {"..", "__pycache__"}:
            if not (links / top).exists():
                (links / top).symlink_to(packages / top)
    return links


@pytest.fixture
def python(installed: Path, torch_alone: Path, tmp_path: Path) -> Callable[[str], str]:
    """Run code in another folder, in a Python that sees its standard library and the two folders; what it prints."""

    def run(code: str) -> str:
        paths = f"import sys\nsys.path += [{str(installed)!r}, {str(torch_alone)!r}]\n"
        command = [sys.executable, "-I", "-S", "-c", paths + code]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


def test_only_the_library_is_installed(installed: Path) -> None:
    files = {str(file.relative_to(installed)) for file in installed.rglob("*") if file.is_file()}
    files = {file for file in files if not file.endswith(".pyc") and ".dist-info" not in file}
    library = [*(ROOT / "rst").glob("*.py"), *(ROOT / "rst" / "variants").glob("*.py"), ROOT / "rst" / "py.typed"]
    assert files == {str(file.relative_to(ROOT)) for file in library}


def test_the_distribution_has_the_version_of_the_package_and_needs_torch_alone(installed: Path) -> None:
    (found,) = distributions(path=[str(installed)])
    assert found.version == rst.__version__
    needed = [line for line in found.requires or () if "extra ==" not in line]
    assert [Requirement(line).name for line in needed] == ["torch"]


def test_the_library_imports_and_the_reproduction_is_not_there(python: Callable[[str], str], installed: Path) -> None:
    code = """
import importlib.util
import rst
print(rst.__version__, rst.__file__, importlib.util.find_spec("rst.experiments"), importlib.util.find_spec("hydra"))
"""
    assert python(code).split() == [rst.__version__, str(installed / "rst" / "__init__.py"), "None", "None"]


def test_every_module_of_the_library_imports(python: Callable[[str], str]) -> None:
    code = """
import importlib, pkgutil
import rst
for module in pkgutil.walk_packages(rst.__path__, "rst."):
    print(importlib.import_module(module.name).__name__)
"""
    assert {"rst.method", "rst.variants.ssam"} <= {*python(code).split()}


def test_the_loop_of_the_readme_runs(python: Callable[[str], str]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^## In your own loop\n.*?(?=^## )", readme, re.MULTILINE | re.DOTALL)
    assert section
    code = "".join(block["code"] for block in BLOCK.finditer(section[0]))
    assert "method.passes()" in code
    assert int(python(code + "print(method.state_dict()['t'])")) > 0
