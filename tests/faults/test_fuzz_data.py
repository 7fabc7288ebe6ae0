"""Damaged and wrong files of images, and a damaged data cache: one sentence names them, and no code in them runs."""

import io
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_tree import make_own_images
from PIL import Image

from rst.experiments.data.cifar_files import KNOWN

from .answers import PREPARE, SHOW, TRAIN, Wrong, answer_all, contents, defect, run
from .wrong_files import DAMAGES, damage, evil_pickles, saved

pytestmark = pytest.mark.faults


def write_parquet(file: Path, table: dict[str, Any]) -> None:
    """Write the columns of a table to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), file)


def png(side: int) -> bytes:
    """A black square picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


def wrong_data(folder: Path) -> Iterator[tuple[str, Path]]:
    """Folders in which CIFAR-10 is damaged or wrong, each with a description. Its two images are not CIFAR-10's."""
    image, small = ({"bytes": png(side), "path": None} for side in (32, 8))
    columns: dict[str, dict[str, Any]] = {
        "right": {"img": [image, image], "label": [0, 1]},
        "no image": {"img": [{"bytes": b"nonsense", "path": None}], "label": [0]},
        "null image": {"img": [image, None], "label": [0, 1]},
        "null bytes": {"img": [{"bytes": None, "path": "x"}], "label": [0]},
        "image of another size": {"img": [small], "label": [0]},
        "images as texts": {"img": ["a", "b"], "label": [0, 1]},
        "labels as texts": {"img": [image], "label": ["cat"]},
        "label out of range": {"img": [image], "label": [10]},
        "label below zero": {"img": [image], "label": [-1]},
        "label null": {"img": [image], "label": [None]},
        "label a fraction": {"img": [image], "label": [[0.5]]},
        "no rows": {"img": pa.array([], pa.struct([("bytes", pa.binary())])), "label": pa.array([], pa.int64())},
    }
    for name, table in columns.items():
        for split in ("train", "test"):
            write_parquet(folder / name / f"{split}-00000-of-00001.parquet", table)
        yield name, folder / name
    for kind in DAMAGES:
        shutil.copytree(folder / "right", folder / kind)
        damage(folder / kind / "train-00000-of-00001.parquet", kind)
        yield f"train {kind}", folder / kind
    shutil.copytree(folder / "right", folder / "no test")
    (folder / "no test" / "test-00000-of-00001.parquet").unlink()
    yield "no test", folder / "no test"
    write_parquet(folder / "gap" / "train-00001-of-00002.parquet", columns["right"])
    yield "gap", folder / "gap"
    write_parquet(folder / "columns" / "train-00000-of-00001.parquet", {"image": [1], "label": [0]})
    yield "no column img", folder / "columns"
    for name, content in (evil_pickles() | {"garbage batch": b"\x80garbage", "empty batch": b""}).items():
        batches = folder / name / "cifar-10-batches-py"
        batches.mkdir(parents=True)
        for file in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
            (batches / file).write_bytes(content)
        yield name, folder / name


def wrong_folders(folder: Path) -> Iterator[tuple[str, Path]]:
    """Folders of a user's own images that are wrong in one thing, each with a description."""
    empty = {"no folder": (), "no class": ("",), "hidden classes": (".cat", ".dog"), "no images": ("cat", "dog")}
    for name, classes in empty.items():
        for own in classes:
            (folder / name / own).mkdir(parents=True)
        yield name, folder / name
    shapes = {"one class": (3, ("cat",)), "one image a class": (1, ("cat", "dog"))}
    for name, (images, classes) in shapes.items():
        yield name, make_own_images(folder / name, images, classes)
    for name in ("test alone", "other classes", "no test image", "train is a file"):
        train = make_own_images(folder / name / "train", 3)
        test = make_own_images(folder / name / "test", 3, ("cat", "dog", "fox" if name == "other classes" else "emu"))
        if name in ("test alone", "train is a file"):
            shutil.rmtree(train)
        if name == "train is a file":
            train.touch()
        for file in (test / "emu").iterdir() if name == "no test image" else ():
            file.rename(file.with_suffix(".txt"))
        yield name, folder / name
    for kind in DAMAGES:
        make_own_images(folder / kind, 3)
        for file in (folder / kind / "cat").iterdir():
            damage(file, kind)
        yield kind, folder / kind
    for name, content in evil_pickles().items():
        make_own_images(folder / name, 3)
        for file in (folder / name / "dog").iterdir():
            file.write_bytes(content)
        yield name, folder / name


@pytest.mark.parametrize("script", [SHOW, TRAIN])
def test_wrong_folders_of_own_images_are_refused_in_one_sentence_and_no_code_in_them_runs(
    script: str, project: Path, tmp_path: Path
) -> None:
    words = ["dataset=folder", "dataset.image_size=32", "model=wrn10_1", "recipe.batch_size=6", "recipe.epochs=1"]
    words += ["scheme=sgd", "device=cpu", "wandb.mode=disabled"]
    defects = []
    for name, root in list(wrong_folders(tmp_path / "folders"))[:: 1 if script == SHOW else 3]:  # A run takes seconds.
        command = Wrong(script, [*words, f"dataset.root='{root}'"])
        before = contents(root)
        found = defect(script, run(script, command.arguments))
        runs = project / "results" / "runs"
        for record in runs.glob("folder-*"):  # The images of a run are decoded while it trains.
            found += f" and ended {record.name}" * (record / "summary.json").exists()
            shutil.rmtree(record)
        found += " and changed the images" * (contents(root) != before)
        defects += [f"{name}: {found}"] if found else []
    assert not (project / "canary").exists()
    assert defects == [], "\n".join(defects)


def test_wrong_data_is_refused_in_one_sentence_and_no_code_in_it_runs(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With two images in each split, only the digest says that they are not CIFAR-10's.
    monkeypatch.setitem(KNOWN, "cifar10", replace(KNOWN["cifar10"], train_images=2, test_images=2))
    two = ["dataset=cifar10", "dataset.train_images=2", "dataset.test_images=2"]
    two += ["recipe.batch_size=2", "recipe.perturbation_batch=1"]
    defects = []
    for name, root in wrong_data(tmp_path / "data"):
        commands = [Wrong(PREPARE, ["cifar10", "--root", str(root)]), Wrong(SHOW, [*two, f"dataset.root='{root}'"])]
        defects += [f"{name}: {found}" for found in answer_all(commands, project)]
    assert defects == [], "\n".join(defects)


def test_a_wrong_cache_is_named_and_runs_no_code_and_stays_if_there_are_no_images_to_replace_it(project: Path) -> None:
    file = project / "data" / "cache" / "cifar10.pt"
    wrong = evil_pickles() | {
        "garbage": b"garbage",
        "empty": b"",
        "other": saved([1]),
        "splits": saved({"train": (1, 2), "test": 3}),
    }
    for content in wrong.values():
        file.write_bytes(content)
        before = contents(project)
        answer = run(PREPARE, ["cifar10"])
        warning, sentence = answer.err.splitlines()
        assert answer.code == 1
        assert f"{file.relative_to(project)} is damaged" in warning
        assert sentence.startswith("prepare_data.py: No cifar10 images")
        assert contents(project) == before
