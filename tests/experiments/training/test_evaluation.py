"""Scores of a network: exact, and without a trace in the training."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stopped_runs import whole_checkpoints
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from rst.experiments.build import build_model
from rst.experiments.data import Split, evaluation_batches, load
from rst.experiments.runs.record import Record
from rst.experiments.training import checkpoint, train
from rst.experiments.training.evaluation import evaluate


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


@settings(max_examples=30)
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


# ----------------------------------------------------------------------------------------------------------------- runs

DROPOUT = ("dataset=cifar10", "dataset.source=digits", "scale=smoke", "model=vgg16_bn", "dataset.train_images=128")


def test_how_often_a_run_is_evaluated_does_not_change_its_training(config, tmp_path):
    """With dropout in the network, so that a random number taken from it would show."""
    with whole_checkpoints():
        often, once = (
            train(
                config(*DROPOUT, "recipe.epochs=3", f"evaluate_every={every}", f"paths.runs={tmp_path / str(every)}"),
                False,
            )
            for every in (1, 3)
        )
    for part in ("model", "optimizer"):
        first, second = (tree_leaves(checkpoint.load(record.checkpoint)[part]) for record in (often, once))
        assert all(
            torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(first, second, strict=True)
        ), part
    assert often.summary["test_error"] == once.summary["test_error"]
    assert (often.summary["evaluations"], once.summary["evaluations"]) == (3, 1)


@pytest.fixture
def done(config) -> Record:
    return train(config("recipe.epochs=4", "dataset.test_images=301"), show_progress=False)


def test_the_error_of_a_run_is_that_of_its_last_weights_on_the_first_test_images(config, done):
    spec = config("recipe.epochs=4", "dataset.test_images=301")
    test = load("digits", cache=done.folder, image_size=8, channels=1).test[:301]
    model = build_model(spec, torch.device("cpu"))
    model.load_state_dict(checkpoint.load(done.checkpoint)["model"])
    x = (test.images / 255 - spec.dataset.mean[0]) / spec.dataset.std[0]
    assert done.summary["test_error"] == pytest.approx(one_by_one(model, x, test.labels, 1), abs=1e-9)
