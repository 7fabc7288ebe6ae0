"""What ``configs/claims.yaml`` says, and how a wrong one is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rst.experiments.errors import InputError
from rst.experiments.tables import claim_file, table_file
from rst.experiments.tables.claims import load_claims, split

TABLES = {
    "few": "title: Few\noverrides: [dataset=digits, model=wrn10_1]\nseeds: 3\n"
    "networks: {A: [], B: [recipe.epochs=2]}\nrows: {SGD: [scheme=sgd], SAM: [scheme=sam]}\n"
    "groups:\n  one: {rows: {RST: [scheme=rst]}}\n"
    "  two: {networks: {A: []}, rows: {RST: [scheme=rst], GNR: [scheme=gnr]}}\n"
}
HEAD = "seeds: {paper: 4}\nclaims:\n  first:\n    section: '1'\n    quote: q\n    claim: c\n    table: few\n"  # 7 lines
LOWER = "    comparisons: [{a: SAM, b: SGD, expect: lower}]\n"

Write = Callable[[str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Put a text in place of the project's claims, beside the tables of TABLES."""
    (tmp_path / "tables").mkdir()
    for name, text in TABLES.items():
        (tmp_path / "tables" / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(table_file, "TABLES", tmp_path / "tables")
    monkeypatch.setattr(claim_file, "FILE", tmp_path / "claims.yaml")

    def write(text: str) -> None:
        (tmp_path / "claims.yaml").write_text(text)

    return write


def test_a_claim_has_the_rows_that_it_compares_at_its_own_seeds(write: Write) -> None:
    write(HEAD + LOWER)
    [claim] = load_claims()
    assert [(cell.network, cell.row, len(cell.runs)) for cell in claim.table.cells] == [
        (network, row, 4) for network in "AB" for row in ("SGD", "SAM")
    ]
    assert [sorted(place) for place in claim.places] == [["SAM", "SGD"]] * 2


def test_a_claim_may_name_networks_and_a_group(write: Write) -> None:
    write(HEAD + "    group: two\n    networks: [A]\n    comparisons: [{a: [RST, GNR], b: SGD, expect: lower}]\n")
    [claim] = load_claims()
    assert {(cell.group, cell.network) for cell in claim.table.cells} == {("", "A"), ("two", "A")}
    assert claim.content.comparisons[0].a == {"RST": 1, "GNR": 1}


def test_the_rows_of_the_gap_are_needed_too(write: Write) -> None:
    write(HEAD + "    group: one\n    comparisons: [{a: RST, b: SAM, expect: equal, margin: 0.1}]\n")
    [claim] = load_claims()
    assert claim.content.rows == ["RST", "SAM", "SGD"]


def test_names_of_claims_and_of_tables_are_told_apart(write: Write) -> None:
    write(HEAD + LOWER)
    assert split(["few", "first", "tables", "claims", "fwe"]) == (["few", "tables", "fwe"], ["first", "claims"])
    with pytest.raises(InputError, match=r"there is no table or claim frist: did you mean first\?"):
        split(["few", "frist"])


WRONG = {
    "an unknown key": (
        HEAD + "    margn: 1\n" + LOWER,
        "claims.yaml, line 8, claims.first.margn: there is no such key",
    ),
    "an unknown key of a comparison": (
        HEAD + "    comparisons:\n    - {a: SAM, b: SGD, expect: lower, margn: 0.1}\n",
        "claims.yaml, line 9, claims.first.comparisons.margn: there is no such key: write margin.",
    ),
    "a direction that does not exist": (
        HEAD + "    comparisons: [{a: SAM, b: SGD, expect: higher}]\n",
        "claims.yaml, line 8, claims.first.comparisons.expect: write lower, equal or not_higher.",
    ),
    "no margin": (
        HEAD + "    comparisons: [{a: SAM, b: SGD, expect: equal}]\n",
        "claims.yaml, line 8, claims.first.comparisons: expect: equal: write margin: <a share of the gap>.",
    ),
    "a margin too many": (
        HEAD + "    comparisons: [{a: SAM, b: SGD, expect: lower, margin: 0.1}]\n",
        "claims.yaml, line 8, claims.first.comparisons: expect: lower: leave margin out.",
    ),
    "a weight of nothing": (
        HEAD + "    comparisons: [{a: {SAM: 0}, b: SGD, expect: lower}]\n",
        "claims.yaml, line 8, claims.first.comparisons.a: write a row, a list of rows, or rows with weights above 0",
    ),
    "one seed": (
        (HEAD + LOWER).replace("paper: 4", "paper: 1"),
        "claims.yaml, line 1, seeds.paper: write an integer from 2 to 1000.",
    ),
    "another scale": ((HEAD + LOWER).replace("paper", "cpu"), "claims.yaml, line 1, seeds: there is none for scale=pa"),
    "a table that does not exist": (
        (HEAD + LOWER).replace("few", "fwe"),
        "claims.yaml, line 3, claims.first: there is no table fwe: choose one of few.",
    ),
    "a row that does not exist": (
        HEAD + LOWER.replace("SAM", "SMA"),
        "claims.yaml, line 3, claims.first: few.yaml has no row SMA for A",
    ),
    "a row of some networks alone": (
        HEAD + "    comparisons: [{a: GNR, b: SGD, expect: lower}]\n",
        "claims.yaml, line 3, claims.first: few.yaml has no row GNR for B",
    ),
    "a row of two groups": (
        HEAD + "    comparisons: [{a: RST, b: SGD, expect: lower}]\n",
        "claims.yaml, line 3, claims.first: few.yaml has RST in several groups: write group: <one of them>.",
    ),
    "a network that does not exist": (
        HEAD + "    networks: [C]\n" + LOWER,
        "claims.yaml, line 3, claims.first: few.yaml has these rows for no network C",
    ),
    "a group that does not exist": (
        HEAD + "    group: tow\n" + LOWER,
        "claims.yaml, line 3, claims.first: few.yaml has these rows for no group tow: leave it out, or choose other",
    ),
    "no keys": ("", "claims.yaml, line 1: the file of claims has keys, seeds and claims."),
}


@pytest.mark.parametrize("about", WRONG)
def test_a_wrong_file_is_refused_with_file_line_and_key(write: Write, about: str) -> None:
    text, message = WRONG[about]
    write(text)
    with pytest.raises(InputError) as refused:
        list(load_claims())
    assert str(refused.value).startswith(message)


def test_the_projects_claims_name_rows_that_exist_at_the_digits() -> None:
    claims = list(load_claims(["scale=digits"]))
    assert len(claims) > 30
    assert all(claim.runs and claim.seeds == 10 for claim in claims)
