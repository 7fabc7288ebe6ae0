"""Files of checkpoints: whatever happens to one, or to the process that writes it, a whole one is found."""

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rst.experiments.errors import InputError
from rst.experiments.training import checkpoint


def content_of(step: int) -> dict:
    return {"id": "a", "config": "", "model": {"weight": torch.full((100,), float(step))}, "step": step}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.pt"


@pytest.fixture
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.usefixtures("no_warning")
def test_the_newest_is_found_and_the_one_before_is_kept(path):
    assert checkpoint.newest(path) is None
    for step in range(3):
        checkpoint.save(path, content_of(step))
        assert checkpoint.newest(path)["step"] == step
    assert checkpoint.load(path.with_name("checkpoint.previous.pt"))["step"] == 1
    assert sorted(os.listdir(path.parent)) == ["checkpoint.previous.pt", "checkpoint.pt"]


class Killed(BaseException):
    """The process ends here."""


STEPS_OF_WRITING = ("fsync", "replace")


def killed_at(call: int) -> Callable[[pytest.MonkeyPatch], None]:
    """Let the process end before its ``call``-th call to the file system."""
    calls = 0

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        for name in STEPS_OF_WRITING:
            real = getattr(os, name)

            def counted(*arguments: object, real: Callable = real) -> object:
                nonlocal calls
                calls += 1
                if calls == call:
                    raise Killed
                return real(*arguments)

            monkeypatch.setattr(os, name, counted)

    return patch


@pytest.mark.usefixtures("no_warning")
@pytest.mark.parametrize("damaged", [False, True], ids=["whole before", "damaged before"])
def test_at_every_moment_of_writing_a_whole_checkpoint_is_there(path, damaged):
    """With a damaged newest one, the run goes on from the one before, which must stay until the next is whole."""
    checkpoint.save(path, content_of(0))
    checkpoint.save(path, content_of(1))
    if damaged:
        path.write_bytes(b"torn")
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    found = []
    for call in range(1, 100):
        for file in path.parent.iterdir():
            file.unlink()
        for name, content in before.items():
            (path.parent / name).write_bytes(content)
        try:
            with pytest.MonkeyPatch.context() as patch:
                killed_at(call)(patch)
                checkpoint.save(path, content_of(2))
        except Killed:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found.append(checkpoint.newest(path)["step"])
            continue
        break
    assert found == sorted(found)
    assert found[0] == (0 if damaged else 1)
    assert found[-1] == 2
    assert checkpoint.newest(path)["step"] == 2


def same(a: object, b: object) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("content") / "checkpoint.pt"
    checkpoint.save(path, content_of(7))
    return path.read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "checkpoint.pt"


@settings(max_examples=200)
@given(data=st.data())
def test_a_flipped_bit_is_found_or_harmless(content, scratch, data):
    flipped = bytearray(content)
    flipped[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    scratch.write_bytes(flipped)
    try:
        state = checkpoint.load(scratch)
    except InputError:
        return
    assert same(state, content_of(7))


def test_a_flipped_bit_of_a_weight_is_found(content, scratch):
    place = content.index(torch.full((100,), 7.0).numpy().tobytes())
    scratch.write_bytes(content[: place + 42] + bytes([content[place + 42] ^ 1]) + content[place + 43 :])
    with pytest.raises(InputError, match=f"^{scratch} is damaged"):
        checkpoint.load(scratch)


@settings(max_examples=20)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_checkpoint_that_was_cut_off_is_refused(content, scratch, share):
    scratch.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match="is damaged"):
        checkpoint.load(scratch)


@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: b"", lambda c: b"something else"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_with_a_warning_of_one_line(path, damage):
    for step in range(2):
        checkpoint.save(path, content_of(step))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match=rf"^{path} .*damaged.* goes on from checkpoint\.previous\.pt\.$"):
        assert checkpoint.newest(path)["step"] == 0


def test_with_none_left_the_error_names_them_and_says_what_to_do(path):
    for step in range(2):
        checkpoint.save(path, content_of(step))
    for file in path.parent.iterdir():
        file.write_bytes(b"torn")
    with pytest.raises(InputError, match=r"checkpoint\.pt .*previous\.pt .*delete it.* starts from the beginning\.$"):
        checkpoint.newest(path)
