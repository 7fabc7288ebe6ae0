"""The page of claims, its figures, and that a clone with the committed records alone writes the same bytes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from made_up_runs import finish, standing_in

from rst.experiments.report import claims_page
from rst.experiments.report.claims import judge
from rst.experiments.report.figures.forest import forest
from rst.experiments.report.records import outcomes_of
from rst.experiments.tables.claims import load_claims
from rst.experiments.tables.expansion import runs_of

FILES = {
    "table01": """
        title: Schemes
        overrides: [dataset=digits, model=wrn10_1, wandb.mode=disabled, device=cpu]
        rows: {SGD: [scheme=sgd], SAM: [scheme=sam], RST: [scheme=rst]}
        """
}
FILE = """
seeds: {paper: 6, digits: 6, cpu: 6}
claims:
  sam-helps:
    section: "1"
    quote: better
    claim: SAM is lower than SGD.
    table: table01
    comparisons: [{a: SAM, b: SGD, expect: lower}]
  rst-beats-sam:
    section: "2"
    quote: even better
    claim: RST is lower than SAM.
    table: table01
    comparisons: [{a: RST, b: SAM, expect: lower}]
"""


_files = standing_in(FILES, FILE)


def train(runs: Path, name: str, errors: dict[str, float], *overrides: str) -> None:
    """Finish the runs of a claim, with these errors and a little more or less for each seed."""
    for claim in load_claims([f"paths.runs={runs}", *overrides], [name]):
        for cell in claim.table.cells:
            for run in cell.runs:
                finish(run, test_error=errors[cell.row] + 0.01 * ((3 * run.spec.seed + len(cell.row)) % 7))


def test_every_claim_has_one_line_and_one_that_fails_stands_as_one_that_holds(tmp_path: Path) -> None:
    train(tmp_path / "runs", "sam-helps", {"SGD": 5, "SAM": 2})
    train(tmp_path / "runs", "rst-beats-sam", {"SGD": 5, "SAM": 2, "RST": 4})
    page, *files = claims_page.write([f"paths.runs={tmp_path / 'runs'}"])
    lines = [" ".join(line.split()) for line in page.read_text(encoding="utf-8").splitlines()]
    assert "| [SAM is lower than SGD.](#sam-helps) | 1 | **holds** |" in lines
    assert "| [RST is lower than SAM.](#rst-beats-sam) | 2 | **fails** |" in lines
    assert {file.name for file in files} == {
        *("claims.png", "claims.svg", "claims.pdf", "sam-helps.svg", "rst-beats-sam.svg", "records.csv")
    }
    assert all(file.exists() for file in files)
    links = [line.partition("](")[2].rstrip(")") for line in lines if line.startswith("![")]
    assert len(links) == 3
    assert all((page.parent / link).exists() for link in links)


def test_a_claim_without_its_runs_says_so_and_has_the_command_that_trains_them(tmp_path: Path) -> None:
    train(tmp_path / "runs", "sam-helps", {"SGD": 5, "SAM": 2})
    page, *_ = claims_page.write([f"paths.runs={tmp_path / 'runs'}"])
    text = " ".join(page.read_text(encoding="utf-8").split())
    own = text.partition("## Not run")[2]
    assert "[rst-beats-sam](#rst-beats-sam) | 12 of 18 runs are there; 8,100 passes |" in own  # 300 steps, six seeds
    assert "sam-helps" not in own
    assert "`python scripts/sweep.py <claim> scale=<scale>` trains what is missing" in own


def test_the_figure_shades_where_a_claim_expects_its_difference_and_counts_what_is_not_run(tmp_path: Path) -> None:
    train(tmp_path / "runs", "sam-helps", {"SGD": 5, "SAM": 2})
    claims = list(load_claims([f"paths.runs={tmp_path / 'runs'}"]))
    figure = forest(judge(claims, outcomes_of(runs_of(claim.table for claim in claims), tmp_path / "none")), "Claims")
    [ax] = figure.axes
    assert figure.get_suptitle() == "Claims (1 of 2 are not run)"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["sam-helps"]
    [shaded] = ax.collections
    expected = shaded.get_paths()[0].get_extents()
    assert (expected.x0, expected.x1) == (-1.25, 0)  # a below b, as far as the axis goes


def test_a_clone_with_the_committed_records_alone_writes_the_same_bytes(tmp_path: Path) -> None:
    overrides = [f"paths.runs={tmp_path / 'runs'}"]
    train(tmp_path / "runs", "sam-helps", {"SGD": 5, "SAM": 2})
    before = {file: file.read_bytes() for file in claims_page.write(overrides)}
    shutil.rmtree(tmp_path / "runs")
    shutil.rmtree(tmp_path / "figures")
    (tmp_path / "claims.md").unlink()
    assert {file: file.read_bytes() for file in claims_page.write(overrides)} == before


def test_a_page_has_every_scale_with_records_whichever_is_written(tmp_path: Path) -> None:
    own = f"paths.runs={tmp_path / 'runs'}"
    train(tmp_path / "runs", "sam-helps", {"SGD": 5, "SAM": 2})
    claims_page.write([own])
    page, *_ = claims_page.write([own, "scale=cpu"])
    assert "| `paper`" in page.read_text(encoding="utf-8")
    assert "| `cpu`" in page.read_text(encoding="utf-8")


def test_the_scale_of_which_most_is_known_comes_first_and_what_is_not_run_stands_at_the_end(tmp_path: Path) -> None:
    own = f"paths.runs={tmp_path / 'runs'}"
    for scale, name in (("paper", "sam-helps"), ("digits", "sam-helps"), ("digits", "rst-beats-sam")):
        train(tmp_path / "runs", name, {"SGD": 5, "SAM": 2, "RST": 4}, f"scale={scale}")
        page, *_ = claims_page.write([own, f"scale={scale}"])
    text = page.read_text(encoding="utf-8")
    assert text.index("at scale `digits`, hold") < text.index("at scale `paper`, hold")
    section, _, waiting = text.partition("## rst-beats-sam")[2].partition("## Not run")
    assert "`digits`: **fails**" in section
    assert "12 of 18 runs are there" in waiting


def test_a_scale_without_the_data_set_of_a_claim_says_so(tmp_path: Path) -> None:
    own = f"paths.runs={tmp_path / 'runs'}"
    train(tmp_path / "runs", "sam-helps", {"SGD": 5, "SAM": 2})
    claims_page.write([own])
    page, *_ = claims_page.write([own, "scale=cpu"])
    waiting = " ".join(page.read_text(encoding="utf-8").partition("## Not run")[2].split())
    assert "| 12 of 18 runs are there; 8,100 passes | the scale lacks its data set |" in waiting


def test_the_commands_know_claims_beside_tables(
    tmp_path: Path, script: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    own = f"paths.runs={tmp_path / 'runs'}"
    assert script("sweep", "claims", "--dry-run", own) == 0
    out = capsys.readouterr().out
    assert "sam-helps: SAM is lower than SGD: 12 runs" in out
    assert "In all 18 runs" in out
    assert script("sweep", "sam-helps", "--dry-run", own) == 0
    assert "In all 12 runs" in capsys.readouterr().out
    assert script("report", "claims", own) == 0
    assert str(tmp_path / "claims.md") in capsys.readouterr().out
    assert script("report", "claims", "--page", own) == 0
    assert str(tmp_path / "report.html") in capsys.readouterr().out
    assert len(runs_of(claim.table for claim in load_claims([own]))) == 18
