"""Sphinx, for `make docs`: a site of the pages and the library's docstrings.

Its source is the whole clone, so that links between files are the same there as on GitHub.
"""

import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util.logging import getLogger

import rst

project, author, version = "rst", "the authors of rst", rst.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]

html_theme, html_title = "furo", f"rst {version}"
html_show_copyright = html_copy_source = html_show_sourcelink = False
pygments_dark_style, highlight_language = "github-dark", "none"
html_static_path = html_css_files = ["site.css"]
copybutton_exclude = ".gp, .go"  # Prompts and what examples print are not copied.

root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*", "results/**.md"]
exclude_patterns = [".*", "build", "data", "results/runs", "results/smoke*", "wandb"]
CONTENTS = """
```{toctree}
:hidden:
:caption: Library
docs/api
docs/migration
docs/integrations
docs/performance
```
```{toctree}
:hidden:
:caption: Reproduction
docs/reproduction
docs/claims
docs/own_data
docs/clusters
```
```{toctree}
:hidden:
:glob:
:caption: Results
results/README
results/*/README
results/bench/*/*
```
```{toctree}
:hidden:
:caption: Project
CONTRIBUTING
CHANGELOG
```
"""

myst_heading_anchors = 3
default_role = "py:obj"  # `rst.RST` in a docstring is a link, and an error where there is no such name.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(torch|typing|collections)\..*")]  # Their documentation is another site.
autodoc_member_order = "bysource"
maximum_signature_line_length = 80
python_use_unqualified_type_names = True


def setup(app: Sphinx) -> None:
    app.connect("source-read", prepare)
    app.connect("autodoc-process-docstring", check_attribute, priority=999)
    app.connect("build-finished", name_front_page)


def prepare(app: Sphinx, page: str, source: list[str]) -> None:
    """Give the README its contents, and anchors in HTML a form that MyST knows, with names unique in the site."""
    for anchor in re.findall(r'<a id="([\w-]+)"></a>', source[0]):
        name = f"{page}/{anchor}".lower()
        source[0] = source[0].replace(f'<a id="{anchor}"></a>', f"({name})=").replace(f"(#{anchor})", f"(#{name})")
    if page == root_doc:
        source[0] += CONTENTS
    if "/tables/" in page:  # The README of their folder has links to them.
        source[0] = "---\norphan: true\n---\n" + source[0]


def check_attribute(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Warn where Napoleon, which ran before, took what stands before a colon for the type of an attribute."""
    if what in ("attribute", "property") and any(line.startswith(":type:") for line in lines):
        getLogger(__name__).warning("the docstring of %s has a colon in its first line", name)


def name_front_page(app: Sphinx, error: Exception | None) -> None:
    """Give the site the front page that browsers look for."""
    if error is None and app.builder.format == "html":
        shutil.copy(Path(app.outdir, "README.html"), Path(app.outdir, "index.html"))
