"""Loops that people bring: default devices, copies of the method, numbers of NumPy, gradients that are cleared."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
import torch.nn.utils.parametrize
from textbook import assert_bitwise, batch, clean_gradient, left, loss_on, perceptron
from torch import Tensor, nn
from variant_cases import VARIANTS, variants

import rst
from rst import schedules

RHO = 0.1
X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
ALWAYS = schedules.always()


def sharp(model: nn.Module, **arguments) -> rst.RST:
    return rst.RST(model, RHO, ALWAYS, **arguments)


# Default devices, copies and numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [schedules.constant(0.5), schedules.linear(0.5), schedules.ae_sam()], ids=str)
def test_a_default_device_that_the_user_has_set_changes_nothing(schedule):
    def train() -> list[Tensor]:
        model = perceptron()
        method = rst.RST(model, RHO, schedule, total_steps=8)
        for t in range(8):
            method.backward(lambda t=t: loss_on(model, *batches[t]))
        return [left(model)]

    batches = [batch(t) for t in range(8)]
    expected = train()
    model_on_cpu = perceptron()
    with torch.device("meta"):
        method = rst.RST(model_on_cpu, RHO, schedule, total_steps=8)
        for t in range(8):
            for weight in method.passes():
                (weight * loss_on(model_on_cpu, *batches[t])).backward()
    assert_bitwise([left(model_on_cpu)], expected)


def test_a_default_device_does_not_move_what_sharpness_draws():
    model, data = perceptron(), [batch(0)]

    def losses(own: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(own[0].double()), own[1], reduction="none")

    expected = rst.sharpness(model, losses, data, rho=RHO)
    with torch.device("meta"):
        assert rst.sharpness(model, losses, data, rho=RHO) == expected


@pytest.mark.parametrize("name", ["esam", "ssam_d", "ssam_f", "looksam"])
def test_a_default_device_does_not_move_what_a_variant_draws(name):
    model = perceptron()
    x, y = batch(0)
    with torch.device("meta"):
        method = sharp(model, variant=VARIANTS[name](), total_steps=4)
        for _ in range(2):
            method.backward(
                lambda rows=slice(None): nn.functional.cross_entropy(model(x[rows].double()), y[rows], reduction="none")
            )
    assert left(model).any()


@variants
def test_schedules_and_the_state_of_the_method_can_be_pickled(name):
    """As where processes are spawned for several devices."""
    model = perceptron()
    x, y = batch(0)

    def losses(rows=slice(None)) -> Tensor:
        return nn.functional.cross_entropy(model(x[rows].double()), y[rows], reduction="none")

    methods = [
        rst.RST(model, RHO, pickle.loads(pickle.dumps(schedules.linear(0.7))), total_steps=8, variant=VARIANTS[name]())
        for _ in range(2)
    ]
    for _ in range(5):
        methods[0].backward(losses)
    methods[1].load_state_dict(pickle.loads(pickle.dumps(methods[0].state_dict())))
    assert_bitwise(methods[1].state_dict(), methods[0].state_dict())
    gradients = []
    for method in methods:
        model.zero_grad()
        method.backward(losses)
        gradients.append(left(model))
    assert_bitwise(gradients[1], gradients[0])


def test_numbers_of_numpy_are_arguments():
    model = nn.Linear(4, 4)
    method = rst.RST(
        model, np.float32(0.1), schedules.constant(np.float64(0.5)), np.float32(2), np.int64(10), np.int64(3)
    )
    method.backward(lambda: model(X).mean(), share=np.float32(0.5), advance=np.bool_(False))
    method.backward(lambda: model(X).mean(), share=np.float32(0.5), advance=np.bool_(True))
    torch.save(method.state_dict(), state := io.BytesIO())
    assert torch.load(io.BytesIO(state.getvalue()), weights_only=True) == method.state_dict()
    assert (method.rho, method.gamma_ratio) == (pytest.approx(0.1), 2.0)
    assert method.gate.shape == (10,)


# Loops ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [True, None], ids=["to None", "by the optimizer"])
@pytest.mark.parametrize("advance", [True, False])
@pytest.mark.parametrize("c", [1.0, 2.0])
def test_zero_grad_inside_passes_is_refused_where_it_loses_a_gradient(c, advance, how):
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = sharp(model, gamma_ratio=c)
    x, y = batch(0)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in model.parameters()]
    sentence = r"cleared inside passes\(\): call zero_grad\(\) only after the last pass"
    with pytest.raises(RuntimeError, match=sentence):  # noqa: PT012
        for weight in method.passes(advance):
            (optimizer if how is None else model).zero_grad()
            (weight * loss_on(model, x, y)).backward()
    assert_bitwise([p.detach() for p in model.parameters()], before)
    assert method.t == 0


def test_zero_grad_after_the_backward_is_refused():
    model = perceptron()
    x, y = batch(0)
    with pytest.raises(RuntimeError, match=r"zero_grad\(\) only after the last"):  # noqa: PT012
        for weight in sharp(model).passes():
            (weight * loss_on(model, x, y)).backward()
            model.zero_grad()


@pytest.mark.parametrize("argument", ["model.parameters()", "list(model.parameters())", "an optimizer", "None"])
def test_what_is_no_module_is_refused_with_what_to_write(argument):
    model = perceptron()
    given = {
        "model.parameters()": model.parameters(),
        "list(model.parameters())": list(model.parameters()),
        "an optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "None": None,
    }[argument]
    with pytest.raises(ValueError, match=r"^model must be the module that the loop calls, got .*: write RST\(model, "):
        rst.RST(given, RHO, ALWAYS)


def test_two_methods_may_train_one_model():
    model = perceptron()
    first, second = sharp(model), rst.RST(model, RHO, schedules.never())
    x, y = batch(0)
    first.backward(lambda: loss_on(model, x, y))
    expected = clean_gradient(model, lambda: loss_on(model, x, y))
    model.zero_grad()
    second.backward(lambda: loss_on(model, x, y))
    assert_bitwise(left(model), expected)


# Steps that are begun again -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given_up", ["by an error", "by restore"])
@pytest.mark.parametrize("c", [1.0, 2.0])
@pytest.mark.parametrize("name", ["sam", "asam", "friendly", "gsam", "looksam", "esam"])
def test_a_step_of_two_micro_batches_that_is_begun_again_trains_as_one_that_is_not(name, c, given_up):
    def train(begun_again_at: int | None) -> Tensor:
        model = perceptron()
        method = sharp(model, gamma_ratio=c, variant=VARIANTS[name]())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def micro_batch(t: int, i: int, fails: bool = False) -> None:
            def closure(rows=slice(None)) -> Tensor:
                if fails:
                    raise RuntimeError("out of memory")
                x, y = batch(2 * t + i)
                return nn.functional.cross_entropy(model(x.double())[rows], y[rows], reduction="none")

            method.backward(closure, share=0.5, advance=i == 1)

        for t in range(6):
            if t == begun_again_at:
                micro_batch(t, 0)
                if given_up == "by an error":
                    with pytest.raises(RuntimeError, match="out of memory"):
                        micro_batch(t, 1, fails=True)
                else:
                    method.restore()
                optimizer.zero_grad()
            micro_batch(t, 0)
            micro_batch(t, 1)
            optimizer.step()
            optimizer.zero_grad()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    for t in (0, 3, 4):
        assert_bitwise(train(t), train(None))


def test_a_checkpoint_between_two_micro_batches_does_not_disturb_the_step():
    method = sharp(nn.Linear(4, 1), variant="looksam")
    method.backward(lambda: method.model(X).mean(), share=0.5, advance=False)
    method.state_dict()
    method.backward(lambda: method.model(X).mean(), share=0.5)
    assert method.variant.counts == {0: 1, 1: 1}
    assert method.t == 1


# Parameters that are replaced -----------------------------------------------------------------------------------------


class LateHead(nn.Module):
    """Makes its head in the first forward pass, in the place of one that has the wrong shape."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.head.in_features != 3:
            self.head = nn.Linear(3, 1)
        return self.head(self.body(x))


def test_a_parameter_that_a_clean_pass_replaces_is_perturbed_from_the_next_step_on():
    model = LateHead()
    method, seen = sharp(model), []
    for _ in range(2):
        for weight in method.passes():
            loss = model(X).square().mean()
            seen.append(model.head.weight.detach().clone())
            (weight * loss).backward()
    assert not torch.equal(seen[2], seen[3])


def test_a_model_that_gets_its_memory_after_the_method_is_made_is_trained():
    model = nn.Linear(4, 2, device="meta")
    method = sharp(model)
    model.to_empty(device="cpu").reset_parameters()
    method.backward(lambda: model(X).square().mean())
    assert model.weight.grad.isfinite().all()


def test_a_lazy_model_trains_as_one_whose_sizes_are_given():
    def trained(lazy: bool) -> list[Tensor]:
        torch.manual_seed(0)
        if lazy:
            model = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d(), nn.Linear(3, 1))
        else:
            model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        method = sharp(model)
        if lazy:
            model(X)  # Makes the parameters, and moves batch norm's statistics.
        with torch.no_grad():
            model[1].reset_running_stats()
            for p in model.parameters():
                p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))
        for _ in range(3):
            method.backward(lambda: model(X).square().mean())
        return [left(model), *model.buffers()]

    assert_bitwise(trained(lazy=True), trained(lazy=False))


@pytest.mark.parametrize("name", ["looksam", "friendly", "ssam_d"])
def test_a_head_of_another_size_under_the_same_name_begins_anew(name):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    method = rst.RST(model, RHO, ALWAYS, total_steps=8, variant=VARIANTS[name]())
    for _ in range(2):
        method.backward(lambda: model(X).square().mean())
    model[1] = nn.Linear(3, 7)
    for _ in range(2):
        method.backward(lambda: model(X).square().mean())
    assert model[1].weight.grad.isfinite().all()


@pytest.mark.parametrize("is_open", [False, True])
def test_a_pickled_method_trains_on_as_its_original(is_open):
    method = sharp(nn.Linear(4, 3), variant="friendly")
    method.backward(lambda: method.model(X).square().mean())
    if is_open:
        passes = method.passes()
        next(passes)
    copied = pickle.loads(pickle.dumps(method))
    method.restore()
    for own in (method, copied):
        own.model.zero_grad()
        own.backward(lambda own=own: own.model(X).square().mean())
    assert_bitwise(left(copied.model), left(method.model))
    assert_bitwise(copied.state_dict(), method.state_dict())


def test_a_layer_that_the_model_of_a_copied_method_gets_is_perturbed():
    method = copy.deepcopy(sharp(nn.Sequential(nn.Linear(4, 3))))
    method.model.append(nn.Linear(3, 1))
    seen = []
    for weight in method.passes():
        seen.append(method.model[1].weight.detach().clone())
        (weight * method.model(X).square().mean()).backward()
    assert not torch.equal(seen[0], seen[1])
