"""`only`: which parameters are perturbed. All others are trained with the same mixed gradient, at their own weights."""

import copy
from collections.abc import Callable

import pytest
import torch
from textbook import assert_bitwise, batch, clean_gradient, left, loss_on
from textbook_variants import ALL, Asam, Gsam, LookSam, Sam, device_of, gradient_at, network, step_gradient, vector
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from variant_cases import ALWAYS, RHO, STEPS, VARIANTS, close, variants

import rst
from rst.perturbation import Only
from rst.variants import SSAMF

X, Y = batch(0)


def norms_only(name: str, parameter: Tensor) -> bool:
    """SAM-ON, on a `network`: the scale and shift of its BatchNorm layer."""
    return name.startswith("2.")


def no_biases(name: str, parameter: Tensor) -> bool:
    return parameter.dim() > 1


def one_layer(name: str, parameter: Tensor) -> bool:
    return name in ("4.weight", "4.bias")


CHOICES: dict[str, Only] = {"norm layers": norms_only, "no biases": no_biases, "one layer": one_layer}
choices = pytest.mark.parametrize("only", CHOICES.values(), ids=CHOICES)


def chosen(model: nn.Module, only: Only) -> Tensor:
    """Whether each number of `vector` is perturbed."""
    return torch.cat([torch.full((p.numel(),), only(name, p)) for name, p in model.named_parameters()])


def step(method: rst.RST, model: nn.Module, number: int) -> Tensor:
    """Runs a step on the batch of this number. Returns ε."""
    seen = []

    def closure(rows=ALL) -> Tensor:
        seen.append(vector(model))
        return device_of(model, number)(rows)

    model.zero_grad()
    method.backward(closure)
    return seen[-1] - seen[0]


# What is perturbed ----------------------------------------------------------------------------------------------------


@choices
def test_the_perturbation_has_norm_rho_along_the_gradient_of_the_chosen_parameters(only):
    model = network()
    mask = chosen(model, only)
    assert 0 < mask.sum() < len(mask)
    g = torch.where(mask, clean_gradient(model, lambda: device_of(model, 0)().mean()), 0.0)
    before = vector(model)
    epsilon = step(rst.RST(model, RHO, ALWAYS, only=only), model, 0)
    close(epsilon, RHO * g / g.norm())
    assert not epsilon[~mask].any()
    assert_bitwise(vector(model), before)


class Masked:
    """An oracle for which only the chosen numbers are weights that ε may change."""

    def __init__(self, oracle: Sam, mask: Tensor) -> None:
        own = oracle.epsilon
        oracle.epsilon = lambda theta, g, rho: torch.zeros_like(g).masked_scatter(  # type: ignore[method-assign]
            mask, own(theta[mask], g[mask], rho)
        )
        self.sharp = oracle.sharp


RULES: dict[str, Callable[[], Sam]] = {
    "sam": Sam,
    "asam": lambda: Asam(0.01),
    "gsam": lambda: Gsam(0.4),
    "looksam": lambda: LookSam(3, 0.7),
}


@pytest.mark.parametrize("c", [1.0, 2.0])
@choices
@pytest.mark.parametrize("name", RULES)
def test_all_parameters_get_the_mixed_gradient_of_the_textbook(name, only, c):
    """(1 - c) g + c g_s, and what GSAM and LookSAM make of g and g_s, is over all of them."""
    model = network()
    oracle = Masked(RULES[name](), chosen(model, only))
    method = rst.RST(model, RHO, ALWAYS, c, variant=VARIANTS[name](), only=only)
    for t in range(5):
        expected = step_gradient(oracle, model, [device_of(model, t)], True, t, RHO, c)
        step(method, model, t)
        close(left(model), expected)


@choices
@variants
def test_every_variant_perturbs_as_if_all_other_parameters_were_frozen(name, only):
    model, frozen = network(), network()
    for key, p in frozen.named_parameters():
        p.requires_grad_(only(key, p))
    method = rst.RST(model, RHO, ALWAYS, total_steps=STEPS, variant=VARIANTS[name](), only=only)
    expected = rst.RST(frozen, RHO, ALWAYS, total_steps=STEPS, variant=VARIANTS[name]())
    mask, moved = chosen(model, only), False
    for t in range(5):
        epsilon = step(method, model, t)
        close(epsilon[mask], step(expected, frozen, t))
        assert not epsilon[~mask].any()
        moved = moved or bool(epsilon.any())
    assert moved


@choices
@pytest.mark.parametrize("name", ["ssam_f", "ssam_d"])
def test_a_mask_has_its_share_of_the_chosen_weights(name, only):
    model = network()
    method = rst.RST(model, RHO, ALWAYS, 2.0, total_steps=STEPS, variant=VARIANTS[name](), only=only)
    for t in range(5):
        g = clean_gradient(model, lambda t=t: device_of(model, t)().mean())
        epsilon = step(method, model, t)
        close(left(model), -g + 2 * gradient_at(model, device_of(model, t), epsilon))
    mask = method.variant.state_dict()["mask"]
    assert mask.keys() == {key for key, p in model.named_parameters() if only(key, p)}
    total = sum(m.numel() for m in mask.values())
    assert 0.7 * total - 1 < sum(int(m.sum()) for m in mask.values()) <= 0.7 * total


def test_several_micro_batches_are_each_perturbed_in_the_chosen_parameters():
    model = network()
    oracle = Masked(Sam(), chosen(model, no_biases))
    expected = step_gradient(oracle, model, [device_of(model, i) for i in range(3)], True, 0, RHO, 2.0)
    model.zero_grad()
    method = rst.RST(model, RHO, ALWAYS, 2.0, only=no_biases)
    for i in range(3):
        method.backward(device_of(model, i), i == 2, 1 / 3)
    close(left(model), expected)


class Adapted(nn.Module):
    """A frozen linear layer with a low-rank adapter, and a trainable head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base = nn.Linear(36, 6).double().requires_grad_(False)
        self.adapter_a = nn.Parameter(torch.randn(2, 36).double())
        self.adapter_b = nn.Parameter(torch.randn(6, 2).double())
        self.head = nn.Linear(6, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.head(torch.tanh(self.base(x) + x @ self.adapter_a.T @ self.adapter_b.T))


def test_an_adapter_in_a_frozen_network_is_perturbed_alone():
    model = Adapted()
    before = copy.deepcopy(model.state_dict())
    asked, seen = [], []

    def only(name: str, parameter: Tensor) -> bool:
        asked.append(name)
        return "adapter" in name

    method = rst.RST(model, RHO, ALWAYS, only=only)
    for weight in method.passes():
        seen.append(copy.deepcopy(model.state_dict()))
        (weight * loss_on(model, X, Y)).backward()
    assert asked == ["adapter_a", "adapter_b", "head.weight", "head.bias"], "frozen parameters are not asked for"
    moved = {key for key, value in seen[1].items() if not torch.equal(value, before[key])}
    assert moved == {"adapter_a", "adapter_b"}
    distance = sum((seen[1][key] - before[key]).square().sum() for key in moved).sqrt()
    assert distance.item() == pytest.approx(RHO)
    assert_bitwise(model.state_dict(), before)
    assert model.base.weight.grad is None
    assert model.head.weight.grad.any()


# How it is asked ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["sam", SSAMF()], ids=["sam", "ssam_f"])
def test_a_choice_of_no_parameter_is_refused(variant):
    with pytest.raises(
        ValueError, match=r"only\(name, parameter\) is false for every trainable parameter: it must be true for some"
    ):
        rst.RST(network(), RHO, ALWAYS, variant=variant, only=lambda name, p: False)


class Named(nn.Module):
    """Parameters whose own names hold what wrappers put before names."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(36, 4)
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.flatten(1)) * self.weight


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "none": lambda model: model,
    "DDP": DistributedDataParallel,
    "compiled": torch.compile,
    "DDP of compiled": lambda model: DistributedDataParallel(torch.compile(model)),
    "compiled DDP": lambda model: torch.compile(DistributedDataParallel(model)),
    "in a module of the user's": lambda model: nn.ModuleDict({"inner": DistributedDataParallel(model)}),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.usefixtures("group_of_one")
def test_the_names_are_those_of_the_model_without_its_wrappers(wrapper):
    names = []
    rst.RST(WRAPPERS[wrapper](Named()), RHO, ALWAYS, only=lambda name, p: not names.append(name))
    prefix = "inner." if wrapper == "in a module of the user's" else ""
    assert names == [prefix + name for name in ("weight", "module.weight", "module.bias")]


def test_the_choice_is_asked_again_for_a_layer_that_is_unfrozen():
    model = network()
    model[4].requires_grad_(False)
    method = rst.RST(model, RHO, ALWAYS, only=lambda name, p: p.dim() > 1)
    assert step(method, model, 0).norm().item() == pytest.approx(RHO)
    model[4].requires_grad_(True)
    epsilon = step(method, model, 0)
    assert not epsilon[~chosen(model, no_biases)].any()
    assert epsilon.norm().item() == pytest.approx(RHO)
    assert epsilon[chosen(model, lambda name, p: name == "4.weight")].any()
