"""The code in the documentation runs: each block of README, CONTRIBUTING and docs/ that begins with ```python run.

The blocks of a page run in order and share their variables. A block that only defines what the others need stands in an
HTML comment, where readers do not see it. The code of docs/integrations.md is run by tests/integrations.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python run\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [
    page
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    if BLOCK.search(page.read_text(encoding="utf-8"))
]


def test_readme_contributing_and_migration_have_code_that_runs() -> None:
    assert {page.name for page in PAGES} >= {"README.md", "CONTRIBUTING.md", "migration.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_blocks_of_a_page_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    variables: dict[str, object] = {"__name__": "__main__"}
    for block in BLOCK.finditer(text):
        lines_before = text.count("\n", 0, block.start("code"))  # so that a traceback names the line of the page
        exec(compile("\n" * lines_before + block["code"], str(page), "exec"), variables)
