"""Buffers and frozen parameters: those that move in every pass, and those that cannot be written or copied."""

import numpy as np
import pytest
import torch
import torch.nn.utils.parametrize
from textbook import assert_bitwise, left
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import rst
from rst import schedules

RHO = 0.1
X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
ALWAYS = schedules.always()


def sharp(model: nn.Module, **arguments) -> rst.RST:
    return rst.RST(model, RHO, ALWAYS, **arguments)


# Tensors that move inside the forward pass ----------------------------------------------------------------------------


class MomentumEncoder(nn.Module):
    """A frozen encoder that follows the trained one in every forward pass."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trained, self.frozen, self.how = nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False), how

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for own, other in zip(self.frozen.parameters(), self.trained.parameters(), strict=True):
                if self.how == "in place":
                    own.lerp_(other, 0.1)
                else:
                    own.data = own.data.lerp(other.data, 0.1)
        return (self.trained(x) - self.frozen(x)).square().mean()


@pytest.mark.parametrize("how", ["in place", ".data ="])
@pytest.mark.parametrize("variant", ["sam", "gsam"])
def test_a_frozen_encoder_that_moves_inside_forward_is_as_after_plain_steps(variant, how):
    plain, model = MomentumEncoder(how), MomentumEncoder(how)
    method = sharp(model, variant=variant)
    for _ in range(3):
        plain(X)
        method.backward(lambda: model(X))
    assert_bitwise(list(model.frozen.state_dict().values()), list(plain.frozen.state_dict().values()))


class Codebook(nn.Module):
    """Follows its outputs through ``.data``, which has a version of its own, in every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(2, 4))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(x)
        self.mean.data.mul_(0.9).add_(z.detach().mean(0), alpha=0.1)
        self.count.data += 1
        return z.square().mean()


def test_buffers_that_are_written_through_data_are_as_after_plain_steps():
    plain, model = Codebook(), Codebook()
    method = sharp(model)
    for _ in range(3):
        plain(X)
        method.backward(lambda: model(X))
    assert_bitwise(list(model.buffers()), list(plain.buffers()))


def test_a_buffer_that_is_deleted_between_steps_is_no_longer_looked_for():
    model = WithBuffer(torch.ones(3))
    model.register_buffer("calibration", torch.zeros(2))
    method = sharp(model)
    method.backward(lambda: model(X))
    del model.calibration
    method.backward(lambda: model(X))
    assert method.sharp_steps == 2


def test_a_buffer_that_becomes_none_and_back_again_is_as_after_plain_steps():
    class Cached(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            self.register_buffer("cache", None)

        def forward(self, x: Tensor) -> Tensor:
            self.cache = torch.ones(3) if self.cache is None else None
            return super().forward(x).square().mean()

    model = Cached()
    method = sharp(model)
    for step in range(4):
        method.backward(lambda: model(X))
        assert (model.cache is None) == bool(step % 2)


class Late(nn.Module):
    """Changes a large buffer in the second forward pass only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.passes = nn.Linear(4, 4), 0
        self.register_buffer("table", torch.zeros(2**16 + 1, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.passes == 2:
            self.table.add_(1)
        return self.layer(x).mean()


def test_a_buffer_that_only_the_perturbed_pass_changes_is_refused_in_a_sentence():
    model = Late()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match="changed in the perturbed pass but not in the clean pass"):
        sharp(model).backward(lambda: model(X))
    assert_bitwise([p.detach() for p in model.parameters()], before)


# Tensors that cannot be written, or are too large to copy -------------------------------------------------------------


class WithBuffer(nn.Module):
    def __init__(self, buffer: Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("buffer", buffer)

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x) + self.buffer[:3]).square().mean()


def expanded(folder: object) -> Tensor:
    return torch.ones(1).expand(3)


def of_inference(folder: object) -> Tensor:
    with torch.inference_mode():
        return torch.ones(3)


def read_only(folder: object, size: int = 3) -> Tensor:
    np.save(f"{folder}/buffer.npy", np.ones(size, dtype=np.float32))
    return torch.from_numpy(np.load(f"{folder}/buffer.npy", mmap_mode="r"))


def large_and_read_only(folder: object) -> Tensor:
    return read_only(folder, 2**22 + 1)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize(
    "make", [expanded, of_inference, read_only, large_and_read_only], ids=lambda make: make.__name__
)
def test_a_buffer_that_cannot_be_written_is_left_alone(make, tmp_path):
    model = WithBuffer(make(tmp_path))
    method = sharp(model)
    for _ in range(2):
        method.backward(lambda: model(X))
    rst.sharpness(model, lambda x: model(x).reshape(1), [X], RHO)
    assert left(model).any()
    assert_bitwise(model.buffer[:3].clone(), torch.ones(3))


@pytest.mark.parametrize("kind", ["a buffer", "a frozen parameter"])
def test_a_large_tensor_that_no_pass_changes_is_not_copied(kind):
    model = WithBuffer(torch.ones(3))
    if kind == "a buffer":
        model.register_buffer("table", torch.zeros(2**22 + 1))
    else:
        model.table = nn.Parameter(torch.zeros(2**22 + 1), requires_grad=False)
    method = sharp(model)
    method.backward(lambda: model(X))

    class Large(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            tree_map(self.check, result)
            return result

        def check(self, value: object) -> None:
            assert not isinstance(value, Tensor) or value.numel() < 10**6

    with Large():
        method.backward(lambda: model(X))
