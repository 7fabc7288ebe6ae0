"""A sweep looks at its devices and images once, before any run starts."""

from collections.abc import Callable
from pathlib import Path

import pytest
from demo_runs import demo

from rst.experiments.data import RunData
from rst.experiments.errors import InputError
from rst.experiments.launch import local


def test_images_that_are_missing_are_one_sentence_of_the_sweep_and_no_failed_records(
    tmp_path: Path, script: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [f"paths.{key}={tmp_path / key}" for key in ("data", "cache", "runs")]
    assert script("sweep", "table01", "scale=cpu", "device=cpu", *paths) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith(f"sweep.py: there is no folder {tmp_path / 'data'} to look for")
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_missing_is_one_sentence_and_no_failed_records(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^device=cuda:99 does not exist here: take device=cpu"):
        local.check(demo(tmp_path, "device=cuda:99"))
    assert list(tmp_path.iterdir()) == []


def test_the_images_of_runs_that_share_them_are_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(local, "RunData", lambda *arguments: opened.append(RunData(*arguments)))
    local.check(demo(tmp_path, seeds=3))
    assert len(opened) == 1


def test_runs_that_are_done_need_neither_device_nor_images(tmp_path: Path) -> None:
    runs = demo(tmp_path)
    for planned in runs:
        with planned.record.training(planned.spec):
            planned.record.finish({})
    local.check([type(planned)(planned.spec.changed(device="cuda:99"), planned.record) for planned in runs])
