"""Readers are told what the images and networks really are."""

from dataclasses import replace

import pytest

from rst.experiments.report.labels import datasets_of, images_of, networks_of, unlike_the_paper
from rst.experiments.report.naming import command_of, stem_of, title_of
from rst.experiments.tables.expansion import Table, load_table


def labels(table: Table) -> list[list[str]]:
    return [list(dict.fromkeys(names)) for names in (networks_of(table.cells), datasets_of(table.cells))]


@pytest.mark.parametrize(
    ("overrides", "networks", "datasets", "images"),
    [
        ([], ["ResNet18", "WRN28-10"], ["CIFAR-10", "CIFAR-100"], "CIFAR-10 and CIFAR-100"),
        (["scale=gpu"], ["ResNet18", "WRN28-10"], ["CIFAR-10", "CIFAR-100"], "CIFAR-10 and CIFAR-100"),
        (
            ["scale=digits"],
            ["slim ResNet18", "slim WRN28-10"],
            ["digits, 20 % wrong labels", "digits, 40 % wrong labels"],
            "digits, 20 % and 40 % wrong labels",
        ),
        (
            ["scale=smoke"],
            ["slim ResNet18", "slim WRN28-10"],
            ["digits as CIFAR-10", "digits as CIFAR-100"],
            "digits as CIFAR-10 and digits as CIFAR-100",
        ),
        (
            ["dataset.label_noise=0.125"],
            ["ResNet18", "WRN28-10"],
            ["CIFAR-10, 12.5 % wrong labels", "CIFAR-100, 12.5 % wrong labels"],
            "CIFAR-10, 12.5 % wrong labels and CIFAR-100, 12.5 % wrong labels",
        ),
    ],
)
def test_a_label_says_what_the_images_and_networks_are(
    overrides: list[str], networks: list[str], datasets: list[str], images: str
) -> None:
    table = load_table("table01", overrides)
    assert labels(table) == [networks, datasets]
    assert images_of(table.cells) == images


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["scale=gpu"], "epochs"),
        (["scale=cpu"], "images, networks and epochs"),
        (["dataset.source=digits"], "images, networks and epochs"),
    ],
)
def test_what_is_not_as_in_the_paper_is_named(overrides: list[str], what: str) -> None:
    assert unlike_the_paper(load_table("table01", overrides).cells) == what


def test_data_sets_that_get_one_label_are_kept_apart() -> None:
    table = load_table("table01", ["scale=digits", "dataset.label_noise=0.1"])
    _, datasets = labels(table)
    assert datasets == ["digits, 10 % wrong labels", "digits, 10 % wrong labels (2)"]


def test_an_own_name_of_a_data_set_stays() -> None:
    table = load_table("table01", ["scale=digits"])
    assert set(datasets_of([replace(cell, dataset="Noisy") for cell in table.cells])) == {"Noisy"}


def test_titles_and_file_names_of_a_scale_say_so() -> None:
    at_digits, at_paper = load_table("table01", ["scale=digits"]), load_table("table01")
    assert title_of(at_digits) == "SGD and SAM: digits, 20 % and 40 % wrong labels"
    assert stem_of(at_digits) == "table01-digits"
    assert (title_of(at_paper), stem_of(at_paper)) == ("SGD and SAM", "table01")


def test_the_command_behind_a_table_is_one_that_exists() -> None:
    assert command_of(load_table("table01", ["scale=digits"])) == "make table01 SCALE=digits"
    assert command_of(load_table("noise", ["scale=digits"])) == "python scripts/sweep.py noise scale=digits --report"
