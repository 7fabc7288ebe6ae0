"""Two ranks, connected by gloo, against the same computation written out rank by rank.

One pair of processes runs every scenario once and returns what it saw; the tests compare.
"""

import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.distributed as dist
from gloo_ranks import results_of_ranks
from textbook import assert_bitwise, batch, clean_gradient, loss_on, perceptron, perturbed_gradient
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import rst
from rst import schedules

RANKS, STEPS, RHO, LR, SEED = 2, 3, 0.1, 0.1, 1
ALWAYS = schedules.always()

SCENARIOS = {
    f"{'synced' if synced else 'local'}, c={c:g}, {views}, {micro_batches} micro-batch": {
        "synced": synced,
        "c": c,
        "views": views == "views",
        "micro_batches": micro_batches,
    }
    for synced in (False, True)
    for c in (1.0, 2.0)
    for views in ("copies", "views")
    for micro_batches in (1, 2)
}


def data(rank: int, step: int, micro_batch: int) -> tuple[Tensor, Tensor]:
    return batch(100 * rank + 10 * step + micro_batch)


class SkipsALayer(nn.Module):
    """The middle layer is used in every second forward pass only, as with stochastic depth."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = nn.Linear(36, 5), nn.Linear(5, 5), nn.Linear(5, 4)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.first(x.flatten(1)).tanh()
        return self.last(self.middle(x) if self.calls % 2 else x)


# What a rank does -----------------------------------------------------------------------------------------------------


def run_scenario(
    rank: int, synced: bool, c: float, views: bool, micro_batches: int, schedule=ALWAYS, set_to_none=True
) -> dict:
    model = perceptron()
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=views)
    reductions = []

    def counting(state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        reductions.append(bucket.index())
        return allreduce_hook(None, bucket)

    parallel.register_comm_hook(None, counting)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    method = rst.RST(parallel, RHO, schedule, c, total_steps=STEPS, seed=SEED, sync_perturbation=synced)
    weights, counts = [], []
    for step in range(STEPS):
        reductions.clear()
        for index in range(micro_batches):
            x, y = data(rank, step, index)
            for weight in method.passes(advance=index == micro_batches - 1):
                (weight * loss_on(parallel, x, y)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)
        weights.append(nn.utils.parameters_to_vector(model.parameters()).detach().clone())
        counts.append(len(reductions))
    return {"weights": weights, "reductions": counts}


def run_error(rank: int) -> bool:
    """Whether DDP averages gradients again after an error in the clean pass."""
    parallel = DistributedDataParallel(perceptron())
    method = rst.RST(parallel, RHO, ALWAYS)
    try:
        for _ in method.passes():
            assert not parallel.require_backward_grad_sync
            raise KeyError
    except KeyError:
        pass
    return parallel.require_backward_grad_sync


def run_stochastic_depth(rank: int) -> list[Tensor]:
    parallel = DistributedDataParallel(SkipsALayer(), find_unused_parameters=True)
    method = rst.RST(parallel, RHO, schedules.always(), gamma_ratio=2.0)
    x, y = data(rank, 0, 0)
    method.backward(lambda: loss_on(parallel, x, y))
    return [p.grad.clone() for p in parallel.parameters()]


def run_unwrapped(rank: int) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rst.RST(perceptron(), RHO, ALWAYS)
    return [str(warning.message) for warning in caught]


def run_sharded(rank: int) -> dict[str, str]:
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.tensor import distribute_module

    mesh = dist.device_mesh.init_device_mesh("cpu", (RANKS,))

    def at_once(model: nn.Module) -> None:
        rst.RST(model, RHO, ALWAYS)

    def sharded_later(model: nn.Module) -> None:
        method = rst.RST(DistributedDataParallel(model), RHO, ALWAYS)
        fully_shard(model, mesh=mesh)
        next(method.passes())

    cases = {
        "fully_shard": lambda: at_once(fully_shard(perceptron(), mesh=mesh)),
        "fully_shard, later": lambda: sharded_later(perceptron()),
        "FullyShardedDataParallel": lambda: at_once(
            FullyShardedDataParallel(perceptron(), device_id=torch.device("cpu"))
        ),
        "DTensor": lambda: at_once(distribute_module(perceptron(), mesh)),
    }
    return {name: refusal(case) for name, case in cases.items()}


def refusal(case: Callable[[], object]) -> str:
    try:
        case()
    except ValueError as error:
        return str(error)
    return "accepted"


def run_rank(rank: int) -> dict:
    seen = {name: run_scenario(rank, **scenario) for name, scenario in SCENARIOS.items()}
    plain = {"synced": False, "c": 2.0, "views": True, "micro_batches": 2}
    seen["closed gate"] = run_scenario(rank, **plain, schedule=schedules.never())
    seen["half open gate"] = run_scenario(rank, **plain, schedule=schedules.constant(0.5))
    seen["gradients zeroed in place"] = run_scenario(rank, **plain, set_to_none=False)
    seen["error"] = run_error(rank)
    seen["stochastic depth"] = run_stochastic_depth(rank)
    seen["unwrapped"] = run_unwrapped(rank)
    seen["sharded"] = run_sharded(rank)
    return seen


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return results_of_ranks(run_rank, RANKS, tmp_path_factory.mktemp("ranks"))


# The same, written out by hand ----------------------------------------------------------------------------------------


def by_hand(synced: bool, c: float, micro_batches: int, is_open: list[bool], **_: object) -> list[Tensor]:
    """The weights after each step of SGD on (1 - c) g + c g_s, summed over micro-batches and averaged over ranks."""
    model = perceptron()
    weights = []
    for step in range(STEPS):
        total = torch.zeros(())
        for index in range(micro_batches):
            losses = [partial(loss_on, model, *data(rank, step, index)) for rank in range(RANKS)]
            clean = [clean_gradient(model, loss) for loss in losses]
            mean = sum(clean) / RANKS
            if not is_open[step]:
                total = total + mean
                continue
            directions = [mean] * RANKS if synced else clean
            sharp = [perturbed_gradient(model, loss, d, RHO) for loss, d in zip(losses, directions, strict=True)]
            total = total + (1 - c) * mean + c * sum(sharp) / RANKS
        theta = nn.utils.parameters_to_vector(model.parameters()).detach() - LR * total
        nn.utils.vector_to_parameters(theta, model.parameters())
        weights.append(theta)
    return weights


@pytest.mark.parametrize("name", SCENARIOS)
def test_ranks_train_as_written_out_by_hand(ranks, name):
    expected = by_hand(**SCENARIOS[name], is_open=[True] * STEPS)
    torch.testing.assert_close(ranks[0][name]["weights"], expected, rtol=1e-9, atol=1e-12)


def test_perturbations_along_the_own_and_along_the_mean_gradient_differ(ranks):
    local, synced = (ranks[0][f"{word}, c=1, copies, 1 micro-batch"]["weights"][0] for word in ("local", "synced"))
    assert not torch.allclose(local, synced, rtol=1e-5)


@pytest.mark.parametrize("name", ["closed gate", "half open gate", "gradients zeroed in place"])
def test_ranks_train_as_written_out_by_hand_with_a(ranks, name):
    half_open = rst.RST(perceptron(), RHO, schedules.constant(0.5), total_steps=STEPS, seed=SEED).gate.tolist()
    assert set(half_open) == {False, True}
    is_open = {
        "closed gate": [False] * STEPS,
        "half open gate": half_open,
        "gradients zeroed in place": [True] * STEPS,
    }[name]
    expected = by_hand(synced=False, c=2.0, micro_batches=2, is_open=is_open)
    torch.testing.assert_close(ranks[0][name]["weights"], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [*SCENARIOS, "closed gate", "half open gate", "gradients zeroed in place"])
def test_weights_are_equal_on_all_ranks_bit_for_bit(ranks, name):
    assert_bitwise(ranks[1][name]["weights"], ranks[0][name]["weights"])


@pytest.mark.parametrize("name", [*(name for name in SCENARIOS if name.startswith("local")), "closed gate"])
def test_a_step_averages_the_gradient_over_the_ranks_once_even_if_it_is_sharp(ranks, name):
    assert ranks[0][name]["reductions"] == [1] * STEPS


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name.startswith("synced")])
def test_sync_perturbation_averages_once_more_for_every_clean_pass(ranks, name):
    assert ranks[0][name]["reductions"] == [SCENARIOS[name]["micro_batches"] + 1] * STEPS


def test_after_an_error_in_the_clean_pass_ddp_averages_gradients_again(ranks):
    assert [rank["error"] for rank in ranks] == [True, True]


def test_a_layer_that_the_perturbed_pass_skips_gets_the_same_gradient_on_all_ranks(ranks):
    assert_bitwise(ranks[1]["stochastic depth"], ranks[0]["stochastic depth"])
    assert all(gradient.abs().sum() > 0 for gradient in ranks[0]["stochastic depth"])


def test_a_model_without_its_ddp_wrapper_warns(ranks):
    assert len(ranks[0]["unwrapped"]) == 1
    assert "not wrapped" in ranks[0]["unwrapped"][0]


@pytest.mark.parametrize("how", ["fully_shard", "fully_shard, later", "FullyShardedDataParallel", "DTensor"])
def test_parameters_sharded_over_ranks_are_refused(ranks, how):
    for rank in ranks:
        assert "sharded over ranks" in rank["sharded"][how]
        assert "use DistributedDataParallel" in rank["sharded"][how]
