"""Wrong files of claims are refused in one sentence, no code in them runs, and random damage is read or refused."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from rst.experiments.errors import InputError
from rst.experiments.tables.claim_file import read_claims

from .answers import REPORT, SWEEP, Wrong, answer_all, run
from .test_fuzz_tables import NO_LISTS, WRONG_TEXTS
from .wrong_files import at_random, defects_after_random_damage

pytestmark = pytest.mark.faults

Entry = dict[str, Any]

COMPARISON: Entry = {"a": "G-RST[70%]", "b": ["SGD"], "expect": "not_higher", "margin": 0.1}
CLAIM: Entry = {
    "section": "1",
    "quote": "better",
    "claim": "G-RST is as good as SGD.",
    "table": "two",
    "metric": "test_error",
    "gap": ["SGD", "G-RST[70%]"],
    "comparisons": [COMPARISON],
}
RIGHT: Entry = {"seeds": {"paper": 2, "smoke": 2}, "claims": {"right": CLAIM}}

WRONG_OF_FILE: dict[str, list[Any]] = {
    "seeds": [None, 3, [2], {}, {"paper": 1}, {"paper": "two"}, {"paper": 1e9}, {"paper": 2.5}, {"cpu": 2}, {1: 2}],
    "claims": [None, 3, "claims", ["right"], {"a": None}, {"a": []}, {"a": "x"}, {"a": {}}],
    "claim": [{"right": CLAIM}],
    "title": ["x"],
}
WRONG_OF_CLAIM: dict[str, list[Any]] = {
    **{key: [None, 3, [], {"a": 1}] for key in ("section", "quote", "claim")},
    "table": [None, "nothing", "../tables/two", "two.yaml", ["two"], "tables", "claims", ""],
    "group": ["nothing", 3, ["a"]],
    "networks": [*NO_LISTS[1:], "wrn10_1", ["nothing"]],
    "datasets": [*NO_LISTS[1:], "digits", ["nothing"]],
    "metric": [None, "nothing", ["test_error"], "n", "outcome"],
    "gap": [None, "SGD", ["SGD"], ["SGD", "SAM"], ["SGD", None], ["SGD", "G-RST[70%]", "SGD"], {"SGD": 1}],
    "comparisons": [None, [], "a < b", [None], [[]], COMPARISON, [{}], [3]],
    "comparison": [[COMPARISON]],
    "seeds": [5],
}
WRONG_OF_COMPARISON: dict[str, list[Any]] = {
    **{side: [None, "", "SAM", ["SAM"], [], [3], 3, {}, {"SGD": 0}] for side in ("a", "b")},
    "expect": [None, "", "higher", "Lower", ["lower"], "lower", True],
    "margin": [None, 0, 1, -0.1, "0.1", [0.1], 5, True],
    "metric": ["nothing", 3, ["test_error"]],
    "c": ["SGD"],
}
WRONG_OF_COMPARISON["a"] += [{"SGD": -1}, {"SGD": "x"}, {"SGD": None}, {"SGD": float("inf")}, {"SGD": float("nan")}]


def wrong_claims() -> list[bytes]:
    """The content of files that are wrong in one thing each."""

    def changed(right: Entry, wrong: dict[str, list[Any]]) -> list[Entry]:
        return [right | {key: value} for key, values in wrong.items() for value in values]

    def lacking(right: Entry, *keys: str) -> list[Entry]:
        return [{key: value for key, value in right.items() if key != missing} for missing in keys]

    comparisons = changed(COMPARISON, WRONG_OF_COMPARISON) + lacking(COMPARISON, *COMPARISON)
    claims = [CLAIM | {"comparisons": [COMPARISON, comparison]} for comparison in comparisons]
    claims += changed(CLAIM, WRONG_OF_CLAIM) + lacking(
        CLAIM, "section", "quote", "claim", "table", "gap", "comparisons"
    )
    files = [RIGHT | {"claims": {"right": CLAIM, "wrong": claim}} for claim in claims]
    files += changed(RIGHT, WRONG_OF_FILE) + lacking(RIGHT, *RIGHT)
    texts = [json.dumps(file).replace("NaN", ".nan").replace("Infinity", ".inf").encode() for file in files]
    return texts + [text if isinstance(text, bytes) else text.encode() for text in WRONG_TEXTS]


FILES = wrong_claims()


@pytest.fixture
def file(project: Path) -> Path:
    """The file of claims of the project."""
    return project / "configs" / "claims.yaml"


def test_the_file_from_which_the_wrong_ones_are_made_is_right(file: Path) -> None:
    file.write_text(json.dumps(RIGHT))
    assert run(REPORT, ["claims"]).code == 0


def test_wrong_files_of_claims_are_refused_in_one_sentence_and_change_nothing(project: Path, file: Path) -> None:
    defects = []
    for i, text in enumerate(FILES):
        file.write_bytes(text)
        command = [Wrong(REPORT, ["claims"]), Wrong(SWEEP, ["claims"]), Wrong(REPORT, ["two", "--page"])][i % 3]
        defects += [f"{text[-200:]!r}: {found}" for found in answer_all([command], project)]
    assert not (project / "canary").exists()
    assert defects == [], "\n".join(defects)


def test_a_file_of_claims_with_random_damage_is_used_or_refused_in_one_sentence(project: Path, file: Path) -> None:
    defects = defects_after_random_damage(file, ["claims"])
    assert not (project / "canary").exists()
    assert defects == [], "\n".join(defects)


def test_the_claims_of_the_paper_with_random_damage_are_read_or_refused_with_the_file_and_the_line(file: Path) -> None:
    content, draw, sentences = (ROOT / "configs" / "claims.yaml").read_bytes(), random.Random(1), []
    for _ in range(60):
        file.write_bytes(at_random(content, draw))
        try:
            read_claims()
        except InputError as error:
            sentences.append(str(error))
    assert len(sentences) > 10
    assert [text for text in sentences if not text.startswith("claims.yaml") or text[-1] not in ".?"] == []


def test_at_least_100_different_wrong_files_of_claims_are_tried() -> None:
    print(f"\n{len(FILES)} wrong files of claims are tried.")
    assert len(set(FILES)) >= 100
