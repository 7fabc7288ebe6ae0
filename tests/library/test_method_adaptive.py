"""A training whose gate decides after the clean pass, by AE-SAM's rule, against the plain version of the rule."""

import copy
from collections.abc import Callable

import pytest
import torch
from textbook import assert_bitwise, batch, clean_gradient, left, loss_on, perceptron, state
from textbook_gate import ae_sam
from textbook_variants import device_of, network, set_gradient, step_gradient, vector
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from variant_cases import ORACLES, RHO, STEPS, VARIANTS, close, variants, without_per_sample_loss

import rst
from rst import schedules

RULE = (-1.0, 1.0, 0.9)
TOTAL = 30
X, Y = batch(0)


def adaptive(model: nn.Module, total_steps: int = TOTAL, **arguments) -> rst.RST:
    return rst.RST(model, RHO, schedules.ae_sam(*RULE), total_steps=total_steps, **arguments)


class Training:
    """A network that is trained by the method, with the squared norm and the kind of every step."""

    def __init__(self, micro_batches: int = 1, scaler: torch.amp.GradScaler | None = None, **arguments) -> None:
        self.model = network()
        self.method = adaptive(self.model, **arguments)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.3, momentum=0.9)
        self.micro_batches, self.scaler = micro_batches, scaler
        self.norms: list[float] = []
        self.sharp: list[bool] = []

    def step(self) -> None:
        t, k = self.method.t, self.micro_batches
        first = copy.deepcopy(self.model)
        self.norms.append(clean_gradient(first, lambda: device_of(first, k * t)().mean()).square().sum().item())
        before = self.method.sharp_steps
        for i in range(k):
            self.method.backward(device_of(self.model, k * t + i), i == k - 1, 1 / k, self.scaler)
        self.sharp.append(self.method.sharp_steps > before)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad()

    def run(self, end: int = TOTAL) -> "Training":
        while self.method.t < end:
            self.step()
        return self


# The decisions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("scale", [None, 2.0**12])
@pytest.mark.parametrize("c", [1.0, 2.0])
def test_the_decisions_of_a_training_are_those_of_the_textbook(c, scale, micro_batches):
    """The norm is that of the first micro-batch, without its share of the step and without the loss scale."""
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    training = Training(micro_batches, scaler, gamma_ratio=c).run()
    assert training.sharp == ae_sam(training.norms, TOTAL, *RULE)
    assert 3 < sum(training.sharp) < TOTAL - 3
    assert training.method.sharp_steps == sum(training.sharp)


@without_per_sample_loss
def test_a_loop_over_passes_decides_as_backward_does(name):
    by_backward = Training(variant=VARIANTS[name](), gamma_ratio=2.0).run()
    model = network()
    method = adaptive(model, variant=VARIANTS[name](), gamma_ratio=2.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for t in range(TOTAL):
        assert method.sharp is None, "it is not known before the clean pass"
        for weight in method.passes():
            (weight * device_of(model, t)().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_bitwise(state(model, optimizer), state(by_backward.model, by_backward.optimizer))
    assert_bitwise(method.state_dict(), by_backward.method.state_dict())


@pytest.mark.parametrize("c", [1.0, 2.0])
@variants
def test_training_equals_the_textbook_version_of_the_variant_in_the_steps_that_the_textbook_gate_opens(name, c):
    training = Training(variant=VARIANTS[name](), gamma_ratio=c, seed=1, total_steps=STEPS)
    expected, oracle = network(), ORACLES[name]()
    textbook = torch.optim.SGD(expected.parameters(), lr=0.3, momentum=0.9)
    norms: list[float] = []
    for t in range(STEPS):
        own = copy.deepcopy(expected)
        norms.append(clean_gradient(own, lambda own=own, t=t: device_of(own, t)().mean()).square().sum().item())
        is_sharp = ae_sam(norms, STEPS, *RULE)[-1]
        set_gradient(expected, step_gradient(oracle, expected, [device_of(expected, t)], is_sharp, t, RHO, c))
        textbook.step()
        training.step()
        close(vector(training.model), vector(expected), 1e-9)
    assert 0 < training.method.sharp_steps < STEPS


def test_a_gradient_that_is_not_finite_gives_a_plain_step_and_leaves_the_rule_alone():
    model, other = perceptron(), perceptron()
    method, expected = adaptive(model), adaptive(other)
    for factor in (1.0, torch.inf, 1.0, 1.0):
        before = method.sharp_steps
        model.zero_grad()
        method.backward(lambda factor=factor: factor * loss_on(model, X, Y))
        if factor == torch.inf:
            assert method.sharp_steps == before
            assert not left(model).isfinite().any()
        else:
            expected.backward(lambda: loss_on(other, X, Y))
    assert method.state_dict()["gate"]["after"] == expected.state_dict()["gate"]["after"]


# Plain steps ----------------------------------------------------------------------------------------------------------


def plain_step(model: nn.Module, method: rst.RST, loss: Callable[[], Tensor]) -> int:
    """The next step, whose gradient is so small that the rule says plain. Returns the number of its passes."""
    count = 0
    model.zero_grad()
    for weight in method.passes():
        (weight * loss()).backward()
        count += 1
    return count


@pytest.mark.parametrize("c", [1.0, 2.0])
@pytest.mark.parametrize("variant", ["sam", "gsam", "looksam"])
def test_a_plain_step_has_one_pass_and_leaves_the_plain_gradient_to_the_bit(variant, c):
    model = network()
    method = adaptive(model, variant=variant, gamma_ratio=c)
    plain_step(model, method, lambda: 1e3 * device_of(model, 0)().mean())
    saved = copy.deepcopy(method.variant.state_dict())
    expected = clean_gradient(model, lambda: device_of(model, 0)().mean())
    before = vector(model)
    assert plain_step(model, method, lambda: device_of(model, 0)().mean()) == 1
    assert_bitwise(left(model), expected)
    assert_bitwise(vector(model), before)
    assert_bitwise(method.variant.state_dict(), saved)
    assert (method.t, method.sharp_steps, method.forward_passes, method.backward_passes) == (2, 1, 3, 3)


def test_a_plain_step_makes_no_copy_of_the_gradient():
    model = nn.Linear(500, 500, bias=False)
    method = adaptive(model)
    x = torch.ones(1, 500)

    class Largest(TorchDispatchMode):
        nbytes = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            tensors = result if isinstance(result, list | tuple) else [result]
            self.nbytes = max([self.nbytes, *(t.nbytes for t in tensors if isinstance(t, Tensor))])
            return result

    plain_step(model, method, lambda: 1e3 * model(x).square().mean())
    passes = method.passes()
    (next(passes) * model(x).square().mean()).backward()
    with Largest() as made:
        assert next(passes, None) is None
    assert made.nbytes < model.weight.nbytes / 100


def test_a_gradient_from_before_is_kept_in_the_sum_and_takes_no_part_in_the_decision():
    model = perceptron()
    method = adaptive(model)
    plain_step(model, method, lambda: 1e3 * loss_on(model, X, Y))
    expected = clean_gradient(model, lambda: loss_on(model, X, Y))
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e6)
    method.backward(lambda: loss_on(model, X, Y))
    assert method.sharp_steps == 1
    torch.testing.assert_close(left(model) - 1e6, expected, rtol=1e-6, atol=1e-9)


# Costs and state ------------------------------------------------------------------------------------------------------


def test_the_costs_are_counted_and_nothing_is_foretold():
    training = Training(micro_batches=2).run()
    method = training.method
    assert method.realised_extra_propagations == pytest.approx(sum(training.sharp) / TOTAL)
    for ask in ("expected_extra_propagations", "drawn_extra_propagations", "gate"):
        with pytest.raises(ValueError, match=r"decides after the clean pass, so .* is not known"):
            getattr(method, ask)


def test_an_automatic_ratio_is_refused_with_its_reason():
    with pytest.raises(
        ValueError, match=r"decides after the clean pass, so gamma_ratio 'auto', .* is not known before"
    ):
        adaptive(network(), gamma_ratio="auto")


def test_after_the_last_step_a_step_is_refused():
    model = perceptron()
    method = adaptive(model, total_steps=1)
    method.backward(lambda: loss_on(model, X, Y))
    with pytest.raises(ValueError, match="step 1 is past the end of the training"):
        method.passes()


@pytest.mark.parametrize("stop", [0, 1, 13, TOTAL])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_stopping_at_any_step_and_continuing_equals_never_stopping(micro_batches, stop, tmp_path):
    expected = Training(micro_batches).run()
    first = Training(micro_batches).run(stop)
    torch.save((state(first.model, first.optimizer), first.method.state_dict()), tmp_path / "checkpoint.pt")
    saved, method_state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    second = Training(micro_batches)
    second.model.load_state_dict(saved["model"])
    second.optimizer.load_state_dict(saved["optimizer"])
    second.method.load_state_dict(method_state)
    second.run()
    assert_bitwise(state(second.model, second.optimizer), state(expected.model, expected.optimizer))
    assert_bitwise(second.method.state_dict(), expected.method.state_dict())
    assert first.sharp + second.sharp == expected.sharp


def test_a_step_that_failed_in_its_perturbed_pass_is_decided_anew_and_counts_once():
    model, other = perceptron(), perceptron()
    method, expected = adaptive(model), adaptive(other)
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        for number, weight in enumerate(method.passes()):
            if number == 1:
                raise ZeroDivisionError
            (weight * 7 * loss_on(model, X, Y)).backward()
    model.zero_grad()
    method.backward(lambda: loss_on(model, X, Y))
    expected.backward(lambda: loss_on(other, X, Y))
    assert_bitwise(method.state_dict()["gate"], expected.state_dict()["gate"])
