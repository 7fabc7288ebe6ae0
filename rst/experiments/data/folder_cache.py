"""What is known of a folder of images, its digest and its numbers, and kept in the cache of data sets."""

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from rst.experiments.data.image_folders import ImageFolders, Layout, class_folders, layout, open_folders
from rst.experiments.errors import InputError, bad_input
from rst.experiments.files import write_atomically

ILSVRC_2012 = (1_000, 1_281_167, 50_000)
"""How many classes, training images and validation images ILSVRC 2012 has."""

KEPT = "folder_digests.json"
"""The file in the cache in which `folder_facts` keeps its answers."""

SETTLED = 2 * 10**9
"""Nanoseconds after a change of a folder from which a further change is sure to show in its modification time."""


@dataclass(frozen=True)
class FolderFacts:
    """What is known of a folder of images once its files are listed."""

    digest: str | None
    """`ImageFolders.digest`; None where the images are ILSVRC 2012 itself, as its numbers of images and the names of
    its classes, such as n01440764, say."""
    classes: int
    train: int
    """How many training images."""
    test: int


def folder_facts(name: str, root: str | Path, cache: str | Path) -> FolderFacts:
    """List the images of the data set ``name``, "imagenet" or "folder".

    Listing a million files takes a minute, so the answer is kept in ``cache``. It holds for as long as the modification
    times of the folders of splits and classes stay: adding, deleting or renaming a file changes them, writing to a file
    that is there does not (see `forget_facts`). A cache that cannot be written is no error.

    Raises:
        InputError: the folders are missing or incomplete, or cannot be read.
    """
    file = Path(cache) / KEPT
    with bad_input():
        found = layout(name, root)
        folder, times = str(found.root.resolve()), modification_times(found)
        state = sha256(repr(times).encode()).hexdigest()
        kept = read_kept(file).get(folder, {})
        if kept.pop("times", None) == state and kept.keys() == FolderFacts.__annotations__.keys():
            return FolderFacts(**kept)
        folders = open_folders(name, root)
        digest = None if is_ilsvrc_2012(folders) else folders.digest
        facts = FolderFacts(digest, len(folders.classes), len(folders.train), len(folders.test))
        # A change in a folder below a class folder does not show in the times, nor one right after another change.
        flat = all(name.count(b"/") == 1 for files in (folders.train, folders.test) for name in files.names)
        if flat and time.time_ns() - max(times.values()) > SETTLED:
            write_kept(file, {**read_kept(file), folder: {"times": state, **asdict(facts)}})
    return facts


def forget_facts(root: Path, cache: str | Path) -> None:
    """Delete the answer that `folder_facts` keeps for a folder, because a file in it has been overwritten since."""
    file = Path(cache) / KEPT
    kept = read_kept(file)
    if kept.pop(str(root.resolve()), None):
        write_kept(file, kept)


def modification_times(found: Layout) -> dict[str, int]:
    """The modification times, in nanoseconds, of the folders of the splits and of their classes."""

    def folders() -> Iterator[Path]:
        for split in filter(None, (found.train, found.test)):
            yield split
            yield from (split / name for name in class_folders(split))

    return {os.path.relpath(folder, found.root): folder.stat().st_mtime_ns for folder in folders()}


def is_ilsvrc_2012(folders: ImageFolders) -> bool:
    """Whether the numbers of images and the names of the classes are those of ILSVRC 2012."""
    numbers = (len(folders.classes), len(folders.train), len(folders.test))
    return numbers == ILSVRC_2012 and all(re.fullmatch(r"n[0-9]{8}", name) for name in folders.classes)


def read_kept(file: Path) -> dict[str, dict[str, Any]]:
    """The answers in the cache, by folder; none if the file is damaged."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    entries = content.items() if isinstance(content, dict) else ()
    return {folder: entry for folder, entry in entries if isinstance(entry, dict)}


def write_kept(file: Path, answers: dict[str, dict[str, Any]]) -> None:
    """Replace the answers in the cache, or leave them as they are if the cache cannot be written."""
    with suppress(OSError, InputError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(answers, indent=1))
