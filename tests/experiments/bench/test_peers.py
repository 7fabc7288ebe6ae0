"""The peers do what they are taken for."""

import pytest
import torch
from torch import nn

from rst.experiments.bench.peers import PilImages, TextbookSAM, data_loader


def quadratic() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1, bias=False).double()


@pytest.mark.parametrize("adaptive", [False, True], ids=["SAM", "ASAM"])
def test_the_textbook_perturbs_by_rho_along_the_gradient(adaptive: bool) -> None:
    model, x = quadratic(), torch.eye(3, dtype=torch.float64)
    optimizer = TextbookSAM(model.parameters(), torch.optim.SGD, rho=0.1, adaptive=adaptive)
    model(x).square().sum().backward()
    before, g = model.weight.detach().clone(), model.weight.grad.clone()
    optimizer.first_step(zero_grad=True)
    scale = before.abs() if adaptive else torch.ones(())
    torch.testing.assert_close(model.weight.detach(), before + 0.1 * scale**2 * g / (scale * g).norm())
    assert model.weight.grad is None


def test_the_textbook_steps_from_the_weights_of_before_by_the_perturbed_gradient() -> None:
    model, x = quadratic(), torch.eye(3, dtype=torch.float64)
    optimizer = TextbookSAM(model.parameters(), lambda groups: torch.optim.SGD(groups, lr=0.5), 0.1, adaptive=False)
    before = model.weight.detach().clone()
    model(x).square().sum().backward()
    optimizer.first_step(zero_grad=True)
    model(x).square().sum().backward()
    sharp = model.weight.grad.clone()
    optimizer.second_step(zero_grad=True)
    torch.testing.assert_close(model.weight.detach(), before - 0.5 * sharp)


def test_the_conventional_pipeline_gives_normalised_batches_of_all_images() -> None:
    images = torch.full((8, 3, 32, 32), 255, dtype=torch.uint8)
    loader = data_loader(PilImages(images, torch.arange(8), (0.5,) * 3, (0.25,) * 3), 4)
    batches = list(loader)
    assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == list(range(8))
    torch.testing.assert_close(batches[0][0], torch.full((4, 3, 32, 32), 2.0))
