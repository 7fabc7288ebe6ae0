"""Ranks in several process groups, each of which trains a network of its own."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from gloo_ranks import results_of_ranks
from textbook import batch, left, perceptron
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from variant_cases import VARIANTS, variants

import rst
from rst import schedules

STEPS = 4


def train(model: nn.Module, rank: int, name: str) -> Tensor:
    """The gradient of the last of a few steps, which depends on all that the variant has kept."""
    method = rst.RST(model, 0.1, schedules.always(), 2.0, variant=VARIANTS[name](), total_steps=STEPS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for t in range(STEPS):
        x, y = batch(10 * rank + t)
        optimizer.zero_grad()
        method.backward(
            lambda rows=slice(None), x=x, y=y: nn.functional.cross_entropy(
                model(x[rows].double()), y[rows], reduction="none"
            )
        )
        optimizer.step()
    return left(model)


def each_in_its_own_group(rank: int) -> dict[str, Tensor]:
    groups = [dist.new_group([own]) for own in range(2)]
    return {
        name: train(DistributedDataParallel(perceptron(), process_group=groups[rank]), rank, name) for name in VARIANTS
    }


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder: Path = tmp_path_factory.mktemp("groups")
    return results_of_ranks(each_in_its_own_group, 2, folder)


@variants
def test_a_group_of_ranks_trains_as_if_the_others_were_not_there(groups: list[dict[str, Tensor]], name: str) -> None:
    first, second = (results[name] for results in groups)
    assert not torch.equal(first, second)
    torch.testing.assert_close(first, train(perceptron(), 0, name), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(second, train(perceptron(), 1, name), rtol=1e-10, atol=1e-10)
