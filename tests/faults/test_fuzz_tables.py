"""Each of more than a hundred wrong table files is refused in one sentence, and no code in it runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from .answers import REPORT, TINY, Wrong, answer_all, run
from .wrong_files import defects_after_random_damage

pytestmark = pytest.mark.faults

RIGHT: dict[str, Any] = {
    "title": "a title",
    "draw": "table",
    "seeds": 1,
    "overrides": TINY,
    "networks": {"one": [], "two": ["model=wrn10_1"]},
    "datasets": {"digits": ["dataset=digits"]},
    "metrics": ["test_error"],
    "rows": {"SGD": ["scheme=sgd"], "RST[<p>]": {"overrides": ["scheme=rst", "schedule.p=<p>"], "grid": {"p": [0.5]}}},
    "groups": {
        "more": {"overrides": [], "rows": {"SAM": {"overrides": ["scheme=sam"], "not_in_paper": True, "paper": {}}}}
    },
}
NO_LISTS = [None, {"a": 1}, [None], 3]
"""Values of a key whose value must be a list of texts."""
NO_MAPPINGS: list[Any] = ["one", 3, ["one"], {"one": None}]
"""Values of a key whose value must have keys."""
WRONG_VALUES: dict[str, list[Any]] = {
    "title": [None, [1], {"a": 1}],
    "draw": [None, ["table"], "", "picture", {"a": 1}, 3, "__init__", "write"],
    "seeds": [None, -1, 1.5, "two", [1], {"a": 1}],
    "overrides": [*NO_LISTS[:3], "scheme=sgd", [["a=1"]], ["a"], [1], [{"scheme": "sgd"}], ["recipe.epoch=1"]],
    "networks": [*NO_MAPPINGS, {"one": "model=wrn10_1"}, {"one": {"a": 1}}, {"one": ["model=none"]}],
    "datasets": [*NO_MAPPINGS, {"one": "a=1"}, {"one": {"a": 1}}, {"one": ["dataset=none"]}],
    "metrics": [*NO_LISTS, "test_error", ["nothing"], [["test_error"]]],
    "paper": [["table01"], {"a": 1}, "nothing", "../paper/table01x"],
    "extends": [*NO_LISTS[:1], *NO_LISTS[2:], "two", ["nothing"], ["wrong"], {"two": 1}],
    "rows": [None, 3, "SGD", ["scheme=sgd"], *({"SGD": row} for row in (None, 3, "scheme=sgd", ["scheme=none"]))],
    "groups": ["more", 3, ["rows"], *({"a": group} for group in (None, 3, {"rows": None}, {"rows": ["x"]}))],
    "unknown": [1],
    "row": [{}],
    # Keys of earlier versions.
    "blocks": [{"one": []}],
    "columns": [{"one": []}],
    "like": [["two"]],
}
WRONG_VALUES["groups"].append({"a": {"title": "x"}})
WRONG_ROWS: list[Any] = [
    *({"overrides": "scheme=sgd"}, {"override": []}, {"grid": [1]}, *({"grid": {"p": p}} for p in (0.5, None, {}))),
    *({"not_in_paper": "perhaps"}, {"not_in_paper": [1]}, {"ours": True}),
    *({"paper": "RST"}, {"paper": {"scheme": ["a"]}}),
    *({"overrides": ["schedule.p=<p>"], "grid": {"p": [p]}} for p in (2, "x")),
    *({"overrides": [text]} for text in ("schedule.p=<q>", "a=1", "~seed", "seed=[", "paths.runs=")),
    *([[]], [{}], ["seed=1,2"]),
]
WRONG_TEXTS: list[str | bytes] = [
    # Not a mapping, or one without rows.
    *("", " \n", "#", "---", "null", "3", "text", "[]", "{}", "- a", "title: x", "title: x\nrows: {}"),
    *("title: x\nrows:\n", "rows: {SGD: []}"),
    # No YAML, or a key twice.
    *("\ttitle: x", "title:\tx\n\trows: {}", "title: [", "title: x}", "title: 'x", 'title: "x'),
    *("title: x\ntitle: y\nrows: {SGD: []}", "title: x\nrows: {SGD: [], SGD: []}"),
    # Values that contain themselves, unknown anchors, and values that grow with every line.
    *("title: &a [*a]", "&a\ntitle: x\nrows: *a", "title: x\nrows: &r\n  SGD: *r", "title: *b"),
    "title: x\nrows:\n  SGD: &s\n    overrides: [*s]",
    "a: &a [x,x,x]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]\ntitle: *c",
    # Keys that are not texts, a wrong indent, several documents.
    *("title: x\nrows: {1: []}\nseeds: 1\nrow s: 2", "title: x\n rows: {}", "title: x\n---\ntitle: y"),
    *("? [a, b]\n: 1", "{a: 1}: 2", "title: x\nrows: {? : []}", "title: x\nrows: {[1]: []}"),
    "title: x\nrows: {null: 1}",
    # Tags, of which some would run code.
    *("title: !!python/object/apply:os.system [touch canary]", "!!python/name:os.system", "title: !nothing x"),
    *("title: x: y", "%YAML 9.9\n---\na"),
    # Overrides with interpolations that lead nowhere, and with OmegaConf's sign of a missing value.
    *(f"title: x\nrows: {{SGD: ['seed={value}']}}" for value in ("${nowhere}", "???", "${oc.env:NOT_SET}")),
    # Bytes that are no text, and depth.
    *(b"\x00", b"\xff\xfe", b"\x80title: x", b"PK\x03\x04" + bytes(range(256)), "title: x\x07", "\ufefftitle"),
    "title: x\nrows: {SGD: [\udcff".encode("utf-8", "surrogateescape"),
    *("[" * 3000, "a: " * 500, "{" * 2000, "title: x\nrows: " + "{a: " * 200),
]


def wrong_tables() -> list[bytes]:
    """The content of files that are wrong in one thing each."""
    files: list[Any] = [RIGHT | {key: value} for key, values in WRONG_VALUES.items() for value in values]
    for missing in (["title"], ["rows", "groups"]):
        files.append({key: value for key, value in RIGHT.items() if key not in missing})
    files += [RIGHT | {"rows": {"SGD": ["scheme=sgd"], "RST": row}} for row in WRONG_ROWS]
    texts = [json.dumps(file).encode() for file in files]  # JSON is YAML too.
    return texts + [text if isinstance(text, bytes) else text.encode() for text in WRONG_TEXTS]


TABLES = wrong_tables()


def test_the_table_file_from_which_the_wrong_ones_are_made_is_right(project: Path) -> None:
    (project / "configs" / "tables" / "right.yaml").write_text(json.dumps(RIGHT))
    assert run(REPORT, ["right"]).code == 0


def test_wrong_table_files_are_refused_in_one_sentence_and_change_nothing(project: Path) -> None:
    defects = []
    file = project / "configs" / "tables" / "wrong.yaml"
    for text in TABLES:
        file.write_bytes(text)
        defects += [f"{text[:200]!r}: {found}" for found in answer_all([Wrong(REPORT, ["wrong"])], project)]
    assert not (project / "canary").exists()
    assert defects == [], "\n".join(defects)


def test_a_table_file_with_random_damage_is_used_or_refused_in_one_sentence(project: Path) -> None:
    file = project / "configs" / "tables" / "two.yaml"
    defects = defects_after_random_damage(file, ["two"])
    assert not (project / "canary").exists()
    assert defects == [], "\n".join(defects)


def test_at_least_100_different_wrong_table_files_are_tried() -> None:
    print(f"\n{len(TABLES)} wrong table files are tried.")
    assert len(set(TABLES)) >= 100
