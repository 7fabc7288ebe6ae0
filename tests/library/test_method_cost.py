"""What a sharp step costs beyond its passes: operations, memory, walks of the model. A plain step costs nothing."""

import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from textbook import Counting, Network, assert_bitwise, batch, loss_on
from textbook_variants import device_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from variant_cases import ALWAYS, NEVER, RHO, VARIANTS

import rst
from rst import schedules
from rst.experiments.bench.turns import NewMemory, Operations

X, Y = batch(0)

SCHEMES = {
    "SAM": {},
    "GNR": {"gamma_ratio": 2.0},
    "normalised GNR": {"gamma_ratio": 2.0, "normalise_clean": True},
    "RST": {"schedule": schedules.constant(0.5)},
    "G-RST": {"schedule": schedules.constant(0.5), "gamma_ratio": "auto"},
    "ASAM": {"variant": "asam"},
    "ASAM, c = 2": {"variant": "asam", "gamma_ratio": 2.0},
}
schemes = pytest.mark.parametrize("scheme", SCHEMES)
micro_batches = pytest.mark.parametrize("micro_batches", [1, 4])


# The network ----------------------------------------------------------------------------------------------------------


class Passing(torch.autograd.Function):
    """A loss whose passes take the same few operations, however many tensors it depends on."""

    @staticmethod
    def forward(ctx, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return tensors[0].new_zeros(())

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch._foreach_mul(list(ctx.saved_tensors), gradient))


class Tensors(nn.Module):
    """``count`` trainable tensors; with ``bystanders`` as many frozen ones, and BatchNorm's buffers for every tensor.

    The forward pass moves the running averages as `nn.BatchNorm1d` does, with one operation for all of them.
    """

    def __init__(self, count: int, bystanders: bool = False, size: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weights = nn.ParameterList(torch.randn(size) for _ in range(count))
        self.frozen = nn.ParameterList(torch.randn(size) for _ in range(count if bystanders else 0))
        self.frozen.requires_grad_(False)
        self.norms = nn.ModuleList(nn.BatchNorm1d(size, affine=False) for _ in range(count if bystanders else 0))

    def forward(self) -> Tensor:
        if self.norms:
            torch._foreach_lerp_([norm.running_mean for norm in self.norms], list(self.frozen), 0.1)
            torch._foreach_add_([norm.num_batches_tracked for norm in self.norms], 1)
        return Passing.apply(*self.weights)


def method_of(model: nn.Module, scheme: str) -> rst.RST:
    arguments = {"schedule": ALWAYS, "total_steps": 40, "seed": 4, **SCHEMES[scheme]}
    return rst.RST(model, RHO, **arguments)


def sharp_step(model: nn.Module, method: rst.RST, micro_batches: int) -> None:
    """The next sharp step; the plain ones before it are left out."""
    while not method.sharp:
        method.t += 1
    for i in range(micro_batches):
        method.backward(model, i == micro_batches - 1, 1 / micro_batches)
    model.zero_grad()


# Operations -----------------------------------------------------------------------------------------------------------


def operations(step: Callable[[], None]) -> int:
    """Those of the third step; the first makes the buffers."""
    step()
    step()
    with Operations() as counted:
        step()
    return counted.count


def operations_of_passes(model: Tensors, micro_batches: int) -> int:
    """The same passes without the method, each of which leaves a fresh gradient and adds it to the sum at once."""
    total = [torch.zeros_like(p) for p in model.weights]

    def step() -> None:
        for _ in range(2 * micro_batches):
            (0.5 * model()).backward()
            torch._foreach_add_(total, [p.grad for p in model.weights])
            model.zero_grad()

    return operations(step)


@pytest.mark.parametrize("bystanders", [False, True], ids=["", "buffers and frozen tensors"])
@micro_batches
@schemes
def test_the_operations_beyond_the_passes_do_not_depend_on_the_number_of_tensors(scheme, micro_batches, bystanders):
    beyond = []
    for count in (10, 210):
        model = Tensors(count, bystanders)
        method = method_of(model, scheme)
        own = operations(lambda model=model, method=method: sharp_step(model, method, micro_batches))
        beyond.append(own - operations_of_passes(model, micro_batches))
    assert (beyond[1] - beyond[0]) / 200 / micro_batches <= 0.05
    assert beyond[1] <= 60 * micro_batches


@micro_batches
def test_a_plain_step_dispatches_the_operations_of_a_plain_loop(micro_batches):
    model = Tensors(10, bystanders=True)
    method = rst.RST(model, RHO, NEVER, gamma_ratio=2.0)

    def by_method() -> None:
        for i in range(micro_batches):
            for weight in method.passes(i == micro_batches - 1, 1 / micro_batches):
                (weight * model()).backward()
        model.zero_grad()

    def by_hand() -> None:
        for _ in range(micro_batches):
            (1 / micro_batches * model()).backward()
        model.zero_grad()

    assert operations(by_method) == operations(by_hand)


@pytest.mark.parametrize("variant", ["sam", "asam", "gsam", "looksam", "friendly"])
def test_nothing_in_a_sharp_step_waits_for_the_device(variant):
    """A number that is read on the host, or a shape that depends on numbers, would."""

    class NoWaiting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return func(*args, **(kwargs or {}))

    model = Tensors(10, bystanders=True)
    method = rst.RST(model, RHO, ALWAYS, gamma_ratio=2.0, variant=variant, normalise_clean=True)
    with NoWaiting():
        for _ in range(3):
            sharp_step(model, method, micro_batches=2)


# Memory ---------------------------------------------------------------------------------------------------------------


SIZE = 1000
"""Numbers in each of 10 tensors."""

BYTES = 4 * SIZE * 10


def large() -> Tensors:
    return Tensors(10, size=SIZE)


def made(step: Callable[[], None], at_least: int = 4 * SIZE) -> int:
    with NewMemory(at_least) as memory:
        step()
    return memory.made


def passes_make(model: Tensors, count: int) -> int:
    """Parameter-sized bytes that this many passes make: their gradients."""

    def step() -> None:
        for _ in range(count):
            model().backward()
            model.zero_grad()

    return made(step)


@micro_batches
@pytest.mark.parametrize("variant", ["sam", "asam"])
def test_with_c_1_three_steps_after_the_first_make_no_tensor_beyond_those_of_their_passes(variant, micro_batches):
    model = large()
    method = rst.RST(model, RHO, ALWAYS, variant=variant)
    sharp_step(model, method, micro_batches)
    for _ in range(3):
        own = made(lambda: sharp_step(model, method, micro_batches))
        assert own == passes_make(model, 2 * micro_batches) == 2 * micro_batches * BYTES


def change_and_back(arguments: dict, steps: int) -> tuple[int, int]:
    """Bytes that are made between the passes of a sharp step, and after them; of the last of some steps."""
    model = large()
    method = rst.RST(model, RHO, ALWAYS, **arguments)
    for _ in range(steps):
        model.zero_grad()
        passes = method.passes()
        (next(passes) * model()).backward()
        with NewMemory() as forth:
            weight = next(passes)
        (weight * model()).backward()
        with NewMemory() as back:
            assert next(passes, None) is None
    return forth.made, back.made


@pytest.mark.parametrize("variant", ["sam", "asam"])
def test_the_change_to_the_perturbed_weights_and_back_makes_one_buffer_in_the_first_step_and_none_later(variant):
    forth, back = change_and_back({"variant": variant}, steps=1)
    assert BYTES <= forth < 1.05 * BYTES
    assert back < 0.01 * BYTES
    forth, back = change_and_back({"variant": variant}, steps=2)
    assert forth < 0.05 * BYTES
    assert back < 0.01 * BYTES


class Layers(nn.Module):
    """20 layers of 100 x 100, of which a backward pass finds one gradient after the other, as in any network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*[nn.Linear(100, 100, bias=False) for _ in range(20)])

    def forward(self) -> Tensor:
        return self.layers(torch.ones(1, 100)).square().mean()


@pytest.mark.parametrize("scheme", SCHEMES)
@micro_batches
def test_a_sharp_step_takes_one_buffer_more_than_a_plain_step_at_c_1_and_else_at_most_two(scheme, micro_batches):
    """At the peak of three steps, with what is kept between them; the plain steps have as many micro-batches."""

    def peak(**arguments) -> int:
        model = Layers()
        method = rst.RST(model, RHO, total_steps=3, **arguments)
        with NewMemory() as memory:
            for _ in range(3):
                for i in range(micro_batches):
                    method.backward(model, i == micro_batches - 1, 1 / micro_batches)
                model.zero_grad()
        return memory.peak

    arguments = {**SCHEMES[scheme], "schedule": ALWAYS}
    if arguments.get("gamma_ratio") == "auto":
        arguments["gamma_ratio"] = 2.0
    buffers = (peak(**arguments) - peak(schedule=NEVER)) / (20 * 4 * 100**2)
    assert buffers < 0.2 + (1 if arguments.get("gamma_ratio", 1.0) == micro_batches == 1 else 2)


@pytest.mark.parametrize("variant", ["sam", "asam"])
def test_only_what_is_perturbed_is_saved(variant):
    forth, _ = change_and_back({"variant": variant, "only": lambda name, p: name == "weights.3"}, steps=1)
    assert forth < 0.15 * BYTES


def test_a_training_without_sharp_steps_makes_no_buffer():
    model = large()
    method = rst.RST(model, RHO, NEVER)
    model.zero_grad()

    def step() -> None:
        for weight in method.passes():
            (weight * model()).backward()

    assert made(step) == BYTES
    assert method.forward_passes == method.backward_passes == 1


# What stays where it is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("c", [1.0, 2.0])
def test_parameters_and_buffers_keep_their_addresses(name, c):
    """As captured graphs, fused optimizers and shared memory need it."""
    model = Network()
    method = rst.RST(model, RHO, ALWAYS, c, total_steps=9, variant=VARIANTS[name]())

    def addresses() -> dict[str, int]:
        return {key: tensor.data_ptr() for key, tensor in model.state_dict().items()}

    before, values = addresses(), [p.detach().clone() for p in model.parameters()]
    for t in range(3):
        for i in range(2):
            method.backward(device_of(model, t), i == 1, 0.5)
    assert addresses() == before
    assert_bitwise([p.detach() for p in model.parameters()], values)


@contextmanager
def walks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Inside, the walks of any model are written into the list."""
    walked: list[str] = []
    for name in ("named_modules", "modules", "named_parameters", "parameters", "named_buffers", "buffers", "children"):
        original = getattr(nn.Module, name)

        def walk(self, *args, name=name, original=original, **kwargs):
            walked.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(nn.Module, name, walk)
    yield walked
    monkeypatch.undo()


@micro_batches
@schemes
def test_the_model_is_walked_only_before_the_first_step(scheme, micro_batches, monkeypatch):
    model = Network()
    method = method_of(model, scheme)

    def step() -> None:
        for i in range(micro_batches):
            for weight in method.passes(i == micro_batches - 1, 1 / micro_batches):
                (weight * F.cross_entropy(model(X), Y)).backward()

    step()
    with walks(monkeypatch) as walked:
        for _ in range(6):
            step()
    assert walked == []


@pytest.mark.parametrize("put", [lambda model, new: model.append(new), lambda model, new: model.insert(2, new)])
def test_the_model_is_walked_again_after_it_has_got_a_new_layer(put):
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    method = rst.RST(model, RHO, ALWAYS)
    method.backward(lambda: loss_on(model, X, Y))
    put(model, nn.Linear(4, 4))
    seen = []
    for weight in method.passes():
        seen.append(model[2].weight.detach().clone())
        (weight * loss_on(model, X, Y)).backward()
    assert not torch.equal(*seen)
    assert_bitwise(model[2].weight.detach(), seen[0])


def test_a_buffer_that_every_forward_pass_makes_anew_causes_no_walk_and_keeps_one_copy(monkeypatch):
    model = Counting()
    method = rst.RST(model, RHO, ALWAYS)
    method.backward(lambda: model(torch.ones(8, 4)).mean())
    with walks(monkeypatch) as walked:
        for _ in range(5):
            method.backward(lambda: model(torch.ones(8, 4)).mean())
    assert walked == []
    assert model.steps == 6
    assert len(method._parts._copies) == 1


@pytest.mark.parametrize("variant", ["sam", "gsam", "looksam"])
def test_no_graph_of_an_earlier_step_is_kept_where_passes_make_graphs_of_gradients(variant):
    model, x = nn.Linear(4, 2), torch.ones(8, 4)
    method = rst.RST(model, RHO, ALWAYS, variant=variant, gamma_ratio=2.0)

    def step() -> weakref.ref[Tensor]:
        for weight in method.passes():
            hidden = x * 2
            (weight * (model(hidden)).square().mean()).backward(create_graph=True)
        model.zero_grad()
        return weakref.ref(hidden)

    with warnings.catch_warnings(action="ignore"):  # torch says that such gradients make a cycle.
        hiddens = [step() for _ in range(3)]
    gc.collect()
    assert [hidden() for hidden in hiddens] == [None, None, None]


def test_modules_made_in_the_loop_outside_the_model_cause_no_walk_and_no_new_buffer():
    model, asked = nn.Linear(4, 2), []
    method = rst.RST(model, RHO, ALWAYS, only=lambda name, p: asked.append(name) or True)
    x, y = torch.ones(8, 4), torch.zeros(8, dtype=torch.long)
    method.backward(lambda: nn.CrossEntropyLoss()(model(x), y))
    asked.clear()
    saved = method._weights._saved
    method.backward(lambda: nn.CrossEntropyLoss()(model(x), y))
    assert method._weights._saved is saved
    assert not asked
