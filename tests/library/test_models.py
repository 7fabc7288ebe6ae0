"""Models that people bring: tied and shared weights, caches of weights, mixed types, layers that are unfrozen."""

import copy

import pytest
import torch
import torch.nn.utils.parametrize
from textbook import assert_bitwise, batch, clean_gradient, gradient, left, loss_on, mixed_gradient, perceptron
from torch import Tensor, nn
from variant_cases import VARIANTS, close, variants, without_per_sample_loss

import rst
from rst import schedules

RHO = 0.1
X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
ALWAYS = schedules.always()


def sharp(model: nn.Module, **arguments) -> rst.RST:
    return rst.RST(model, RHO, ALWAYS, **arguments)


# Weights that share memory --------------------------------------------------------------------------------------------


def test_two_parameters_that_share_one_storage_are_each_moved_by_their_own_perturbation():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 4, bias=False))
    model[1].weight.data = model[0].weight.data.T
    first, second = model.parameters()
    before = first.detach().clone()

    def loss() -> Tensor:
        return (model(X) - X).square().mean()

    g = torch.autograd.grad(loss(), (first, second))
    size = torch.cat([own.flatten() for own in g]).norm()
    with torch.no_grad():
        for p, own in zip((first, second), g, strict=True):
            p.add_(RHO * own / size)
        expected = loss()
        expected_gradient = torch.autograd.grad(torch.enable_grad()(loss)(), (first, second))
        first.copy_(before)
    seen = []
    for weight in sharp(model).passes():
        seen.append(loss())
        (weight * seen[-1]).backward()
    torch.testing.assert_close(seen[1], expected)
    torch.testing.assert_close([first.grad, second.grad], list(expected_gradient))
    assert_bitwise(first.detach(), before)
    assert_bitwise(second.detach(), before.T)


class Meeting(nn.Module):
    """Two parameters of one size, whose gradients autograd puts into the same memory where they meet as views."""

    def __init__(self, as_views: bool) -> None:
        super().__init__()
        self.a, self.b, self.as_views = nn.Parameter(torch.ones(4)), nn.Parameter(torch.arange(4.0)), as_views

    def forward(self, x: Tensor) -> Tensor:
        if self.as_views:
            return 0.01 * (self.a.view(1, 4) + self.b.view(1, 4) + x).square()
        return 0.01 * (self.a * 1 + self.b * 1 + x).square()


@without_per_sample_loss
def test_gradients_that_share_memory_count_as_two(name):
    models = [Meeting(as_views) for as_views in (True, False)]
    for model in models:
        method = rst.RST(model, RHO, ALWAYS, 2.0, variant=VARIANTS[name](), total_steps=2)
        for _ in range(2):
            model.zero_grad()
            method.backward(lambda model=model: model(X).sum(1).mean())
    close(left(models[0]), left(models[1]), tolerance=1e-5)


def test_a_conjugated_gradient_is_perturbed_along_like_any_other():
    models = [nn.ParameterList([torch.randn(4, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))])]
    models.append(copy.deepcopy(models[0]))
    conjugated, plain = models
    losses = {
        conjugated: lambda: torch.view_as_real(conjugated[0].conj().resolve_conj()).square().sum(),
        plain: lambda: torch.view_as_real(plain[0]).square().sum(),
    }
    for model, loss in losses.items():
        sharp(model).backward(loss)
    torch.testing.assert_close(conjugated[0].grad.resolve_conj(), plain[0].grad)


def test_a_parameter_that_two_layers_use_is_one_parameter():
    model = perceptron()
    model.append(nn.Linear(4, 5).double()).append(nn.Linear(5, 4).double())
    model[5].weight, x, y = model[3].weight, *batch(0)
    expected = mixed_gradient(model, lambda: loss_on(model, x, y), RHO, 2.0)
    model.zero_grad()
    sharp(model, gamma_ratio=2.0).backward(lambda: loss_on(model, x, y))
    torch.testing.assert_close(gradient(list(model.parameters())), expected, rtol=1e-9, atol=1e-12)


# Caches and kinds of weights ------------------------------------------------------------------------------------------


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).T


@pytest.mark.parametrize("region", ["round all steps", "round each step"])
def test_inside_a_cache_of_parametrised_weights_every_pass_uses_the_present_ones(region):
    def gradients(cached: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Linear(4, 4).double()
        nn.utils.parametrize.register_parametrization(model, "weight", Symmetric())
        method, optimizer = sharp(model), torch.optim.SGD(model.parameters(), lr=0.1)
        found = []

        def step() -> None:
            method.backward(lambda: model(X.double()).square().mean())
            found.append(left(model))
            optimizer.step()
            optimizer.zero_grad()

        if not cached:
            for _ in range(3):
                step()
        elif region == "round all steps":
            with nn.utils.parametrize.cached():
                for _ in range(3):
                    step()
        else:
            for _ in range(3):
                with nn.utils.parametrize.cached():
                    step()
        return found

    assert_bitwise(gradients(cached=True), gradients(cached=False))


@pytest.mark.parametrize(
    "norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm], ids=["weight", "spectral"]
)
def test_weight_and_spectral_norm_train_inside_the_cache(norm):
    torch.manual_seed(0)
    model = norm(nn.Linear(4, 4))
    method, seen = sharp(model), []
    with nn.utils.parametrize.cached():
        for weight in method.passes():
            seen.append(model.weight.detach().clone())
            (weight * model(X).square().mean()).backward()
    assert not torch.equal(*seen)


def test_a_sparse_gradient_is_refused_in_one_sentence_that_says_what_to_write():
    model = nn.Embedding(9, 3, sparse=True)
    before = model.weight.detach().clone()
    method = sharp(model)
    with pytest.raises(RuntimeError, match=r"^a gradient is sparse, .*: build the embedding without sparse=True.$"):
        method.backward(lambda: model(torch.arange(4)).mean())
    assert_bitwise(model.weight.detach(), before)
    assert method.t == 0


@pytest.mark.parametrize("c", [1.0, 2.0])
@pytest.mark.parametrize("name", ["sam", "gsam", "asam"])
def test_real_and_complex_weights_are_one_vector_of_real_numbers(name, c):
    """‖g‖ = √Σ|g|². The real and the imaginary part of a weight are two weights; oracle: the same network in reals."""
    torch.manual_seed(0)
    first, second = torch.randn(4, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.complex128)
    x = X.double()

    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Parameter(first.clone()), nn.Parameter(second.clone())

        def forward(self) -> Tensor:
            return ((x @ self.first).cfloat().to(torch.complex128) @ self.second.T).abs().square().mean()

    class Real(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Parameter(first.clone()), nn.Parameter(torch.view_as_real(second).clone())

        def forward(self) -> Tensor:
            hidden = (x @ self.first).float().double()
            return ((hidden @ self.second[..., 0].T).square() + (hidden @ self.second[..., 1].T).square()).mean()

    model, oracle = Complex(), Real()
    for own in (model, oracle):
        method = rst.RST(own, RHO, ALWAYS, c, variant=VARIANTS[name]())
        for i in range(2):
            method.backward(own, advance=i == 1, share=0.5)
    close(model.first.grad, oracle.first.grad, 1e-6)
    close(torch.view_as_real(model.second.grad), oracle.second.grad, 1e-6)
    assert_bitwise(model.second.detach(), second)


class Mixed(nn.Module):
    """A real and a complex layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.real, self.complex = nn.Linear(4, 4), nn.Linear(4, 3, dtype=torch.cfloat)

    def losses(self, rows=slice(None)) -> Tensor:
        return self.complex(self.real(X[rows]).cfloat()).abs().square().mean(1)


@pytest.mark.parametrize("c", [1.0, 2.0])
@pytest.mark.parametrize("name", [name for name in VARIANTS if not name.startswith("ssam")])
def test_every_variant_but_ssam_moves_real_and_complex_weights(name, c):
    model = Mixed()
    before = [p.detach().clone() for p in model.parameters()]
    method = sharp(model, gamma_ratio=c, variant=VARIANTS[name]())
    for _ in range(3):
        for i in range(2):
            method.backward(model.losses, i == 1, 0.5)
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    assert model.complex.weight.grad.is_complex()
    assert_bitwise([p.detach() for p in model.parameters()], before)


@pytest.mark.parametrize("name", ["ssam_f", "ssam_d"])
def test_ssam_refuses_complex_weights_and_takes_the_real_ones_beside_them(name):
    model = Mixed()
    with pytest.raises(ValueError, match=r"^SSAM[FD] needs real weights: leave complex ones out with only=.$"):
        sharp(model, variant=VARIANTS[name](), total_steps=3).backward(model.losses)
    method = sharp(model, variant=VARIANTS[name](), total_steps=3, only=lambda name, p: not p.is_complex())
    for _ in range(3):
        method.backward(model.losses)
    assert method.t == 3
    assert method.variant.state_dict()["mask"].keys() == {"real.weight", "real.bias"}


# Models that change during training -----------------------------------------------------------------------------------


@variants
def test_a_layer_may_be_unfrozen_and_frozen_during_training(name):
    """Its part of the variant's state starts as that of a new parameter."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    model[0].requires_grad_(False)
    method = sharp(model, variant=VARIANTS[name](), total_steps=9)

    def losses(rows=slice(None)) -> Tensor:
        return model(X[rows]).square().mean(1)

    for trained in (False, True, True, True, False, True):
        model[0].requires_grad_(trained)
        before = [p.detach().clone() for p in model.parameters()]
        method.backward(losses)
        assert (model[0].weight.grad is not None) == trained
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
        assert_bitwise([p.detach() for p in model.parameters()], before)
        model.zero_grad()


@pytest.mark.parametrize("name", ["ssam_f", "ssam_d"])
def test_a_layer_that_is_unfrozen_is_perturbed_as_a_whole_until_the_next_mask(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).double()
    model[0].requires_grad_(False)
    method, unmoved = sharp(model, variant=VARIANTS[name](), total_steps=9), []

    def losses(rows=slice(None)) -> Tensor:
        unmoved.append(model[0].weight.detach().clone())
        return model(X.double()[rows]).square().mean(1)

    for t in range(5):
        if t == 1:
            model.requires_grad_(True)
        unmoved.clear()
        method.backward(losses)
        moved = (unmoved[-1] != unmoved[0]).sum().item()
        mask = method.variant.state_dict()["mask"]
        if t == 0:
            assert moved == 0
        elif t < 3:
            assert moved == 16
            assert "0.weight" not in mask
    assert "0.weight" in mask
    assert moved == mask["0.weight"].sum() < 16


def test_looksam_gives_an_unfrozen_layer_no_direction_before_its_first_step_of_sam():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).double()
    model[0].requires_grad_(False)
    method = sharp(model, variant="looksam")
    method.backward(lambda: model(X.double()).square().mean())
    model.requires_grad_(True)
    expected = clean_gradient(model, lambda: model(X.double()).square().mean())
    model.zero_grad()
    method.backward(lambda: model(X.double()).square().mean())
    size = sum(p.numel() for p in model[0].parameters())
    assert_bitwise(left(model)[:size], expected[:size])
    assert not torch.equal(left(model)[size:], expected[size:])
