"""Models sharded by ``fully_shard`` (FSDP2) on two ranks, connected by gloo, against one process with the whole batch.

One pair of processes runs every case once and returns what it saw; the tests compare. The last layers have fewer rows
than there are ranks, so that the second rank has empty shards.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from gloo_ranks import refusal, results_of_ranks
from textbook import OPTIMIZERS, assert_bitwise, batch, clean_gradient, loss_on
from textbook_variants import Esam
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_module, distribute_tensor
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

import rst
from rst import schedules
from rst.streams import stream
from rst.variants import ESAM

RANKS, STEPS, RHO, SEED = 2, 5, 0.1, 1
ALWAYS, SOMETIMES = schedules.always(), schedules.constant(0.5)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(36, 5), nn.Tanh(), nn.Linear(5, 1), nn.Tanh(), nn.Linear(1, 4)
    return nn.Sequential(nn.Flatten(), *layers).double()


@functools.cache
def mesh_of(layout: str) -> DeviceMesh:
    """``2``: two shards; ``replicas x shards``: both; ``whole``: a mesh of this rank alone."""
    if layout == "2":
        return init_device_mesh("cpu", (RANKS,))
    replicas, shards = (2, 1) if layout == "whole" else map(int, layout.split("x"))
    mesh = init_device_mesh("cpu", (replicas, shards), mesh_dim_names=("replicate", "shard"))
    return mesh["shard"] if layout == "whole" else mesh


def shard(model: nn.Module, layout: str = "2", **options: Any) -> nn.Module:
    """Every second layer is a group of its own, as the layers of a transformer are; the rest belongs to the root."""
    for layer in (model[1], model[5]):
        fully_shard(layer, mesh=mesh_of(layout), **options)
    return fully_shard(model, mesh=mesh_of(layout), **options)


def reshard(model: nn.Module) -> None:
    """Put the shards back into the place of parameters that are still gathered."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()


def full(model: nn.Module) -> Tensor:
    """All weights of a sharded or whole model as one vector."""
    reshard(model)
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return torch.cat([p.detach().flatten() for p in whole]).clone()


def local(model: nn.Module) -> list[Tensor]:
    return [p.detach().to_local().clone() if isinstance(p, DTensor) else p.detach().clone() for p in model.parameters()]


def only_weights(name: str, parameter: Tensor) -> bool:
    return name.endswith("weight")


# Training, sharded on a rank or in one process ------------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    **{
        f"{layout}, {optimizer}, c={c:g}": {"layout": layout, "optimizer": optimizer, "c": c}
        for layout in ("2", "2x1", "1x2")
        for optimizer in ("momentum", "adamw")
        for c in (1.0, 2.0)
    },
    **{
        f"{layout}, {optimizer}, c={c:g}, only weights": {
            "layout": layout,
            "optimizer": optimizer,
            "c": c,
            "only": only_weights,
        }
        for layout in ("2", "2x1", "1x2")
        for optimizer in ("momentum", "adamw")
        for c in (1.0, 2.0)
    },
    **{f"{name}, {layout}": {"variant": name, "c": 2.0, "layout": layout}
       for name in ("asam", "friendly") for layout in ("2", "2x1")},
    "RST": {"schedule": SOMETIMES},
    "G-RST": {"schedule": SOMETIMES, "c": "auto"},
    "closed gate": {"schedule": schedules.never()},
    "adaptive gate": {"schedule": schedules.ae_sam(), "c": 2.0},
    "normalised": {"c": 2.0, "normalise_clean": True},
    "micro-batches, c=1": {"micro_batches": 2},
    "micro-batches, c=2": {"micro_batches": 2, "c": 2.0},
    "micro-batches, friendly": {"micro_batches": 2, "c": 2.0, "variant": "friendly"},
    "micro-batches, RST": {"micro_batches": 2, "schedule": SOMETIMES},
    "micro-batches, reduced at the end of plain steps": {
        "micro_batches": 2,
        "schedule": schedules.never(),
        "reduce_last": True,
    },
    "clipped": {"c": 2.0, "clip": 0.05},
    "frozen layer": {"c": 2.0, "frozen": True},
    "a mesh of one rank": {"c": 2.0, "layout": "whole"},
    "not resharded after forward": {"c": 2.0, "reshard_after_forward": False},
    "not resharded after backward": {"c": 2.0, "reshard_after_backward": False},
    "never resharded": {"c": 2.0, "reshard_after_forward": False, "reshard_after_backward": False},
    "made before": {"c": 2.0, "when": "before"},
    "made where parameters are gathered": {"c": 2.0, "when": "gathered", "reshard_after_forward": False},
    "after an error in the perturbed pass": {"c": 2.0, "error_at": 2},
    "after an error, not resharded": {"c": 2.0, "error_at": 2, "reshard_after_forward": False},
}  # fmt: skip


class Training:
    """A model, sharded unless the layout is None, with its optimizer and the method."""

    def __init__(
        self,
        layout: str | None = "2",
        optimizer: str = "momentum",
        c: float | str = 1.0,
        schedule: Any = ALWAYS,
        micro_batches: int = 1,
        clip: float | None = None,
        frozen: bool = False,
        when: str = "after",
        reshard_after_backward: bool = True,
        reduce_last: bool = False,
        error_at: int | None = None,
        variant: str = "sam",
        only: Callable[[str, Tensor], bool] | None = None,
        normalise_clean: bool = False,
        **sharding: Any,
    ) -> None:
        self.model = network()
        self.model[3].requires_grad_(not frozen)
        make = functools.partial(
            rst.RST, self.model, RHO, schedule, c, STEPS, SEED, variant, only, layout is not None, normalise_clean
        )
        if when == "before":
            self.method = make()
        if layout is not None:
            shard(self.model, layout, **sharding)
            self.model.set_reshard_after_backward(reshard_after_backward)
        if when == "gathered":
            with torch.no_grad():
                self.model(batch(0)[0].double())
        if when != "before":
            self.method = make()
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.layout, self.micro_batches, self.clip, self.error_at = layout, micro_batches, clip, error_at
        self.reduce_last = reduce_last and layout is not None
        self.weights: list[Tensor] = []
        self.restored: list[bool] = []

    def run_to(self, end: int, rank: int) -> "Training":
        while self.method.t < end:
            if self.error_at == self.method.t:
                self.fail()
            before = local(self.model)
            for index in range(self.micro_batches):
                x, y = batch(10 * self.method.t + index)
                if self.layout not in (None, "whole"):
                    x, y = x.chunk(RANKS)[rank], y.chunk(RANKS)[rank]
                if self.reduce_last:
                    self.model.set_requires_gradient_sync(index == self.micro_batches - 1)
                for weight in self.method.passes(index == self.micro_batches - 1, 1 / self.micro_batches):
                    (weight * loss_on(self.model, x, y)).backward()
            reshard(self.model)
            self.restored.append(all(map(torch.equal, before, local(self.model))))
            if self.clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.weights.append(full(self.model))
        return self

    def fail(self) -> None:
        """A step whose perturbed pass ends with an error in the middle of the forward pass."""

        def stop(*_: object) -> None:
            raise KeyError

        def step() -> None:
            for weight in self.method.passes():
                (weight * loss_on(self.model, x, y)).backward()
                hooks.append(self.model[4].register_forward_hook(stop))

        x, y = batch(99)
        hooks: list[Any] = []
        with pytest.raises(KeyError):
            step()
        hooks[0].remove()
        if self.layout is not None:
            self.model.reset_iter_state()  # as fully_shard asks after an error in a pass
        self.optimizer.zero_grad()


def run_case(rank: int, **case: Any) -> dict:
    training = Training(**case).run_to(STEPS, rank)
    return {"weights": training.weights, "restored": training.restored, "sharp_steps": training.method.sharp_steps}


# What else a rank does ------------------------------------------------------------------------------------------------


def run_esam(rank: int) -> Tensor:
    """The gradient of a step of ESAM, which chooses rows on each rank by itself."""
    model = shard(network())
    method = rst.RST(model, RHO, ALWAYS, 2.0, STEPS, SEED, variant=ESAM(0.6, 0.5), sync_perturbation=True)
    method.backward(device_of_rank(model, rank))
    return torch.cat([p.grad.full_tensor().flatten() for p in model.parameters()])


def device_of_rank(model: nn.Module, rank: int) -> Callable[..., Tensor]:
    x, y = batch(100 + rank)
    return lambda rows=slice(None): nn.functional.cross_entropy(model(x.double()[rows]), y[rows], reduction="none")


def run_mixed_precision(rank: int) -> dict:
    """Three steps in bfloat16 with sums over the ranks in float32: by the method, and by hand on the same shards."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    models = [shard(network().float(), mp_policy=policy) for _ in range(2)] + [shard(network().float())]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    methods = [rst.RST(model, RHO, ALWAYS, sync_perturbation=True) for model in (models[0], models[2])]
    for t in range(3):
        x, y = (part.chunk(RANKS)[rank] for part in batch(t))
        for method, model in zip(methods, (models[0], models[2]), strict=True):
            method.backward(lambda model=model, x=x, y=y: loss_on(model, x, y))
        sam_by_hand(models[1], lambda x=x, y=y: loss_on(models[1], x, y))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return dict(zip(("method", "by hand", "float32"), map(full, models), strict=True))


def sam_by_hand(model: nn.Module, loss: Callable[[], Tensor]) -> None:
    """SAM's gradient of sharded parameters, with DTensors alone."""
    loss().backward()
    weights = [p.detach().clone() for p in model.parameters()]
    norm = torch.cat([p.grad.full_tensor().flatten() for p in model.parameters()]).norm().item()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(p.grad, alpha=RHO / norm)
    model.zero_grad()
    loss().backward()
    with torch.no_grad():
        for p, weight in zip(model.parameters(), weights, strict=True):
            p.copy_(weight)


def run_replicated(rank: int) -> Tensor:
    """A model whose parameters are whole on each rank, and DTensors."""
    mesh = mesh_of("2")
    model = distribute_module(network(), mesh)
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    method = rst.RST(model, RHO, ALWAYS, 2.0, sync_perturbation=True)
    for t in range(STEPS):
        x, y = (distribute_tensor(part, mesh, [Replicate()]) for part in batch(10 * t))
        method.backward(lambda x=x, y=y: nn.functional.cross_entropy(model(x.double()), y))
        optimizer.step()
        optimizer.zero_grad()
    return full(model)


def even_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.Tanh(), nn.Linear(6, 4)).double()


def run_tensor_parallel(rank: int) -> Tensor:
    """The gradient of a model with layers that are split over the ranks, which have the same batch."""
    model = parallelize_module(even_network(), mesh_of("2"), {"1": ColwiseParallel(), "3": RowwiseParallel()})
    method = rst.RST(model, RHO, ALWAYS, 2.0, sync_perturbation=True)
    method.backward(lambda: loss_on(model, *batch(0)))
    return torch.cat([p.grad.full_tensor().flatten() for p in model.parameters()])


CHECKPOINTED = {"schedule": SOMETIMES, "c": "auto", "optimizer": "adamw"}


def run_checkpoint(rank: int, folder: str, **case: Any) -> dict:
    """A training that is saved by ``torch.distributed.checkpoint`` after two steps, and one that continues from it."""
    first = Training(**case).run_to(2, rank)
    dcp.save(state_of(first), checkpoint_id=folder)
    first.run_to(STEPS, rank)
    torch.manual_seed(rank)
    second = Training(**case)
    with torch.no_grad():
        for p in second.model.parameters():
            p.add_(1.0)
    state = state_of(second)
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(second.model, second.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    assert second.method.t == 2
    second.run_to(STEPS, rank)
    return {"never stopped": first.weights[2:], "continued": second.weights}


def state_of(training: Training) -> dict:
    """The method takes part as an object with `state_dict` and `load_state_dict`."""
    model, optimizer = get_state_dict(training.model, training.optimizer)
    return {"model": model, "optimizer": optimizer, "method": training.method}


def run_state_of_a_rank(rank: int) -> dict:
    """FriendlySAM, whose mean is sharded too: every rank keeps its own state of the method."""
    case = {"variant": "friendly", "c": 2.0}
    first = Training(**case).run_to(2, rank)
    model, saved = copy.deepcopy(local(first.model)), copy.deepcopy(first.method.state_dict())
    momentum = copy.deepcopy(first.optimizer.state_dict())
    first.run_to(STEPS, rank)
    second = Training(**case)
    with torch.no_grad():
        for p, own in zip(second.model.parameters(), model, strict=True):
            p.to_local().copy_(own)
    second.optimizer.load_state_dict(momentum)
    second.method.load_state_dict(saved)
    second.run_to(STEPS, rank)
    return {"never stopped": first.weights[2:], "continued": second.weights}


def run_refusals(rank: int) -> dict[str, str]:
    def make(model: nn.Module, synced: bool = True, **options: Any) -> rst.RST:
        return rst.RST(model, RHO, ALWAYS, sync_perturbation=synced, **options)

    def step(model: nn.Module, method: rst.RST) -> None:
        x, y = batch(0)
        method.backward(lambda: loss_on(model, x, y))

    def made_before() -> None:
        model = network()
        method = make(model, synced=False)
        step(shard(model), method)

    def unreduced() -> None:
        model = shard(network())
        model.set_requires_gradient_sync(False)
        step(model, make(model))

    def partial_parameter() -> None:
        model = network()
        sums = DTensor.from_local(torch.ones(4).double(), mesh_of("2"), [Partial()])
        model[5].bias = nn.Parameter(sums)
        make(model)

    def partial_gradient() -> None:
        model = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4)).double()
        parallelize_module(model, mesh_of("2"), {"0": SequenceParallel()})
        method = make(model)
        for weight in method.passes():
            out = model[0](torch.randn(2, 6, 6).double()).full_tensor()
            (weight * model[1](out).square().mean()).backward()

    def offloaded() -> None:
        """A weight on the CPU in a mesh of accelerators is what `CPUOffloadPolicy` makes."""
        model, weight = network(), torch.ones(4).double()
        mesh = DeviceMesh("cuda", list(range(RANKS)), _init_backend=False)
        layout = DTensorSpec(mesh, (Replicate(),), TensorMeta(weight.shape, weight.stride(), weight.dtype))
        model[5].bias = nn.Parameter(DTensor(weight, layout, requires_grad=False))
        make(model)

    sharded, replicated = shard(network()), distribute_module(network(), mesh_of("2"))
    cases = {
        "local": lambda: make(sharded, synced=False),
        "local, made before": made_before,
        "local, closed gate": lambda: rst.RST(sharded, RHO, schedules.never()),
        "gsam": lambda: make(sharded, synced=False, variant="gsam"),
        "looksam": lambda: make(sharded, synced=False, variant="looksam"),
        "gsam, closed gate": lambda: rst.RST(sharded, RHO, schedules.never(), variant="gsam"),
        "looksam, replicated": lambda: make(replicated, synced=False, variant="looksam"),
        "ssam_d, replicated": lambda: make(replicated, variant="ssam_d"),
        "ssam_f": lambda: make(sharded, variant="ssam_f"),
        "ssam_d": lambda: make(sharded, variant="ssam_d"),
        "FullyShardedDataParallel": lambda: make(
            FullyShardedDataParallel(network(), device_id=torch.device("cpu")), synced=False
        ),
        "unreduced": unreduced,
        "offloaded": offloaded,
        "partial parameter": partial_parameter,
        "partial gradient": partial_gradient,
    }
    return {name: refusal(case) for name, case in cases.items()}


def run_rank(rank: int, folder: str) -> dict:
    seen: dict[str, Any] = {name: run_case(rank, **case) for name, case in CASES.items()}
    seen["esam"] = run_esam(rank)
    seen["mixed precision"] = run_mixed_precision(rank)
    seen["replicated"] = run_replicated(rank)
    seen["tensor parallel"] = run_tensor_parallel(rank)
    for layout in ("2", "2x1"):
        seen[f"checkpoint, {layout}"] = run_checkpoint(rank, f"{folder}/{layout}", layout=layout, **CHECKPOINTED)
    seen["state of a rank"] = run_state_of_a_rank(rank)
    seen["refusals"] = run_refusals(rank)
    return seen


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return results_of_ranks(functools.partial(run_rank, folder=str(folder)), RANKS, tmp_path_factory.mktemp("ranks"))


# The tests ------------------------------------------------------------------------------------------------------------

SHARDING = {"layout", "when", "reshard_after_forward", "reshard_after_backward"}


def in_one_process(**case: Any) -> dict:
    return run_case(0, layout=None, **{key: value for key, value in case.items() if key not in SHARDING})


def close(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_shards_train_as_one_process_with_the_whole_batch(ranks, name):
    expected = in_one_process(**CASES[name])
    for rank in ranks:
        close(rank[name]["weights"], expected["weights"])
        assert rank[name]["sharp_steps"] == expected["sharp_steps"]


@pytest.mark.parametrize("name", CASES)
def test_after_the_passes_every_shard_is_what_it_was_to_the_bit(ranks, name):
    assert [rank[name]["restored"] for rank in ranks] == [[True] * STEPS] * RANKS


@pytest.mark.parametrize("name", ["RST", "adaptive gate", "micro-batches, RST"])
def test_of_these_steps_some_are_plain_and_some_sharp(ranks, name):
    assert 0 < ranks[0][name]["sharp_steps"] < STEPS


def test_cases_differ_from_each_other():
    """Else the first test would pass for an option that has no effect."""
    names = ["2, momentum, c=1", "2, momentum, c=2", "2, momentum, c=2, only weights", "asam, 2", "friendly, 2"]
    names += ["RST", "G-RST", "closed gate", "adaptive gate", "normalised", "micro-batches, c=2", "clipped"]
    ends = [in_one_process(**CASES[name])["weights"][-1] for name in names]
    for i, one in enumerate(ends):
        assert all((one - other).abs().max() > 1e-6 for other in ends[:i])


def test_esam_chooses_rows_on_each_rank_and_perturbs_along_the_mean_gradient(ranks):
    model = network()
    draws = torch.rand(6, generator=stream("esam", SEED, 0)).tolist()
    devices = [device_of_rank(model, rank) for rank in range(RANKS)]
    mean = sum(clean_gradient(model, lambda d=device: d().mean()) for device in devices) / RANKS
    sharp = Esam(0.6, 0.5, lambda t: draws).sharp(model, devices, [mean] * RANKS, 0, RHO)
    for rank in ranks:
        close(rank["esam"], -mean + 2 * sum(sharp) / RANKS)


def test_in_mixed_precision_the_weights_are_perturbed_and_restored_in_their_own_precision(ranks):
    for rank in ranks:
        seen = rank["mixed precision"]
        torch.testing.assert_close(seen["method"], seen["by hand"], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(seen["method"], seen["float32"], rtol=1e-4, atol=1e-5)


def test_whole_parameters_that_are_dtensors_by_form_train_as_in_one_process(ranks):
    expected = in_one_process(c=2.0)["weights"][-1]
    for rank in ranks:
        close(rank["replicated"], expected)


def test_layers_split_over_the_ranks_by_tensor_parallelism_have_the_gradient_of_one_process(ranks):
    model = even_network()
    method = rst.RST(model, RHO, ALWAYS, 2.0)
    method.backward(lambda: loss_on(model, *batch(0)))
    for rank in ranks:
        close(rank["tensor parallel"], torch.cat([p.grad.flatten() for p in model.parameters()]))


@pytest.mark.parametrize("layout", ["2", "2x1"])
def test_a_distributed_checkpoint_resumes_to_the_bit(ranks, layout):
    for rank in ranks:
        seen = rank[f"checkpoint, {layout}"]
        assert_bitwise(seen["continued"], seen["never stopped"])


def test_the_state_of_each_rank_resumes_a_variant_with_a_state_to_the_bit(ranks):
    for rank in ranks:
        assert_bitwise(rank["state of a rank"]["continued"], rank["state of a rank"]["never stopped"])


WHOLE = "ValueError: the variant needs whole parameters, and these are DTensors: use DistributedDataParallel."
AVERAGED = "ValueError: with fully_shard gradients arrive averaged over the ranks: give sync_perturbation=True"
REFUSALS = {
    "local": AVERAGED,
    "local, made before": AVERAGED,
    "gsam": "use DistributedDataParallel where the variant refuses that",
    "looksam": "use DistributedDataParallel where the variant refuses that",
    "gsam, closed gate": WHOLE,
    "looksam, replicated": WHOLE,
    "ssam_f": WHOLE,
    "ssam_d": WHOLE,
    "ssam_d, replicated": WHOLE,
    "FullyShardedDataParallel": "shard the model with fully_shard",
    "unreduced": "leave set_requires_gradient_sync alone",
    "offloaded": "leave out CPUOffloadPolicy",
    "partial parameter": "parameter 5.bias is a partial sum",
    "partial gradient": "unlike the parameter",
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_right_is_refused_with_what_to_do(ranks, case):
    for rank in ranks:
        assert REFUSALS[case] in rank["refusals"][case]


def test_a_gate_that_is_always_closed_needs_no_sync_perturbation(ranks):
    assert ranks[0]["refusals"]["local, closed gate"] == "accepted"
