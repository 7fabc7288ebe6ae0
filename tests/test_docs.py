"""The snippets of the pages run: every fenced block of the README, CONTRIBUTING and docs that opens with ```python run.

The blocks of a page share one namespace, in order. Names that a page does not want to define in sight stand in a block
inside an HTML comment. ```python run lightning runs where that package is installed.
"""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python run(?P<needs>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [
    page
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    if BLOCK.search(page.read_text(encoding="utf-8"))
]


def test_the_pages_with_code_for_a_loop_of_ones_own_have_snippets_that_run() -> None:
    assert {page.name for page in PAGES} >= {"README.md", "CONTRIBUTING.md", "migration.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_snippets_of_a_page_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in BLOCK.finditer(text):
        if all(find_spec(package) for package in block["needs"].split()):
            lines_before = text.count("\n", 0, block.start("code"))  # a traceback then names the line of the page
            exec(compile("\n" * lines_before + block["code"], str(page), "exec"), namespace)
