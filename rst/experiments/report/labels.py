"""What a reader is told that a cell or a table is of: networks and data sets, by what they really are."""

from collections.abc import Callable, Iterable, Sequence

from rst.experiments.spec import RunSpec
from rst.experiments.tables.expansion import Cell

SPELLINGS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet"}
"""The data sets of the paper, as a reader should see them. Table files keep the paper's own spelling, "Cifar10"."""
FULL_SIZE = ("paper", "gpu")
"""The scales whose networks are the paper's own; at others they are slim versions."""


def network_of(cell: Cell) -> str:
    """The cell's network, as a reader should call it: a slim version is called so."""
    return f"slim {cell.network}" if cell.network and cell.spec.scale not in FULL_SIZE else cell.network


def unlike_the_paper(cells: Sequence[Cell]) -> str:
    """What of these cells, none of which is the paper's own, is not as in the paper."""
    on_digits = any("digits" in (cell.spec.dataset.name, cell.spec.dataset.source) for cell in cells)
    return "epochs" if cells[0].spec.scale in FULL_SIZE and not on_digits else "images, networks and epochs"


def dataset_of(cell: Cell) -> str:
    """The cell's data set, as a reader should call it; empty where the table names none.

    A name of the paper stays only where the images are those of that data set: at scale ``digits`` its Cifar10 is
    "digits, 20 % wrong labels". A name that is not the paper's is the author's own, and stays as it is.
    """
    if cell.dataset.lower() in SPELLINGS or cell.spec.stands_in:
        return cell.dataset and _described(_images_of(cell.spec, cell.dataset), [cell.spec.dataset.label_noise])
    return cell.dataset


def images_of(cells: Iterable[Cell]) -> str:
    """The images of the cells, each kind once with its shares of wrong labels: "digits, 20 % and 40 % wrong labels"."""
    kinds: dict[str, list[float]] = {}
    for cell in cells:
        shares = kinds.setdefault(_images_of(cell.spec), [])
        if cell.spec.dataset.label_noise not in shares:
            shares.append(cell.spec.dataset.label_noise)
    return " and ".join(_described(name, shares) for name, shares in kinds.items())


def _images_of(spec: RunSpec, called: str = "") -> str:
    name = SPELLINGS.get(spec.dataset.name, spec.dataset.name)
    return f"digits as {SPELLINGS.get(called.lower(), called) or name}" if spec.stands_in else name


def _described(images: str, shares: Sequence[float]) -> str:
    return f"{images}, {' and '.join(f'{100 * share:g} %' for share in shares)} wrong labels" if any(shares) else images


def networks_of(cells: Sequence[Cell]) -> list[str]:
    """`network_of` each cell; networks that the table keeps apart get two labels."""
    return _apart(cells, [cell.network for cell in cells], network_of)


def datasets_of(cells: Sequence[Cell]) -> list[str]:
    """`dataset_of` each cell; data sets that the table keeps apart get two labels, though their images be the same."""
    return _apart(cells, [cell.dataset for cell in cells], dataset_of)


def _apart(cells: Sequence[Cell], keys: Sequence[str], label_of: Callable[[Cell], str]) -> list[str]:
    owners: dict[str, list[str]] = {}
    labels = []
    for cell, key in zip(cells, keys, strict=True):
        own = owners.setdefault(label_of(cell), [])
        if key not in own:
            own.append(key)
        number = own.index(key) + 1
        labels.append(f"{label_of(cell)} ({number})" if number > 1 else label_of(cell))
    return labels
