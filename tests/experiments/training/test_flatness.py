"""``measure_sharpness``: what a run says of its minimum, and that this changes nothing else of the run."""

import time
from datetime import timedelta
from functools import partial

import pytest
import torch
from conftest import on_ranks
from stopped_runs import whole_checkpoints
from torch.nn import functional as F

import rst
from rst.experiments.build import build_model
from rst.experiments.data.run_data import RunData
from rst.experiments.runs.identity import run_id
from rst.experiments.runs.record import Record
from rst.experiments.training import checkpoint, flatness, loop, ranks, train

KEYS = {"gradient_norm", "sharpness", "lambda_max", "lambda_max_converged"}
CPU = torch.device("cpu")


def weights(record: Record) -> dict[str, torch.Tensor]:
    return checkpoint.load(record.checkpoint)["model"]


def test_the_summary_has_what_the_library_measures_of_the_network_in_the_checkpoint(config):
    """On the training images, with their wrong labels, not augmented; in evaluation mode; without decay."""
    spec = config("measure_sharpness=true", "dataset.label_noise=0.3", "recipe.l2=0.01", "recipe.rho=0.2", "scheme=sam")
    record = train(spec, show_progress=False)
    model, train_images = build_model(spec, CPU), RunData(spec, CPU).train
    model.load_state_dict(weights(record))
    pixels = train_images.images.double() / 255
    mean, std = (torch.tensor(v).double()[:, None, None] for v in (spec.dataset.mean, spec.dataset.std))
    x, y = ((pixels - mean) / std).float(), train_images.labels
    model.eval()
    found = rst.sharpness(model, lambda batch: F.cross_entropy(model(batch), y, reduction="none"), [x], 0.2)
    assert len(y) == 100
    for key in ("gradient_norm", "sharpness", "lambda_max"):
        assert record.summary[key] == pytest.approx(getattr(found, key), rel=1e-3)
    assert record.summary["lambda_max_converged"] is found.converged


def test_a_run_that_does_not_ask_measures_nothing(config, monkeypatch):
    monkeypatch.setattr(loop, "flatness", lambda *arguments: pytest.fail("it was measured"))
    assert not KEYS & train(config(), show_progress=False).summary.keys()


def test_measuring_changes_neither_the_id_nor_another_result(config, tmp_path):
    asked = config("measure_sharpness=true", "dataset.train_images=40", f"paths.runs={tmp_path / 'asked'}")
    plain = config("dataset.train_images=40")
    assert run_id(asked) == run_id(plain)
    one, other = train(asked, show_progress=False), train(plain, show_progress=False)
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=0)
    timed = {"train_seconds", "images_per_second", "checkpoint_seconds", "peak_memory_bytes"}
    assert one.summary.keys() - other.summary.keys() == KEYS
    assert all(one.summary[key] == other.summary[key] for key in other.summary.keys() - timed)


def test_measuring_is_not_in_the_training_time(config, monkeypatch):
    def slow(*arguments):
        time.sleep(1.0)
        return {"lambda_max": 1.0}

    monkeypatch.setattr(loop, "flatness", slow)
    begin = time.perf_counter()
    summary = train(config("measure_sharpness=true"), show_progress=False).summary
    assert summary["lambda_max"] == 1.0
    assert summary["train_seconds"] <= time.perf_counter() - begin - 1.0


def test_only_so_many_images_are_measured_in_batches_of_a_stated_size(config, monkeypatch):
    sizes = []

    def noted(model, loss, data, rho):
        sizes.extend(len(y) for _, y in data)
        assert not model.training
        return sharpness(model, loss, data[:1], rho, max_iterations=1)

    sharpness = rst.sharpness
    monkeypatch.setattr(rst, "sharpness", noted)
    monkeypatch.setattr(flatness, "IMAGES", 70)
    train(config("measure_sharpness=true"), show_progress=False)
    assert sizes == [32, 32, 6]


def test_a_run_whose_sharpness_cannot_be_measured_keeps_its_other_results_and_says_why(config, monkeypatch):
    def fails(*arguments):
        raise RuntimeError("CUDA out of memory\nand more")

    monkeypatch.setattr(rst, "sharpness", fails)
    with pytest.warns(UserWarning, match=r"^the sharpness of the run is not known: CUDA out of memory\.$"):
        summary = train(config("measure_sharpness=true"), show_progress=False).summary
    assert {key: summary[key] for key in KEYS} == dict.fromkeys(KEYS)
    assert summary["test_error"] >= 0


def test_a_run_that_is_done_is_not_measured_afterwards(config):
    before = train(config(), show_progress=False).summary
    assert train(config("measure_sharpness=true"), show_progress=False).summary == before


def test_a_run_that_was_begun_without_it_measures_at_its_end_where_the_last_command_asks(config):
    with whole_checkpoints():
        record = train(config(), show_progress=False)
    (record.folder / "summary.json").unlink()  # As of a run that was killed before its last write.
    assert train(config("measure_sharpness=true"), show_progress=False).summary.keys() >= KEYS


def first_of_impatient_ranks() -> str:
    """What the first rank returns after longer than ranks usually wait for each other."""
    ranks.TIMEOUT = timedelta(seconds=2)
    with ranks.joined(2) as world:
        return world.first_at_length(lambda: time.sleep(6) or "measured")


def test_the_other_ranks_wait_for_the_first_longer_than_for_each_other():
    assert on_ranks(first_of_impatient_ranks, (), ()) == ["measured"] * 2


def test_two_ranks_measure_once_on_all_images_with_the_buffers_of_both(config, monkeypatch):
    spec = config("measure_sharpness=true", "devices=2", "dataset.train_images=40")
    records = on_ranks(partial(train, show_progress=False), (spec,), (spec,))
    summary = records[0].summary
    model, data = build_model(spec, CPU), RunData(spec, CPU)
    model.load_state_dict(weights(records[0]))
    expected = flatness.flatness(spec, model, data)
    assert {key: summary[key] for key in KEYS} == pytest.approx(expected, rel=1e-3)
