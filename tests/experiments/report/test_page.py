"""The page has every table and figure, links to the records, and loads nothing from elsewhere."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from made_up_runs import CPU, finish, finished, moved, table_files

from rst.experiments.errors import InputError
from rst.experiments.report import page
from rst.experiments.report.contents import headline
from rst.experiments.report.results import fill
from rst.experiments.report.tables import readable
from rst.experiments.report.verdict import VerdictLine
from rst.experiments.tables.expansion import Table, load_table

FILES = {
    "table01": """
        title: SGD & <em>SAM</em>
        paper: table01
        datasets: {Cifar10: [dataset=cifar10], Cifar100: [dataset=cifar100]}
        networks: {ResNet18: [model=resnet18]}
        rows: {SGD: [scheme=sgd], SAM: [scheme=sam], RST <b id=x>: {overrides: [scheme=rst], not_in_paper: true}}
        """,
    "figure02": """
        title: Constant schedules
        draw: error_over_cost
        overrides: [model=wrn10_1]
        rows: {SGD: [scheme=sgd], SAM: [scheme=sam]}
        groups: {constant: {rows: {"RST[p = <p>]": {overrides: [scheme=rst, "schedule.p=<p>"], grid: {p: [0.2, 0.8]}}}}}
        """,
    "table11": """
        title: Not trained yet
        rows: {SGD: [scheme=sgd, model=vgg16_bn], SAM: [scheme=sam, model=vgg16_bn]}
        """,
    "figure05": """
        title: Linear schedules
        draw: schedules
        seeds: 0
        metrics: []
        groups: {linear: {rows: {"RST[m = <m>]": {overrides: [scheme=rst, schedule=linear], grid: {m: [0.2]}}}}}
        """,
}
SMOKE = ("scale=smoke", "max_seeds=5")
BANNER = "Not the paper’s setting"

Load = Callable[..., list[Table]]


class Page(HTMLParser):
    """The elements of a page in order, each with its attributes and its texts. Fails if a tag is not closed."""

    VOID = ("meta", "img")

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self._open: list[tuple[str, dict[str, str], list[str]]] = []
        self.feed(file.read_text(encoding="utf-8"))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = (tag, {key: value or "" for key, value in attrs}, [])
        assert len(element[1]) == len(attrs), f"an attribute of {tag} stands twice"
        self.elements.append(element)
        if tag not in self.VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for *_, texts in self._open:
            texts.append(data)

    def texts(self, *tags: str, **attributes_of: str) -> list[str]:
        """The text of every element of these tags and attributes, with single spaces."""
        return [
            " ".join("".join(texts).split())
            for tag, attributes, texts in self.elements
            if tag in tags and attributes_of.items() <= attributes.items()
        ]

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes, _ in self.elements if attribute in attributes]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """The tables of FILES; all of them have their records in one folder."""
    folder = tmp_path_factory.mktemp("page")

    def load(*overrides: str, names: Sequence[str] = tuple(FILES)) -> list[Table]:
        with table_files(folder, FILES):
            return [load_table(name, [f"paths.runs={folder}/runs", *overrides]) for name in names]

    return load


@pytest.fixture(scope="module")
def tables(load: Load) -> list[Table]:
    """Tables of five seeds: of the first, all of SGD and two of SAM are done; of the second all, of the third none."""
    tables = load(*SMOKE)
    finished(tables[0], runs=12), finished(tables[1])
    for run, digest in zip(tables[0].runs, ["<a>", "<a>", "b", "<a>"], strict=False):
        run.record.append_start({"device": "cpu", "data_digest": digest})
    return tables


@pytest.fixture(scope="module")
def file(tables: list[Table]) -> Path:
    return page.write(tables)


@pytest.fixture(scope="module")
def shown(file: Path) -> Page:
    return Page(file)


def test_the_page_is_written_into_the_folder_of_the_scale(file: Path, tables: list[Table]) -> None:
    assert file == Path(tables[0].cells[0].spec.paths.runs).parent / "smoke-digits" / "report.html"


def test_nothing_is_loaded_from_elsewhere(file: Path, shown: Page) -> None:
    assert not {"script", "link", "iframe", "object"} & {tag for tag, *_ in shown.elements}
    assert shown.values("src") == []
    assert all(target.startswith(("#", "../runs/", "tables/", "figures/")) for target in shown.values("href"))
    [style] = shown.texts("style")
    assert "url(" not in style
    assert "@import" not in style


def test_links_lead_to_the_records_of_all_runs_that_are_done(file: Path, shown: Page, tables: list[Table]) -> None:
    links = [file.parent / unquote(target) for target in shown.values("href") if target.startswith("..")]
    done = [run.record.folder for table in tables for cell in table.cells for run in cell.runs if run.record.done]
    assert len(done) == 32
    assert sorted(map(Path.resolve, links)) == sorted(map(Path.resolve, done))


def test_every_table_has_a_section_with_a_link_in_the_contents(shown: Page, tables: list[Table]) -> None:
    sections = [attributes["id"] for tag, attributes, _ in shown.elements if tag == "section"]
    assert sections == [*FILES, "environment"]
    links = [target for target in shown.values("href") if target.startswith("#")]
    assert [link for link in links if link != "#top"] == [f"#{name}" for name in sections]
    assert shown.texts("h2")[1:3] == ["Table 1 SGD & <em>SAM</em>", "Figure 2 Constant schedules"]


def test_a_table_shows_all_numbers_of_its_readable_form(shown: Page, tables: list[Table]) -> None:
    cells = [re.sub(r"n = .*", "", text).strip() for text in shown.texts("td")]  # n is folded in for narrow screens
    for table in tables:
        for text in readable(table).loc[:, "Scheme":].iloc[:, 1:].to_numpy().ravel():
            number = re.sub(r"(?<!\S)-", "−", text.partition(" (n")[0])
            assert number.startswith("n = ") or number in cells


def test_each_number_has_a_header_of_its_row_and_of_its_column(shown: Page) -> None:
    assert set(shown.values("scope")) == {"row", "col", "rowgroup"}
    assert shown.texts("th", scope="rowgroup") == ["digits as CIFAR-10", "digits as CIFAR-100"]
    assert shown.texts("th", scope="row")[:3] == ["SGD", "SAM", "RST <b id=x> †"]


def test_the_columns_of_the_paper_have_a_look_of_their_own(load: Load) -> None:
    tables = load(names=["table01"])
    shown = Page(page.write(tables))
    headers = [text for text in shown.texts("th", scope="col") if text.startswith("Paper")]
    assert headers == shown.texts("th", **{"class": "theirs"}) == ["Paper [%]", "Paper time"]
    assert shown.texts("td", **{"class": "theirs"})[0] == readable(tables[0])["Paper [%]"][0]


def test_at_a_smaller_scale_nothing_of_the_paper_is_on_the_page(shown: Page) -> None:
    assert not [text for text in shown.texts("th") if text.startswith(("Paper", "Difference"))]
    assert shown.texts("td", **{"class": "theirs"}) == []


def test_the_page_calls_networks_and_images_of_a_smaller_scale_by_what_they_are(shown: Page) -> None:
    assert any(text.startswith("slim ResNet18") for text in shown.texts("dd"))
    assert any(text.startswith("slim ResNet18, digits as CIFAR-10, SGD") for text in shown.texts("li"))


def test_a_page_of_digits_alone_names_no_scale(tmp_path: Path) -> None:
    text = "title: Digits\nseeds: 1\noverrides: [dataset=digits, model=wrn10_1]\nrows: {SGD: [scheme=sgd]}\n"
    with table_files(tmp_path, {"digits": text}):
        shown = Page(page.write([load_table("digits", [f"paths.runs={tmp_path}/runs"])]))
    assert shown.texts("title") == ["RST, results"]
    assert shown.texts("p", **{"class": "lead"}) == ["Images: digits."]
    assert "python scripts/sweep.py digits --report trains all 1" in " ".join(shown.texts("p"))


def test_the_page_says_how_many_runs_of_a_cell_diverged(load: Load, tmp_path: Path) -> None:
    [table] = [moved(table, tmp_path / "runs") for table in load(names=["figure02"])]
    for run in table.cells[1].runs:
        if run.spec.seed == 4:
            with run.record.training(run.spec):
                run.record.append_start(CPU)
                run.record.diverge(3, "it diverged")
        else:
            finish(run)
    shown = Page(page.write([table]))
    assert "4/5, 1 diverged" in shown.texts("td", **{"class": "n short"})


def test_a_cell_that_lacks_runs_says_how_many_it_has(shown: Page) -> None:
    assert shown.texts("td", **{"class": "n short"}) == ["2/5", "0/5", "0/5", "0/5", "0/5", "0/5"]


def test_a_table_that_lacks_runs_says_how_to_get_them(shown: Page) -> None:
    text = " ".join(shown.texts("p"))
    assert "18 of 30 runs are missing. make table01 SCALE=smoke trains them" in text
    assert "No runs yet. make table11 SCALE=smoke trains all 10" in text
    assert "make figure02" not in text


def test_figures_are_part_of_the_page_in_its_colours_each_with_a_text_instead(shown: Page) -> None:
    figures = [attributes for tag, attributes, _ in shown.elements if tag == "svg"]
    assert [figure["aria-label"].partition(",")[0] for figure in figures] == [
        "Figure 2 Constant schedules",  # the headline
        "Table 1 SGD & <em>SAM</em>",
        "Figure 5 Linear schedules",
    ]
    assert {figure["fill"] for figure in figures} == {"currentColor"}
    styles = " ".join(shown.values("style"))
    assert "currentColor" in styles
    assert "var(--series-0)" in styles
    assert "#000000" not in styles


def test_the_page_begins_with_verdicts_and_the_headline_figure(tables: list[Table], tmp_path: Path) -> None:
    verdicts = [VerdictLine("SAM <i>helps</i>.", "holds", "tables/a.csv"), VerdictLine("It is free.", "not run")]
    file = page.write([moved(table, tmp_path / "runs") for table in tables], verdicts)
    text, shown = file.read_text(encoding="utf-8"), Page(file)
    assert "2 claims of the paper: 1 holds, 1 not run." in shown.texts("p")
    assert "holds SAM <i>helps</i>. evidence" in shown.texts("li")
    assert text.index("2 claims") < text.index("Contents")
    assert page_of_headline(tables) == "figure02"


def page_of_headline(tables: list[Table]) -> str:
    first = headline(fill(tables))
    return first.name if first else ""


def test_the_best_row_of_a_block_is_marked(shown: Page, tables: list[Table]) -> None:
    best = [attributes["class"] for tag, attributes, _ in shown.elements if tag == "tr" and "class" in attributes]
    assert sum("best" in names.split() for names in best) == 2  # of the blocks that have two rows with runs


def test_every_table_links_to_its_files(shown: Page) -> None:
    links = shown.values("href")
    for place in ("tables/table01-smoke-digits.csv", "figures/figure02-smoke-digits.png"):
        assert place in links
    assert "figures/figure02-smoke-digits.pdf" in links


def test_seeds_are_counted_and_digests_are_short(shown: Page) -> None:
    assert "5 seeds (0 to 4)" in shown.texts("dd")


def test_the_page_says_on_what_its_runs_ran(shown: Page) -> None:
    facts = shown.texts("dd")
    assert facts[0].startswith("32 of 60 done")
    assert facts[-2:] == ["<a> (3)", "b (1)"]


def test_a_page_of_another_scale_than_the_papers_says_so(load: Load, shown: Page) -> None:
    assert BANNER in shown.texts("p", role="note")[0]
    assert shown.texts("title") == ["RST, results at scale smoke"]
    at_paper_scale = Page(page.write(load(names=["table01"])))
    assert at_paper_scale.texts("p", role="note") == []
    stand_ins = Page(page.write(load("dataset.source=digits", names=["table01"])))
    assert BANNER in stand_ins.texts("p", role="note")[0]


def test_results_of_two_scales_share_no_page(load: Load) -> None:
    with pytest.raises(InputError, match=r"table01 in .*smoke-digits and table11 in .*: write a page for each"):
        page.write([*load(*SMOKE, names=["table01"]), *load(names=["table11"])])


def test_markup_in_a_table_file_is_text_on_the_page(file: Path, shown: Page) -> None:
    assert not {"em", "b", "a>"} & {tag for tag, *_ in shown.elements}
    assert "&lt;b id=x&gt;" in file.read_text(encoding="utf-8")


def test_ids_are_unique_and_headings_are_in_order(shown: Page) -> None:
    names = shown.values("id")
    assert len(names) == len(set(names))
    assert set(shown.values("aria-labelledby")) <= set(names)
    headings = [tag for tag, *_ in shown.elements if tag in ("h1", "h2", "h3")]
    assert headings == ["h1"] + ["h2"] * (len(FILES) + 2)


def test_equal_records_give_an_equal_page(file: Path, tables: list[Table]) -> None:
    before = file.read_bytes()
    page.write([dataclasses.replace(table) for table in tables])
    assert file.read_bytes() == before
