"""`rst.sharpness` against exact derivatives of small problems, and what it leaves alone."""

import copy
import gc
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from textbook import Network, assert_bitwise, batch, clean_gradient, perceptron
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset

import rst
from rst.sharpness import Sharpness

Batch = tuple[Tensor, Tensor]


def losses_of(model: nn.Module) -> Callable[[Batch], Tensor]:
    """The cross-entropy of each sample, in the precision of the model."""
    dtype = next(model.parameters()).dtype
    return lambda batch: F.cross_entropy(model(batch[0].to(dtype)), batch[1], reduction="none")


def hessian(model: nn.Module, loss: Callable[[], Tensor]) -> Tensor:
    """∇²L over all trainable parameters as one vector, by `torch.func`."""
    values = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    sizes = [value.numel() for value in values.values()]

    def of_vector(vector: Tensor) -> Tensor:
        pieces = zip(values.items(), vector.split(sizes), strict=True)
        own = {name: piece.view_as(value) for (name, value), piece in pieces}
        with torch.nn.utils.stateless._reparametrize_module(model, own):
            return loss()

    return torch.func.hessian(of_vector)(torch.cat([value.flatten() for value in values.values()]))


class Quadratic(nn.Module):
    """½ wᵀHw with H = Q diag(eigenvalues) Qᵀ for a random orthogonal Q, at a random w."""

    def __init__(self, eigenvalues: list[float], dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        super().__init__()
        n, generator = len(eigenvalues), torch.Generator().manual_seed(seed)
        q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
        self.matrix = ((q * torch.tensor(eigenvalues, dtype=torch.float64)) @ q.T).to(dtype)
        self.w = nn.Parameter(torch.randn(n, dtype=torch.float64, generator=generator).to(dtype))

    def forward(self, _: Any = None) -> Tensor:
        return self.w @ self.matrix @ self.w / 2


def measured(eigenvalues: list[float], **arguments: Any) -> Sharpness:
    model = Quadratic(eigenvalues)
    return rst.sharpness(model, model, [None], 0.1, **arguments)


# Exact values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 40])
def test_the_three_numbers_of_a_small_network_are_the_exact_ones(size: int) -> None:
    model, data, rho = perceptron(), batch(0, size), 0.3
    found = rst.sharpness(model, losses_of(model), [data], rho, tolerance=1e-5, max_iterations=2000)

    def loss() -> Tensor:
        return losses_of(model)(data).mean()

    gradient = clean_gradient(model, loss)
    here = loss().item()
    exact = torch.linalg.eigvalsh(hessian(model, loss))[-1].item()
    weights = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(weights + rho * gradient / gradient.norm(), model.parameters())
    assert found.gradient_norm == pytest.approx(gradient.norm().item(), rel=1e-12)
    assert found.sharpness == pytest.approx(loss().item() - here, rel=1e-9)
    assert found.lambda_max == pytest.approx(exact, rel=1e-6)
    assert found.converged


SPECTRA = {
    "positive": [10.0, 3.0, 1.0, 0.5],
    "a plane of the largest": [10.0, 10.0, 1.0],
    "a dominant negative eigenvalue": [-10.0, 5.0, 1.0, 0.1],
    "a negative eigenvalue of the same magnitude": [5.0, -5.0, 1.0],
    "a negative rival": [5.0, -4.9, 1.0, 0.0],
    "many rivals of both signs": [5.0, 5.0, 4.9, -5.0, -5.0, -4.9, 1.0],
    "negative alone": [-1.0, -2.0, -3.0],
    "one negative number": [-3.0],
    "equal and negative": [-5.0, -5.0, -5.0],
    "tiny": [1e-8, -3e-8],
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", SPECTRA)
def test_the_largest_eigenvalue_is_found_whatever_the_signs_of_the_spectrum(name: str, seed: int) -> None:
    found = measured(SPECTRA[name], seed=seed)
    assert found.converged
    assert found.lambda_max == pytest.approx(max(SPECTRA[name]), rel=0.01)


def test_a_largest_eigenvalue_of_zero_is_found_beside_a_negative_one() -> None:
    """The first iteration loses the null space at once."""
    found = measured([-10.0, 0.0, 0.0])
    assert found.converged
    assert abs(found.lambda_max) <= 1e-3


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8), st.integers(0, 2**32), st.sampled_from([0.1, 0.01, 1e-3]))
@settings(max_examples=150)
def test_what_has_converged_is_within_the_tolerance_of_an_eigenvalue(
    eigenvalues: list[float], seed: int, tolerance: float
) -> None:
    found = measured(eigenvalues, seed=seed, tolerance=tolerance)
    size = max(map(abs, eigenvalues))
    reach = tolerance * max(abs(found.lambda_max), tolerance * size)
    if found.converged:
        assert min(abs(found.lambda_max - value) for value in eigenvalues) <= reach + 1e-12
    assert min(eigenvalues) - 1e-9 <= found.lambda_max <= max(eigenvalues) + 1e-9


@given(st.lists(st.integers(0, 1000).map(lambda n: n / 100), min_size=1, max_size=8), st.integers(0, 2**32))
@settings(max_examples=100)
def test_a_positive_spectrum_takes_as_many_products_as_plain_power_iteration(
    eigenvalues: list[float], seed: int
) -> None:
    """So the shift, which would make it slower, never comes."""
    found = measured(eigenvalues, seed=seed)
    model, generator = Quadratic(eigenvalues), rst.streams.stream("sharpness", seed)
    v = torch.randn(len(eigenvalues), generator=generator, dtype=torch.float64)
    products = 0
    while products < 100:
        v, products = v / v.norm(), products + 1
        w = model.matrix @ v
        value = v @ w
        if (w - value * v).norm() <= 0.01 * max(value, 0.01 * w.norm()):
            break
        v = w
    assert found.iterations == products


def test_the_iteration_ends_at_its_limit_and_says_so() -> None:
    found = measured([10.0, 9.9, 9.8], tolerance=0.0, max_iterations=7)
    assert (found.iterations, found.converged) == (7, False)
    assert 9.8 <= found.lambda_max <= 10


def test_a_loss_that_is_linear_has_no_curvature() -> None:
    model = nn.Linear(3, 1).double()
    found = rst.sharpness(model, lambda x: model(x)[:, 0], [torch.ones(5, 3).double()], 0.5)
    assert (found.lambda_max, found.converged) == (0.0, True)
    assert found.gradient_norm == pytest.approx(2.0)
    assert found.sharpness == pytest.approx(0.5 * 2.0)


def test_where_the_gradient_is_zero_the_loss_does_not_rise() -> None:
    model = Quadratic([2.0, 1.0])
    nn.init.zeros_(model.w)
    found = rst.sharpness(model, model, [None], 0.1)
    assert (found.gradient_norm, found.sharpness) == (0.0, 0.0)
    assert found.lambda_max == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_floating_point_type_is_measured_to_its_precision(dtype: torch.dtype) -> None:
    model = Quadratic([4.0, 2.0, -1.0], dtype)
    found, exact = rst.sharpness(model, model, [None], 0.5), measured([4.0, 2.0, -1.0])
    close = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 0.05)
    assert found.gradient_norm == pytest.approx(exact.gradient_norm, rel=close)
    assert found.lambda_max == pytest.approx(4.0, rel=0.05)


def test_the_same_seed_gives_the_same_numbers_and_another_start_the_same_eigenvalue() -> None:
    first, again, other = (measured([3.0, 1.0, -2.0], tolerance=1e-4, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first.lambda_max == pytest.approx(other.lambda_max, rel=1e-5)


# Over a loader --------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 7), min_size=1, max_size=6))
@settings(max_examples=25)
def test_batches_of_any_sizes_give_what_the_one_big_batch_gives(sizes: list[int]) -> None:
    model, (x, y) = perceptron(), batch(1, sum(sizes))
    loss = losses_of(model)
    parts = list(zip(x.split(sizes), y.split(sizes), strict=True))
    whole, divided = (rst.sharpness(model, loss, data, 0.1, max_iterations=5) for data in ([(x, y)], parts))
    for name in ("gradient_norm", "sharpness", "lambda_max"):
        assert getattr(divided, name) == pytest.approx(getattr(whole, name), rel=1e-9)


def test_a_scalar_loss_is_the_mean_of_the_only_batch() -> None:
    model, data = perceptron(), batch(2)
    of_each = losses_of(model)
    vector, scalar = (rst.sharpness(model, loss, [data], 0.1) for loss in (of_each, lambda part: of_each(part).mean()))
    assert vars(vector) == pytest.approx(vars(scalar))


def test_a_shuffling_loader_gives_each_pass_the_same_batches() -> None:
    """With batch normalisation in training mode, other batches would be another loss."""
    model = Network().train()
    x, y = batch(3, 24)
    for generator in (None, torch.Generator().manual_seed(7)):
        loader, seen = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True, generator=generator), []
        before = generator and generator.get_state()

        def loss(part: Batch, seen: list = seen) -> Tensor:
            seen.append(part[0].sum().item())
            return losses_of(model)(part)

        rst.sharpness(model, loss, loader, 0.1, max_iterations=3)
        passes = [seen[i : i + 3] for i in range(0, len(seen), 3)]
        assert len(passes) == 2 + 3
        assert all(one == passes[0] for one in passes)
        if generator is not None:
            assert_bitwise(generator.get_state(), before)


# The mode -------------------------------------------------------------------------------------------------------------


def test_dropout_in_training_mode_draws_the_same_masks_in_every_pass() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1)).double()
    outputs = []

    def loss(x: Tensor) -> Tensor:
        outputs.append(model[1](torch.ones(64)).tolist())
        return model(x)[:, 0] ** 2

    rst.sharpness(model, loss, [torch.ones(3, 4).double()], 0.0, max_iterations=2)
    assert len(outputs) == 4
    assert all(one == outputs[0] for one in outputs)
    assert 0.0 in outputs[0]


def test_the_mode_of_the_model_decides_what_is_measured() -> None:
    model, data = Network().double(), batch(4)
    training, evaluation = (
        rst.sharpness(model.train(mode), losses_of(model), [data], 0.1, max_iterations=2) for mode in (True, False)
    )
    assert training.gradient_norm != pytest.approx(evaluation.gradient_norm, rel=1e-3)


class Counting(nn.Module):
    """Its loss depends on a buffer of integers that each forward pass moves on, and on one that it rebinds."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("scale", torch.ones(2))
        self.register_buffer("absent", None)

    def forward(self, x: Tensor) -> Tensor:
        losses = (x * self.w).square().sum(1) * (1 + self.calls) * self.scale.sum()
        self.calls += 1
        self.scale = self.scale * 0.5
        self.absent = torch.ones(1)
        return losses


def test_every_batch_meets_the_buffers_that_the_model_came_with() -> None:
    model = Counting()
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    before, names = dict(model._buffers), list(model._buffers)
    values = copy.deepcopy(before)
    whole, divided = (rst.sharpness(model, model, data, 0.1) for data in ([x], x.split(2)))
    assert vars(divided) == pytest.approx(vars(whole), rel=1e-5)
    assert list(model._buffers) == names
    assert all(model._buffers[name] is before[name] for name in names)
    assert_bitwise(dict(model._buffers), values)


# What is left alone ---------------------------------------------------------------------------------------------------


def everything(model: nn.Module) -> dict[str, Any]:
    """All that a measurement must leave alone, as a copy."""
    return copy.deepcopy(
        {
            "state": model.state_dict(),
            "gradients": [p.grad for p in model.parameters()],
            "flags": [p.requires_grad for p in model.parameters()],
            "modes": [module.training for module in model.modules()],
            "random": torch.get_rng_state(),
            "precision": torch.get_default_dtype(),
            "grad mode": torch.is_grad_enabled(),
        }
    )


def assert_left_alone(model: nn.Module, before: dict[str, Any], addresses: list[int]) -> None:
    after = everything(model)
    assert addresses == [p.data_ptr() for p in model.parameters()]
    for part, value in before.items():
        if isinstance(value, list) and any(isinstance(item, Tensor) for item in value):
            for was, now in zip(value, after[part], strict=True):
                assert (was is None) == (now is None)
                assert was is None or torch.equal(was, now)
        elif isinstance(value, (dict, Tensor)):
            assert_bitwise(after[part], value)
        else:
            assert after[part] == value


@pytest.mark.parametrize("fails_in", [None, "gradient", "perturbed", "product"])
@pytest.mark.parametrize("training", [True, False])
def test_weights_buffers_modes_gradients_and_random_numbers_are_left_alone_also_after_an_error(
    fails_in: str | None, training: bool
) -> None:
    model = Network().train(training)
    model.conv.eval()
    for p in model.head.parameters():
        p.grad = torch.full_like(p, 3.0)
    before, addresses = everything(model), [p.data_ptr() for p in model.parameters()]
    passes = {"gradient": 0, "perturbed": 1, "product": 2}
    calls = 0

    def loss(part: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        losses = losses_of(model)(part)
        if fails_in is not None and calls > 2 * passes[fails_in] + 1:
            raise KeyboardInterrupt
        return losses

    def measure() -> None:
        rst.sharpness(model, loss, [batch(5), batch(6, 3)], 0.1, max_iterations=2)

    if fails_in is None:
        measure()
    else:
        with pytest.raises(KeyboardInterrupt):
            measure()
    assert_left_alone(model, before, addresses)


def test_weights_that_cannot_be_moved_by_so_little_come_back_to_the_bit() -> None:
    model = nn.Linear(3, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1e30, -1e-30, 0.1]]))
    before = copy.deepcopy(model.state_dict())
    rst.sharpness(model, lambda x: torch.tanh(model(x))[:, 0], [torch.rand(4, 3)], 0.1)
    assert_bitwise(model.state_dict(), before)


def test_the_generators_of_other_libraries_are_not_drawn_from() -> None:
    before = random.getstate()
    measured([1.0, 2.0])
    assert random.getstate() == before


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=lambda context: context.__name__)
def test_it_may_be_called_where_gradients_are_off(context: Callable) -> None:
    model = perceptron()
    expected = rst.sharpness(model, losses_of(model), [batch(0)], 0.1)
    x, y = batch(0)
    with context():
        assert rst.sharpness(model, losses_of(model), [(x, y)], 0.1) == expected


def test_autocast_around_it_sees_the_moved_weights() -> None:
    model, data = perceptron().float(), batch(0)
    plain = rst.sharpness(model, losses_of(model), [data], 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        cast = rst.sharpness(model, losses_of(model), [data], 1.0)
    assert cast.sharpness == pytest.approx(plain.sharpness, rel=0.1)


def test_frozen_and_unused_parameters_count_for_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)).double()
    model[0].requires_grad_(False)
    model.unused = nn.Linear(2, 2).double()

    def loss(x: Tensor) -> Tensor:
        return model[1](model[0](x)).square().sum(1)

    x = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = rst.sharpness(model, loss, [x], 0.1, tolerance=1e-6, max_iterations=1000)
    inputs = torch.cat([model[0](x), torch.ones(9, 1)], 1)
    assert found.lambda_max == pytest.approx(2 * torch.linalg.eigvalsh(inputs.T @ inputs / 9)[-1].item(), rel=1e-6)


@pytest.mark.parametrize("sign", [1, -1], ids=["unshifted", "shifted"])
def test_beside_the_model_and_a_pass_there_are_at_most_three_vectors_of_the_size_of_the_parameters(sign: int) -> None:
    model = Quadratic([sign * 10.0] + [0.1 * n for n in range(130)])
    held = []

    def loss(_: None) -> Tensor:
        held.append(sum(issubclass(type(o), Tensor) and o.shape == model.w.shape for o in gc.get_objects()))
        return model()[None]

    found = rst.sharpness(model, loss, [None] * 2, 0.1, max_iterations=8)
    assert found.iterations > 3
    assert max(held) - 1 <= 3


@pytest.mark.parametrize("kind", ["expanded", "made in inference mode"])
def test_a_buffer_that_cannot_be_written_is_left_alone(kind: str) -> None:
    with torch.inference_mode(kind != "expanded"):
        buffer = torch.ones(1).expand(3) if kind == "expanded" else torch.ones(3)
    model = nn.Linear(4, 3)
    model.register_buffer("shift", buffer)
    found = rst.sharpness(model, lambda x: (model(x) + model.shift).square().mean(1), [torch.ones(5, 4)], 0.1)
    assert found.lambda_max > 0
    assert model.shift is buffer


# Attention ------------------------------------------------------------------------------------------------------------


def test_attention_by_torchs_fused_function_has_a_second_derivative_here() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    x = torch.randn(4, 5, 8)
    found = rst.sharpness(layer, lambda part: layer(part).square().mean((1, 2)), [x], 0.1)
    assert found.lambda_max > 0


class Once(torch.autograd.Function):
    """The square, whose backward cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradient


def fused_attention(x: Tensor) -> Tensor:
    heads = x.view(1, 1, -1, 1).repeat(1, 1, 1, 8)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(heads, heads, heads)[0, 0]


@pytest.mark.parametrize("part", [Once.apply, fused_attention], ids=["once_differentiable", "fused attention"])
def test_a_part_without_a_second_derivative_is_answered_by_a_sentence_that_says_what_to_write(part: Callable) -> None:
    """`torch.autograd.grad` alone would take the gradient of a `once_differentiable` function for a constant."""
    model = nn.Linear(2, 1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=r"^lambda_max needs a second derivative .*\(SDPBackend.MATH\)") as error:
        rst.sharpness(model, lambda x: part(model(x)).sum(1), [torch.ones(3, 2)], 0.1)
    assert "\n" not in str(error.value)
    assert_bitwise(model.state_dict(), before)


# Bad input ------------------------------------------------------------------------------------------------------------

MODEL = nn.Linear(2, 1)
X = torch.ones(3, 2)


def once() -> Iterator[Tensor]:
    yield X


class Shrinking:
    """Gives one batch fewer each time."""

    def __init__(self) -> None:
        self.batches = 4

    def __iter__(self) -> Iterator[Tensor]:
        self.batches -= 1
        return iter([X] * self.batches)


def squares(x: Tensor) -> Tensor:
    return MODEL(x)[:, 0] ** 2


BAD = {
    "no batches": ({"data": []}, "data has no batches: give at least one"),
    "a generator": ({"data": once()}, "data must be batches that can be iterated several times, got generator"),
    "a tensor": ({"data": X}, r"got Tensor: give a list or a DataLoader, or \[batch\]"),
    "a number": ({"data": 3}, "got int"),
    "fewer at each pass": ({"data": Shrinking()}, "data gave 9 samples at first and 6 later"),
    "a matrix": ({"loss": MODEL}, r"a vector \[n\] of floats, got torch.float32 \[3, 1\]"),
    "no losses": ({"data": [X[:0]]}, r"got torch.float32 \[0\]"),
    "a float": ({"loss": lambda x: 1.0}, r"a vector \[n\] of floats, got float"),
    "integers": ({"loss": lambda x: x[:, 0].long()}, r"got torch.int64 \[3\]"),
    "scalars of several batches": ({"loss": lambda x: squares(x).mean(), "data": [X, X]}, "return the vector"),
    "not a number": ({"loss": lambda x: squares(x) / 0 * 0}, "the loss is not finite"),
    "an infinite gradient": ({"loss": lambda x: (MODEL(x)[:, 0] * 0).sqrt()}, "the gradient is not finite"),
    "another model": ({"loss": lambda x: x[:, 0]}, "loss does not depend on the trainable parameters"),
    "a frozen model": ({"model": nn.Linear(2, 1).requires_grad_(False)}, "model has no trainable parameters"),
    "complex numbers": ({"model": nn.Linear(2, 1, dtype=torch.complex64)}, "model has complex parameters"),
    "rho": ({"rho": -1.0}, "rho must be a finite number >= 0"),
    "tolerance": ({"tolerance": math.nan}, "tolerance must be a finite number >= 0"),
    "max_iterations": ({"max_iterations": 0}, "max_iterations must be an integer >= 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_answered_by_one_sentence(name: str) -> None:
    changes, sentence = BAD[name]
    before = copy.deepcopy(MODEL.state_dict())
    with pytest.raises(ValueError, match=sentence) as error:
        rst.sharpness(**{"model": MODEL, "loss": squares, "data": [X], "rho": 0.1} | changes)
    assert "\n" not in str(error.value)
    assert_bitwise(MODEL.state_dict(), before)


def test_a_wrapped_model_is_refused_with_what_to_give_instead() -> None:
    class FullyShardedDataParallel(nn.Sequential):
        """As torch's wrapper is called, which needs a process group."""

    with pytest.raises(ValueError, match=r"wrapped in FullyShardedDataParallel.* give the plain module"):
        rst.sharpness(FullyShardedDataParallel(MODEL), squares, [X], 0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_numbers_are_those_of_the_cpu_and_its_generator_is_left_alone() -> None:
    model, data = perceptron(), batch(0)
    expected = rst.sharpness(model, losses_of(model), [data], 0.1)
    model.cuda().append(nn.Dropout(0.5)).eval()
    model[-1].train()
    model[-1].p = 0.0
    before = torch.cuda.get_rng_state()
    found = rst.sharpness(model, losses_of(model), [tuple(part.cuda() for part in data)], 0.1)
    assert vars(found) == pytest.approx(vars(expected), rel=1e-6)
    assert_bitwise(torch.cuda.get_rng_state(), before)
