"""What a training loop gets wrong is answered by one sentence that says what to write instead."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from textbook import batch, loss_on, perceptron
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import rst
from rst import schedules

SCHEDULES = {"plain": schedules.never(), "sharp": schedules.always()}


@pytest.fixture(params=SCHEDULES)
def method(request: pytest.FixtureRequest) -> rst.RST:
    return rst.RST(perceptron(), 0.1, SCHEDULES[request.param])


def loss(method: rst.RST) -> torch.Tensor:
    return loss_on(method.model, *batch(0))


class Output(dict):
    """An output of a network that holds its loss, as those of transformers do."""


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (
            lambda loss: {"class": loss, "box": loss},
            "must return the loss as a tensor, got dict: return the sum of its",
        ),
        (lambda loss: Output(loss=loss, logits=loss), "got Output: return its 'loss'"),
        (lambda loss: (loss, loss), "got tuple: return the loss alone, or the sum"),
        (lambda loss: None, "got NoneType: end it with return loss"),
        (lambda loss: loss.item(), "got float: leave .item\\(\\) out"),
        (lambda loss: loss.detach(), "a loss without a gradient: compute it from the output of the model"),
    ],
    ids=["a dict of losses", "an output", "a tuple", "nothing", "a number", "a detached loss"],
)
def test_a_closure_that_returns_no_loss_is_refused(method, answer, sentence):
    with pytest.raises(ValueError, match=sentence):
        method.backward(lambda: answer(loss(method)))


@pytest.mark.parametrize("options", [{}, {"retain_graph": True}], ids=["once", "keeping its graph"])
@pytest.mark.parametrize("before", ["without a gradient", "with one"])
def test_a_closure_that_calls_backward_is_refused(method, options, before):
    if before == "with one":
        loss(method).backward()

    def closure() -> torch.Tensor:
        own = loss(method)
        own.backward(**options)
        return own

    with pytest.raises(ValueError, match=r"the closure has called backward\(\), as the method does: let it return"):
        method.backward(closure)


def test_after_a_refusal_the_weights_are_as_before_and_a_right_closure_is_accepted(method):
    before = [p.detach().clone() for p in method.model.parameters()]
    with pytest.raises(ValueError, match="got dict"):
        method.backward(lambda: {"loss": loss(method)})
    assert all(torch.equal(p, old) for p, old in zip(method.model.parameters(), before, strict=True))
    method.backward(lambda: loss(method))
    assert method.t == 1


def test_a_closure_of_a_plain_step_may_clear_the_gradient_of_the_step_before():
    method = rst.RST(perceptron(), 0.1, schedules.never())
    loss(method).backward()
    method.backward(lambda: (method.model.zero_grad(), loss(method))[1])


@pytest.mark.parametrize("schedule", [schedules.never(), schedules.always()], ids=str)
def test_an_optimizer_that_steps_inside_the_passes_is_refused_and_the_weights_are_as_before(schedule):
    model = perceptron()
    method, optimizer = rst.RST(model, 0.1, schedule), torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]

    def loop() -> None:
        for weight in method.passes():
            (weight * loss(method)).backward()
            optimizer.step()

    with pytest.raises(RuntimeError, match=r"optimizer.step\(\) was called before the passes of the step were done"):
        loop()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_an_optimizer_that_steps_after_an_interrupted_loop_is_refused_until_the_step_is_given_up(method):
    optimizer, passes = torch.optim.SGD(method.model.parameters(), lr=0.1), method.passes()
    for weight in passes:
        (weight * loss(method)).backward()
        break
    with pytest.raises(RuntimeError, match=r"after an interrupted loop call restore\(\) first"):
        optimizer.step()
    method.restore()
    optimizer.step()


def test_an_optimizer_of_another_model_may_step_inside_the_passes(method):
    other = perceptron()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    for weight in method.passes():
        (weight * loss(method)).backward()
        optimizer.step()
    assert method.t == 1


def test_parameters_in_the_place_of_a_model_are_refused():
    for wrong in (perceptron().parameters(), list(perceptron().parameters())):
        with pytest.raises(ValueError, match=r"write RST\(model, ...\), without .parameters\(\)"):
            rst.RST(wrong, 0.1, schedules.always())
    with pytest.raises(ValueError, match=r"write sharpness\(model, ...\), without .parameters\(\)"):
        rst.sharpness(perceptron().parameters(), lambda batch: batch, [], rho=0.1)


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize(("variant", "warns"), [("sam", False), ("gsam", True), ("looksam", True)])
def test_a_communication_hook_that_takes_no_part_is_warned_about(variant, warns):
    wrapped = DistributedDataParallel(perceptron())
    wrapped.register_comm_hook(None, allreduce_hook)
    method = rst.RST(wrapped, 0.1, schedules.always(), variant=variant)
    with warnings.catch_warnings(record=True) as caught:
        method.backward(lambda: loss(method))
    assert any("without the communication hook" in str(warning.message) for warning in caught) == warns


def test_a_model_without_trainable_parameters_is_told_that_no_gradient_came():
    model = nn.Linear(3, 3, bias=False).requires_grad_(False)
    x = torch.ones(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="the clean pass left no gradient"):
        rst.RST(model, 0.1, schedules.always()).backward(lambda: model(x).mean())


@pytest.mark.usefixtures("group_of_one")
def test_a_model_that_is_wrapped_twice_is_refused():
    once = DistributedDataParallel(perceptron())
    with pytest.raises(ValueError, match="wraps a model that it has wrapped already: wrap it once"):
        rst.RST(DistributedDataParallel(once), 0.1, schedules.always())
    assert rst.RST(nn.ModuleList([once, DistributedDataParallel(perceptron())]), 0.1, schedules.always())


def warned(method: rst.RST, optimizer: object, steps: int) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            method.backward(lambda: loss(method))
            optimizer.step()
            method.model.zero_grad()
    assert all(warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


def test_an_optimizer_of_another_model_is_warned_about_once(method):
    optimizer = torch.optim.SGD(perceptron().parameters(), lr=0.1)
    [sentence] = warned(method, optimizer, steps=30)
    assert sentence.startswith(
        "no weight of the model has changed in 10 steps: build the optimizer from the parameters"
    )


@pytest.mark.parametrize("name", ["1.weight", "3.bias"])
def test_an_optimizer_of_some_parameters_is_not(method, name):
    assert warned(method, torch.optim.SGD([method.model.get_parameter(name)], lr=1e-3), steps=30) == []


def test_an_embedding_of_which_the_first_rows_are_unused_is_not():
    model = nn.Embedding(100, 4)
    optimizer, method = torch.optim.SGD(model.parameters(), lr=0.1), rst.RST(model, 0.1, rst.schedules.always())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(12):
            method.backward(lambda: model(torch.arange(50, 100)).square().mean())
            optimizer.step()
            optimizer.zero_grad()


def test_ten_steps_without_an_optimizer_pass_without_a_word(method):
    assert warned(method, SimpleNamespace(step=lambda: None), steps=10) == []


def test_a_training_that_is_resumed_counts_its_own_steps(method):
    state = rst.RST(perceptron(), 0.1, method.schedule).state_dict() | {"t": 100}
    method.load_state_dict(state)
    optimizer = torch.optim.SGD(perceptron().parameters(), lr=0.1)
    assert len(warned(method, optimizer, steps=10)) == 0
    assert len(warned(method, optimizer, steps=1)) == 1
