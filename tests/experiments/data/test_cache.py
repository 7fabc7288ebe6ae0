"""The cache of decoded images: it is read alone, repaired when damaged, and never left incomplete."""

import os
from pathlib import Path

import pytest
import torch
from made_up_cifar import EXPECTED, assert_same, load_made_up, write_parquet


def test_a_second_load_needs_the_cache_alone(tmp_path: Path) -> None:
    root = write_parquet(tmp_path / "root")
    load_made_up(tmp_path, root)
    for file in root.iterdir():
        file.unlink()
    assert_same(load_made_up(tmp_path, root), EXPECTED)
    assert_same(load_made_up(tmp_path, None), EXPECTED)


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped bit", "other content"])
def test_a_damaged_cache_is_built_again_with_a_warning(tmp_path: Path, damage: str) -> None:
    root = write_parquet(tmp_path / "root")
    load_made_up(tmp_path, root)
    file = tmp_path / "cache" / "cifar10.pt"
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "flipped bit":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        torch.save({"weights": torch.zeros(3)}, file)
    with pytest.warns(UserWarning, match=r"cifar10\.pt is damaged: building it again"):
        assert_same(load_made_up(tmp_path, root), EXPECTED)
    assert_same(load_made_up(tmp_path, None), EXPECTED)


def test_a_failed_write_leaves_the_cache_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="No space"):
        load_made_up(tmp_path, write_parquet(tmp_path / "root"))
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(ValueError, match=r"The cache .*cache cannot be written .*paths\.cache="):
        load_made_up(tmp_path, write_parquet(tmp_path / "root"))
