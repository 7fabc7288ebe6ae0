"""Scores of a network: exact, without a trace in the training, and the same again from a checkpoint."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from rst.data import Split, evaluation_batches, load
from rst.experiments.config import InputError, load_config
from rst.experiments.record import Record
from rst.training import checkpoint, score, train
from rst.training.evaluation import evaluate
from rst.training.loop import build_model


class Network(nn.Module):
    """BatchNorm and Dropout before a linear layer: wrong in training mode."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, classes)
        self.norm(torch.randn(50, 8) * 3 + 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.norm(x), 0.5, self.training))


def examples(count: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, 8, generator=generator), torch.randint(classes, (count,), generator=generator)


def batches(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


def one_by_one(model: nn.Module, x: Tensor, y: Tensor, k: int) -> float:
    """The share, in percent, of images whose label is not among the k largest logits."""
    model.eval()
    wrong = 0
    for image, label in zip(x, y, strict=True):
        with torch.no_grad():
            logits = model(image[None])[0].tolist()
        guesses = sorted(range(len(logits)), key=lambda i: -logits[i])[:k]
        wrong += label.item() not in guesses
    return 100 * wrong / len(y)


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 60), size=st.integers(1, 70), classes=st.sampled_from([2, 10, 99, 100, 101]))
def test_errors_and_loss_are_those_of_a_loop_over_single_images(count, size, classes):
    """Whatever the batches, with the remainder of the last one."""
    model, (x, y) = Network(classes), examples(count, classes)
    scores = evaluate(model, batches(x, y, size), classes)
    assert scores["error"] == pytest.approx(one_by_one(model, x, y, 1), abs=1e-9)
    assert scores["loss"] == pytest.approx(F.cross_entropy(model.eval()(x), y).item(), rel=1e-5)
    if classes >= 100:
        assert scores["top5_error"] == pytest.approx(one_by_one(model, x, y, 5), abs=1e-9)
    else:
        assert "top5_error" not in scores


@pytest.mark.parametrize("right", [0, 7, 10])
def test_the_error_is_in_percent(right):
    x = F.one_hot(torch.arange(10) % 3, 4).float()
    y = torch.where(torch.arange(10) < right, torch.arange(10) % 3, torch.tensor(3))
    assert evaluate(nn.Identity(), [(x, y)], 4)["error"] == pytest.approx(10 * (10 - right))


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_mode_buffers_weights_gradients_and_random_numbers_alone(training):
    model, (x, y) = Network(4), examples(20, 4)
    model(x).sum().backward()
    model.train(training)

    def state() -> list[Tensor]:
        gradients = [p.grad for p in model.parameters()]
        return [tensor.clone() for tensor in [*model.state_dict().values(), *gradients, torch.get_rng_state()]]

    before = state()
    evaluate(model, batches(x, y, 6), 4)
    assert all(map(torch.equal, state(), before))
    assert {module.training for module in model.modules()} == {training}


def test_all_test_images_are_scored_in_order_and_unaugmented():
    split = Split(torch.arange(7 * 3, dtype=torch.uint8).view(7, 3, 1, 1), torch.arange(7))
    images, labels = zip(*evaluation_batches(split, 3, (0.5, 0.5, 0.5), (0.25, 0.5, 1.0), "cpu"), strict=True)
    assert [len(part) for part in labels] == [3, 3, 1]
    assert torch.equal(torch.cat(labels), split.labels)
    expected = (split.images / 255 - 0.5) / torch.tensor([0.25, 0.5, 1.0]).view(3, 1, 1)
    torch.testing.assert_close(torch.cat(images), expected)


# Of runs

DROPOUT = ("dataset=cifar10", "dataset.source=digits", "scale=smoke", "model=vgg16_bn", "dataset.train_images=128")


def test_how_often_a_run_is_evaluated_does_not_change_its_training(config, tmp_path):
    """With dropout in the network, so that a random number taken from it would show."""
    often, once = (
        train(
            config(*DROPOUT, "recipe.epochs=3", f"evaluate_every={every}", f"paths.runs={tmp_path / str(every)}"), False
        )
        for every in (1, 3)
    )
    for part in ("model", "optimizer"):
        first, second = (tree_leaves(checkpoint.load(record.checkpoint)[part]) for record in (often, once))
        assert all(
            torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(first, second, strict=True)
        ), part
    assert often.summary["test_error"] == once.summary["test_error"]


@pytest.fixture
def done(config) -> Record:
    return train(config("recipe.epochs=4", "dataset.test_images=301"), show_progress=False)


def test_the_error_of_a_run_is_that_of_its_last_weights_on_the_first_test_images(config, done):
    cfg = config("recipe.epochs=4", "dataset.test_images=301")
    test = load("digits", cache=done.folder, image_size=8, channels=1).test[:301]
    model = build_model(cfg, torch.device("cpu"))
    model.load_state_dict(checkpoint.load(done.checkpoint)["model"])
    x = (test.images / 255 - cfg.dataset.mean[0]) / cfg.dataset.std[0]
    assert done.summary["test_error"] == pytest.approx(one_by_one(model, x, test.labels, 1), abs=1e-9)


def scored(overrides: list[str]) -> dict[str, float]:
    return score(load_config(overrides), overrides)


@pytest.mark.parametrize("name", ["id", "folder", "checkpoint"])
def test_a_run_is_scored_by_its_id_its_folder_or_its_checkpoint(tmp_path, done, name):
    """Nothing else has to be said: network and data are those of the checkpoint."""
    given = getattr(done, name)
    assert scored([f"evaluate='{given}'", f"paths.runs={tmp_path / 'runs'}"])["error"] == done.summary["test_error"]


def test_the_command_line_prints_the_error_and_changes_nothing(overrides, command, done):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in done.folder.iterdir()}
    process, output = command(f"evaluate={done.id}", *(key for key in overrides if key.startswith("paths.")))
    process.join(timeout=60)
    assert process.exitcode == 0
    assert f"test error {done.summary['test_error']:.4g}" in output.read_text()
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in done.folder.iterdir()} == before


@pytest.mark.parametrize(
    "more",
    [
        ("autocast=bfloat16",),
        ("channels_last=true",),
        ("dataset=cifar100", "dataset.source=digits", "dataset.validation=10", "scheme=sgd"),
    ],
    ids=" ".join,
)
def test_it_is_scored_as_it_was_trained(config, tmp_path, more):
    record = train(config(*more, "dataset.test_images=301"), show_progress=False)
    scores = scored([f"evaluate={record.id}", f"paths.runs={tmp_path / 'runs'}"])
    assert scores["error"] == record.summary["test_error"]
    assert scores["loss"] == pytest.approx(record.summary["test_loss"], rel=1e-6)


def test_the_command_that_trained_it_scores_it_also_from_another_folder_of_data(overrides, tmp_path, done):
    moved = [*overrides, "recipe.epochs=4", "dataset.test_images=301", f"dataset.root={tmp_path / 'elsewhere'}"]
    assert scored([*moved, f"evaluate={done.id}"])["error"] == done.summary["test_error"]


@pytest.mark.parametrize(
    "more", ["model=wrn16_1", "dataset=cifar10", "recipe.epochs=5", "scheme=sgd", "seed=1", "autocast=bfloat16"]
)
def test_another_config_than_that_of_the_checkpoint_is_refused(tmp_path, done, more):
    key = more.split("=")[0]
    with pytest.raises(InputError, match=rf"{done.checkpoint} is of another config: leave {key} out"):
        scored([f"evaluate={done.id}", f"paths.runs={tmp_path / 'runs'}", more])


def test_a_name_that_is_no_checkpoint_is_refused(tmp_path, done):
    with pytest.raises(
        InputError, match="evaluate=nothing is neither a checkpoint, nor the folder of a run, nor a run"
    ):
        scored(["evaluate=nothing", f"paths.runs={tmp_path / 'runs'}"])
    with pytest.raises(InputError, match=r"config\.yaml is not a checkpoint"):
        scored([f"evaluate={Path(done.folder) / 'config.yaml'}"])
