"""The state of each variant: saved, loaded, and continued from."""

import copy
import io

import pytest
import torch
from textbook import Network, assert_bitwise, left, perceptron, state
from textbook_variants import ALL, Chosen, device_of
from torch import Tensor
from variant_cases import ALWAYS, RHO, VARIANTS, epsilon_of, mask_of, random, variants

import rst
from rst import schedules
from rst.variants import SSAMD, SSAMF


class Training:
    """A network with dropout, its optimizer and the method, of whose steps about 70 % are sharp."""

    def __init__(self, name: str) -> None:
        self.model = Network()
        self.optimizer = torch.optim.SGD(self.model.groups(), lr=0.1, momentum=0.9)
        self.method = rst.RST(
            self.model, RHO, schedules.constant(0.7), "auto", total_steps=10, seed=1, variant=VARIANTS[name]()
        )
        torch.manual_seed(7)

    def run_to(self, end: int) -> None:
        while self.method.t < end:
            self.method.backward(device_of(self.model, self.method.t))
            self.optimizer.step()
            self.optimizer.zero_grad()

    def save(self) -> dict:
        file = io.BytesIO()
        torch.save(state(self.model, self.optimizer) | {"method": self.method.state_dict()}, file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    def load(self, checkpoint: dict) -> None:
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.method.load_state_dict(checkpoint["method"])
        torch.set_rng_state(checkpoint["random"])


@variants
def test_stopping_at_any_step_and_continuing_equals_never_stopping(name):
    """Also between two SAM steps of LookSAM and between two masks of SSAM; the file is loaded with weights_only."""
    first, checkpoints = Training(name), []
    for end in range(11):
        first.run_to(end)
        checkpoints.append(first.save())
    for checkpoint in checkpoints[1:-1:2]:
        torch.manual_seed(99)
        second = Training(name)
        second.load(checkpoint)
        second.run_to(10)
        assert_bitwise(second.save(), checkpoints[-1])


@variants
def test_a_saved_state_does_not_change_while_training_continues(name):
    training = Training(name)
    training.run_to(4)
    taken = training.method.state_dict()
    copied = copy.deepcopy(taken)
    training.run_to(10)
    assert_bitwise(taken, copied)


@pytest.mark.parametrize("name", ["looksam", "ssam_f", "ssam_d"])
def test_a_loaded_state_moves_to_the_device_of_the_weights(name):
    """As when a checkpoint is read on the CPU for a model on an accelerator, here the device "meta"."""
    training = Training(name)
    training.run_to(4)
    other = rst.RST(
        Network().to("meta"), RHO, schedules.constant(0.7), total_steps=10, seed=1, variant=VARIANTS[name]()
    )
    other.load_state_dict(training.method.state_dict())
    loaded = other.variant.state_dict()
    tensors = loaded["mask"] if "mask" in loaded else loaded["directions"][0]
    assert tensors
    assert {tensor.device.type for tensor in tensors.values()} == {"meta"}


@pytest.mark.parametrize("kind", [SSAMF, SSAMD])
def test_a_mask_that_is_due_is_made_when_a_step_that_failed_is_run_again(kind):
    model = Chosen(40)
    method = rst.RST(model, RHO, ALWAYS, total_steps=4, variant=kind(update_every=2))
    for t in range(2):
        epsilon_of(method, model, random(t, 4, 40))
    old = mask_of(method)

    def failing(rows=ALL) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        method.backward(failing)
    epsilon_of(method, model, random(2, 4, 40))
    assert not torch.equal(mask_of(method), old)


def test_a_step_that_is_run_again_is_perturbed_under_the_mask_from_before_in_all_its_micro_batches():
    gradients = []
    for fails in (False, True):
        model = perceptron()
        method = rst.RST(model, RHO, ALWAYS, total_steps=4, variant=SSAMD(update_every=1))
        method.backward(device_of(model, 0))
        model.zero_grad()
        if fails:
            for _ in method.passes(advance=False):
                device_of(model, 1)().mean().backward()  # After its second pass the new mask is made.
            method.restore()
            model.zero_grad()
        for micro_batch in (1, 2):
            method.backward(device_of(model, micro_batch), advance=micro_batch == 2, share=1 / 2)
        gradients.append(left(model))
    assert_bitwise(*gradients)


def test_a_mask_is_exchanged_where_a_parameter_is_empty():
    model = Chosen(40)
    model.empty = torch.nn.Parameter(torch.zeros(0))
    method = rst.RST(model, RHO, ALWAYS, total_steps=4, variant=SSAMD(update_every=1))
    for _ in range(2):
        method.backward(lambda: model.empty.sum() + sum(p.square().sum() for p in model.parameters()))
    assert method.t == 2


@variants
def test_after_loading_a_step_starts_with_its_first_micro_batch(name):
    model = perceptron()
    method = rst.RST(model, RHO, ALWAYS, total_steps=4, variant=VARIANTS[name]())
    other = rst.RST(model, RHO, ALWAYS, total_steps=4, variant=VARIANTS[name]())
    saved = copy.deepcopy(other.state_dict())
    other.backward(device_of(model, 5), advance=False)
    other.load_state_dict(saved)
    gradients = []
    for m in (method, other):
        model.zero_grad()
        m.backward(device_of(model, 0))
        gradients.append(left(model))
    assert_bitwise(gradients[1], gradients[0])
    assert_bitwise(other.state_dict(), method.state_dict())
