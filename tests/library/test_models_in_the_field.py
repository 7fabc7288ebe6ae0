"""Models and loops that people bring: tied and shared weights, moving and read-only tensors, caches, mixed types."""

import pickle
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.utils.parametrize
from textbook import assert_bitwise, batch, clean_gradient, gradient, loss_on, mixed_gradient, perceptron
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map
from variant_cases import VARIANTS, close, left, variants

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


def test_a_parameter_that_two_layers_use_is_one_parameter():
    model = perceptron()
    model.append(nn.Linear(4, 5).double()).append(nn.Linear(5, 4).double())
    model[5].weight, x, y = model[3].weight, *batch(0)
    expected = mixed_gradient(model, lambda: loss_on(model, x, y), RHO, 2.0)
    model.zero_grad()
    sharp(model, gamma_ratio=2.0).backward(lambda: loss_on(model, x, y))
    torch.testing.assert_close(gradient(list(model.parameters())), expected, rtol=1e-9, atol=1e-12)


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


class Late(nn.Module):
    """Changes a large buffer in the second forward pass only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.passes = nn.Linear(4, 4), 0
        self.register_buffer("table", torch.zeros(4, 4))

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


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def read_only(folder: object) -> Tensor:
    np.save(f"{folder}/buffer.npy", np.ones(2**16 + 1, dtype=np.float32))
    return torch.from_numpy(np.load(f"{folder}/buffer.npy", mmap_mode="r"))


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("make", [expanded, of_inference, read_only], ids=lambda make: make.__name__)
def test_a_buffer_that_cannot_be_written_is_left_alone(make, tmp_path):
    model = WithBuffer(make(tmp_path))
    method = sharp(model)
    for _ in range(2):
        method.backward(lambda: model(X))
    assert left(model).any()
    assert_bitwise(model.buffer[:3].clone(), torch.ones(3))


@pytest.mark.parametrize("kind", ["a buffer", "a frozen parameter"])
def test_a_large_tensor_that_no_pass_changes_is_not_copied(kind):
    model = WithBuffer(torch.ones(3))
    if kind == "a buffer":
        model.register_buffer("table", torch.zeros(10**6))
    else:
        model.table = nn.Parameter(torch.zeros(10**6), requires_grad=False)
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
    with pytest.raises(RuntimeError, match=r"^a gradient is sparse .*: build the embedding without sparse=True.$"):
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
    method.backward(lambda: model(X).mean(), share=np.float32(0.5))
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


# A process group of one -----------------------------------------------------------------------------------------------


@pytest.fixture
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
def test_a_static_graph_is_refused_by_the_constructor_where_each_rank_follows_its_own_gradient():
    model = DistributedDataParallel(perceptron(), static_graph=True)
    with pytest.raises(ValueError, match=r"DistributedDataParallel\(static_graph=True\).*sync_perturbation=True"):
        sharp(model)
    rst.RST(model, RHO, schedules.never())
    x, y = batch(0)
    expected = perceptron()
    method, plain = sharp(model, sync_perturbation=True), sharp(expected)
    for _ in range(3):
        method.backward(lambda: nn.functional.cross_entropy(model(x.double()), y))
        plain.backward(lambda: loss_on(expected, x, y))
    close(left(model), left(expected))


def test_a_method_that_is_made_before_the_wrapper_and_the_group_finds_them_at_its_first_step(group_of_one):
    model = nn.ModuleDict({"inner": perceptron()})
    method = sharp(model)
    model["inner"] = DistributedDataParallel(model["inner"], static_graph=True)
    with pytest.raises(ValueError, match="static_graph"):
        method.passes()


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("bucket_view", [False, True])
@pytest.mark.parametrize("c", [1.0, 2.0])
@variants
def test_in_a_group_of_one_ddp_changes_nothing(name, c, bucket_view):
    x, y = batch(0)

    def train(wrap: bool) -> Tensor:
        model = perceptron()
        own = DistributedDataParallel(model, gradient_as_bucket_view=bucket_view) if wrap else model
        method = sharp(own, gamma_ratio=c, variant=VARIANTS[name](), total_steps=9)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            for i in range(2):
                method.backward(
                    lambda rows=slice(None): nn.functional.cross_entropy(
                        own(x[rows].double()), y[rows], reduction="none"
                    ),
                    i == 1,
                    0.5,
                )
            optimizer.step()
            optimizer.zero_grad()
        return nn.utils.parameters_to_vector(model.parameters()).detach()

    close(train(wrap=True), train(wrap=False))
