"""Models in a `DistributedDataParallel` wrapper whose process group has one rank."""

import pytest
import torch
import torch.nn.utils.parametrize
from textbook import batch, left, loss_on, perceptron
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from variant_cases import VARIANTS, close, variants

import rst
from rst import schedules

RHO = 0.1
ALWAYS = schedules.always()


def sharp(model: nn.Module, **arguments) -> rst.RST:
    return rst.RST(model, RHO, ALWAYS, **arguments)


@pytest.mark.usefixtures("group_of_one")
def test_a_static_graph_is_refused_by_the_constructor_where_each_rank_follows_its_own_gradient():
    model = DistributedDataParallel(perceptron(), static_graph=True)
    with pytest.raises(ValueError, match=r"DistributedDataParallel\(static_graph=True\).*sync_perturbation=True"):
        sharp(model)
    rst.RST(model, RHO, schedules.never())
    x, y = batch(0)
    expected = perceptron()
    method, plain = sharp(model, sync_perturbation=True), sharp(expected)
    for _ in range(3):
        method.backward(lambda: nn.functional.cross_entropy(model(x.double()), y))
        plain.backward(lambda: loss_on(expected, x, y))
    close(left(model), left(expected))


def test_a_method_that_is_made_before_the_wrapper_and_the_group_finds_them_at_its_first_step(group_of_one):
    model = nn.ModuleDict({"inner": perceptron()})
    method = sharp(model)
    model["inner"] = DistributedDataParallel(model["inner"], static_graph=True)
    with pytest.raises(ValueError, match="static_graph"):
        method.passes()


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("bucket_view", [False, True])
@pytest.mark.parametrize("c", [1.0, 2.0])
@variants
def test_in_a_group_of_one_ddp_changes_nothing(name, c, bucket_view):
    x, y = batch(0)

    def train(wrap: bool) -> Tensor:
        model = perceptron()
        own = DistributedDataParallel(model, gradient_as_bucket_view=bucket_view) if wrap else model
        method = sharp(own, gamma_ratio=c, variant=VARIANTS[name](), total_steps=9)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            for i in range(2):
                method.backward(
                    lambda rows=slice(None): nn.functional.cross_entropy(
                        own(x[rows].double()), y[rows], reduction="none"
                    ),
                    i == 1,
                    0.5,
                )
            optimizer.step()
            optimizer.zero_grad()
        return nn.utils.parameters_to_vector(model.parameters()).detach()

    close(train(wrap=True), train(wrap=False))
