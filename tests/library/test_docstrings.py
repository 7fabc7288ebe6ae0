"""Every public name of the library has an example in its docstring, which runs, and a place on the page of the API."""

import doctest
import inspect
import re
import sys
from pathlib import Path

import pytest
import torch

import rst
import rst.integrations

PAGE = Path(__file__).parents[2] / "docs" / "api.rst"
PUBLIC = {
    "rst.RST": rst.RST,
    "rst.sharpness": rst.sharpness,
    "rst.sharpness.Sharpness": sys.modules["rst.sharpness"].Sharpness,  # `rst.sharpness` itself is the function.
    "rst.integrations.TrainerMixin": rst.integrations.TrainerMixin,
    **{f"rst.schedules.{name}": getattr(rst.schedules, name) for name in rst.schedules.__all__},
    **{f"rst.variants.{name}": getattr(rst.variants, name) for name in rst.variants.__all__},
}
DOCUMENTED = {name: what for name, what in PUBLIC.items() if what is not rst.variants.Closure}  # A type has none.
CALLED = [name for name in DOCUMENTED if name != "rst.sharpness.Sharpness"]  # The library alone makes one.


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_example_of_a_public_name_runs_and_gives_what_it_shows(name: str) -> None:
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner()
    tests = finder.find(DOCUMENTED[name], name, globs={"torch": torch, "rst": rst})
    assert name in {test.name for test in tests if test.examples}
    with torch.random.fork_rng():
        for test in tests:
            runner.run(test)
    assert runner.failures == 0


@pytest.mark.parametrize("name", CALLED)
def test_a_docstring_names_every_argument_of_a_public_name(name: str) -> None:
    text = inspect.getdoc(DOCUMENTED[name])
    assert text
    for argument in set(inspect.signature(DOCUMENTED[name]).parameters) - {"args", "kwargs", "options"}:
        assert re.search(rf"\b{argument}\b", text), argument


def test_the_page_of_the_api_shows_every_public_name() -> None:
    shown = set(re.findall(r"^\.\. auto\w+:: (\S+)$", PAGE.read_text("utf-8"), re.MULTILINE))
    assert shown >= PUBLIC.keys()
