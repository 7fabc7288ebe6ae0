"""What a sharp step of any variant leaves alone, and how an error in any of its passes ends it."""

import pytest
import torch
from textbook import assert_bitwise, left, perceptron
from textbook_variants import device_of, vector
from torch import Tensor, nn
from torch.nn import functional as F
from variant_cases import ALWAYS, RHO, VARIANTS, variants

import rst


class Recording(nn.Module):
    """Records its dropout masks, and has a buffer that every forward pass changes, also in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(36, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.masks: list[Tensor] = []
        self.fails_at = self.done = 0

    def forward(self, x: Tensor) -> Tensor:
        self.done += 1
        if self.done == self.fails_at:
            raise ZeroDivisionError
        self.calls = self.calls + 1
        x = self.norm(self.first(x.flatten(1))).tanh()
        mask = F.dropout(torch.ones_like(x), 0.5, self.training)
        if self.training:
            self.masks.append(mask)
        return self.last(x * mask)


@variants
def test_buffers_random_numbers_modes_and_weights_are_as_after_one_plain_step(name):
    plain, model = Recording(), Recording()
    model.last.eval()
    method = rst.RST(model, RHO, ALWAYS, total_steps=4, variant=VARIANTS[name]())
    before = vector(model)
    for t in range(4):
        torch.manual_seed(t)
        device_of(plain, t)()
        expected = torch.get_rng_state()
        torch.manual_seed(t)
        method.backward(device_of(model, t))
        assert_bitwise(torch.get_rng_state(), expected)
    assert_bitwise(dict(model.named_buffers()), dict(plain.named_buffers()))
    assert_bitwise(vector(model), before)
    assert [m.training for m in model.modules()] == [True, True, True, False]


@variants
def test_all_training_passes_over_the_whole_batch_have_the_same_dropout_masks(name):
    """The last pass of ESAM is over fewer samples and has other masks."""
    model = Recording()
    method = rst.RST(model, RHO, ALWAYS, total_steps=2, variant=VARIANTS[name]())
    method.backward(device_of(model, 0))
    whole = [mask for mask in model.masks if len(mask) == 8]
    assert len(whole) == 2
    assert_bitwise(whole[1], whole[0])
    model.masks.clear()
    method.backward(device_of(model, 0))
    assert not torch.equal(model.masks[0], whole[0])


@variants
def test_after_an_error_in_any_forward_pass_the_step_can_be_run_again(name):
    """The forward passes are the clean one, those of SSAM-F's samples or of ESAM's selection, and the perturbed one.

    An error leaves weights, buffers and modes as a plain pass does.
    """

    def prepared() -> tuple[Recording, rst.RST]:
        model = Recording()
        torch.manual_seed(1)
        return model, rst.RST(model, RHO, ALWAYS, total_steps=2, variant=VARIANTS[name]())

    undisturbed, method = prepared()
    method.backward(device_of(undisturbed, 0))
    assert undisturbed.done == {"esam": 3, "ssam_f": 7}.get(name, 2)
    for failing in range(1, undisturbed.done + 1):
        model, method = prepared()
        before, model.fails_at = vector(model), failing
        with pytest.raises(ZeroDivisionError) as held:
            method.backward(device_of(model, 0))
        assert held.tb is not None
        assert_bitwise(vector(model), before)
        assert method.t == 0
        assert all(m.training for m in model.modules())
        assert model.calls == (failing > 1)

        model.load_state_dict(Recording().state_dict())
        model.zero_grad()
        torch.manual_seed(1)
        method.backward(device_of(model, 0))
        assert_bitwise(left(model), left(undisturbed))


@variants
def test_in_one_autocast_region_no_pass_uses_cached_weights_of_another(name):
    def run(cached: bool) -> list[Tensor]:
        model = perceptron().float()
        method = rst.RST(model, 1.0, ALWAYS, total_steps=3, variant=VARIANTS[name]())
        result = []
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
            for t in range(3):
                model.zero_grad()
                method.backward(device_of(model, t))
                result.append(left(model))
        return result

    assert_bitwise(run(cached=True), run(cached=False))
