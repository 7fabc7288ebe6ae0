"""A run goes on, and prints its result, only on the images that it began on; it says what else has changed since."""

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stopped_runs import a_signal

from rst.experiments.compose import compose
from rst.experiments.data import folder_cache
from rst.experiments.errors import InputError
from rst.experiments.launch import local
from rst.experiments.runs.identity import run_id
from rst.experiments.runs.record import Record, open_record
from rst.experiments.spec import RunSpec
from rst.experiments.tables.expansion import PlannedRun
from rst.experiments.training import Interrupted, train

sys.path.append(str(Path(__file__).parents[1] / "data"))

from image_tree import make_image_tree

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
Config = Callable[..., RunSpec]


def begun(spec: RunSpec) -> Record:
    """The record of a run that was stopped after its first step."""
    with a_signal(signal.SIGINT, "step", 1), pytest.raises(Interrupted):
        train(spec, show_progress=False)
    return open_record(spec)


def rewrite_last_start(record: Record, **changes: Any) -> None:
    """Let the latest line of ``starts.jsonl`` say something else."""
    file = record.folder / "starts.jsonl"
    *lines, last = map(json.loads, file.read_text().splitlines())
    file.write_text("".join(json.dumps(line) + "\n" for line in (*lines, last | changes)))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_image_tree(tmp_path / "images")


def spec_of(images: Path) -> RunSpec:
    """A run of a slim network on a folder of images, which takes a second."""
    return compose(
        [
            *("scale=smoke", "dataset=imagenet", "model=resnet50", "device=cpu", "dataset.num_classes=3"),
            *("dataset.image_size=64", "dataset.train_images=30", "dataset.test_images=12", "recipe.batch_size=8"),
            *("recipe.perturbation_batch=8", f"dataset.root={images}"),
            *(f"paths.{key}={images.parent / key}" for key in ("cache", "runs")),
        ]
    )


def overwrite_an_image(images: Path) -> None:
    """Replace a file by another image of another size, which changes the time of no folder."""
    one, other = sorted((images / "train" / "n01").iterdir())[:2]
    assert one.stat().st_size != other.stat().st_size
    one.write_bytes(other.read_bytes())


def age(images: Path) -> None:
    """Date all folders back, so that their digest is kept in the cache."""
    for folder in [images, *images.rglob("*")]:
        os.utime(folder, (1_600_000_000, 1_600_000_000))


def test_a_run_does_not_go_on_where_an_image_was_overwritten(images: Path) -> None:
    spec = spec_of(images)
    record = begun(spec)
    overwrite_an_image(images)
    with pytest.raises(InputError, match=rf"^dataset\.digest={spec.dataset.digest}, but the images in .* have digest"):
        train(spec, show_progress=False)
    assert len(record.starts) == 1
    assert run_id(spec_of(images)) != record.id


def test_a_run_on_the_images_of_the_published_data_set_does_not_go_on_on_others(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its id has no digest, as the name of the data set says which images these are."""
    monkeypatch.setattr(folder_cache, "is_ilsvrc_2012", lambda folders: True)
    spec = spec_of(images)
    record = begun(spec)
    overwrite_an_image(images)
    assert run_id(spec_of(images)) == record.id
    with pytest.raises(InputError) as refusal:
        train(spec_of(images), show_progress=False)
    assert f"{record.id} was begun on images with digest {record.environment['data_digest'][:12]}" in str(refusal.value)
    assert str(refusal.value).endswith("give those, or write force=true to start anew.")
    assert len(record.starts) == 1


@pytest.mark.parametrize("published", [False, True], ids=["an own folder", "the published data set"])
def test_a_run_that_is_done_does_not_print_its_result_where_an_image_was_overwritten(
    images: Path, published: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_cache, "is_ilsvrc_2012", lambda folders: published)
    age(images)
    record = train(spec_of(images), show_progress=False)
    assert train(spec_of(images), show_progress=False).summary == record.summary
    overwrite_an_image(images)
    assert run_id(spec_of(images)) == record.id  # The times of the folders do not show the change.
    words = f"{record.id} was begun on images with digest" if published else r"^dataset\.digest=.* have digest"
    with pytest.raises(InputError, match=words):
        train(spec_of(images), show_progress=False)
    if not published:
        assert run_id(spec_of(images)) != record.id  # The digest that was kept is forgotten.


def test_a_run_that_is_done_does_not_print_its_result_where_its_folder_is_not_there(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_cache, "is_ilsvrc_2012", lambda folders: True)
    spec = spec_of(images)
    record = train(spec, show_progress=False)
    nowhere = spec.changed(dataset={"root": str(images.parent / "nowhere")})
    assert run_id(nowhere) == record.id
    with pytest.raises(InputError, match=r"^No ImageNet images \(.*nowhere has no train and no val"):
        train(nowhere, show_progress=False)


def test_a_sweep_refuses_runs_that_are_done_on_other_images_than_those_that_are_here(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_cache, "is_ilsvrc_2012", lambda folders: True)
    spec = spec_of(images)
    runs = [PlannedRun(spec, train(spec, show_progress=False))]
    local.check(runs)
    overwrite_an_image(images)
    with pytest.raises(InputError, match=f"{runs[0].record.id} was begun on images with digest"):
        local.check(runs)
    images.rename(images.parent / "moved")
    local.check(runs)  # Where there are no images, the records are all that there is.


def test_a_run_does_not_go_on_on_images_with_another_digest_than_its_latest_start(config: Config) -> None:
    record = begun(config())
    rewrite_last_start(record, data_digest="0123456789abcdef")
    before = {path: path.read_bytes() for path in record.folder.iterdir()}
    with pytest.raises(InputError, match=r"begun on images with digest 0123456789ab: give those, or write force=true"):
        train(config(), show_progress=False)
    assert {path: path.read_bytes() for path in record.folder.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"git_commit": "0123abc"}, "git_commit 0123abc -> "),
        ({"torch": "2.0.0", "threads": 64}, "torch 2.0.0 -> "),
        ({"compile": True}, "compile True -> False"),
    ],
    ids=str,
)
def test_a_run_that_goes_on_on_other_code_says_what_has_changed(
    changes: dict[str, Any], words: str, config: Config
) -> None:
    record = begun(config())
    [start] = record.starts
    rewrite_last_start(record, **changes)
    with pytest.warns(UserWarning, match="the run goes on, but not as it began: ") as caught:
        train(config(), show_progress=False)
    (sentence,) = (str(warning.message) for warning in caught)
    assert words in sentence
    assert record.starts == [start | changes, start]


def test_a_run_that_goes_on_with_another_flag_says_so(config: Config) -> None:
    begun(config())
    with pytest.warns(UserWarning, match="not as it began: channels_last False -> True"):
        train(config("channels_last=true"), show_progress=False)


def test_a_run_that_goes_on_as_it_began_says_nothing(config: Config) -> None:
    begun(config())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(config(), show_progress=False)
