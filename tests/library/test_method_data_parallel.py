"""Two ranks, connected by gloo, against the same computation written out rank by rank.

One pair of processes runs every scenario once and returns what it saw; the tests compare.
"""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.distributed as dist
from gloo_ranks import counted_messages, refusal, results_of_ranks
from textbook import assert_bitwise, batch, clean_gradient, loss_on, perceptron, perturbed_gradient
from textbook_gate import ae_sam
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
NORMALISED = {
    f"normalised, {'synced' if synced else 'local'}, {micro_batches} micro-batch": {
        "synced": synced,
        "c": 2.0,
        "micro_batches": micro_batches,
        "normalised": True,
    }
    for synced in (False, True)
    for micro_batches in (1, 2)
}
GATES = {
    "closed gate": schedules.never(),
    "half open gate": schedules.constant(0.5),
}
UNUSUAL = {
    "gradients zeroed in place, local": {"synced": False, "views": True, "set_to_none": False},
    "gradients zeroed in place, synced": {"synced": True, "views": True, "set_to_none": False},
    "no_sync by the user": {"synced": False, "no_sync": True},
    "static graph": {"synced": True, "static_graph": True},
    "static graph, views": {"synced": True, "static_graph": True, "views": True},
    "static graph, closed gate": {"synced": True, "static_graph": True, "schedule": schedules.never()},
    "static graph, half open gate": {"synced": True, "static_graph": True, "schedule": schedules.constant(0.5)},
    "unused parameters": {"synced": False, "find_unused_parameters": True},
    "unused parameters, synced": {"synced": True, "find_unused_parameters": True},
}
ADAPTIVE = {
    f"adaptive gate, {'synced' if synced else 'local'}, {micro_batches} micro-batch": {
        "synced": synced,
        "c": 2.0,
        "micro_batches": micro_batches,
        "schedule": schedules.ae_sam(),
        "steps": 8,
    }
    for synced in (False, True)
    for micro_batches in (1, 2)
}
RARELY = schedules.ae_sam(1e9, 1e9)
ON_EACH_RANK: list[dict] = [
    {"schedule": schedules.never()},
    {"schedule": ALWAYS, "variant": "gsam"},
    {"schedule": ALWAYS, "variant": "looksam"},
    {"schedule": RARELY},
]
"""Methods of whose passes DDP averages no gradient, after a plain one."""
PLAIN = {"synced": False, "c": 2.0, "views": True, "micro_batches": 2}
ALL = {
    **SCENARIOS,
    **NORMALISED,
    **{name: {**PLAIN, "schedule": schedule} for name, schedule in GATES.items()},
    **{name: {"c": 2.0, "micro_batches": 2, **more} for name, more in UNUSUAL.items()},
    **ADAPTIVE,
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
    rank: int,
    synced: bool,
    c: float,
    micro_batches: int,
    views: bool = False,
    schedule=ALWAYS,
    steps: int = STEPS,
    normalised: bool = False,
    set_to_none: bool = True,
    no_sync: bool = False,
    **options: bool,
) -> dict:
    model = perceptron()
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=views, **options)
    parallel.register_comm_hook(None, allreduce_hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    method = rst.RST(parallel, RHO, schedule, c, steps, SEED, sync_perturbation=synced, normalise_clean=normalised)
    weights, messages = [], []
    for step in range(steps):
        with counted_messages() as sizes:
            for index in range(micro_batches):
                x, y = data(rank, step, index)
                last = index == micro_batches - 1
                with parallel.no_sync() if no_sync and not last else nullcontext():
                    for weight in method.passes(advance=last, share=1 / micro_batches):
                        (weight * loss_on(parallel, x, y)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)
        weights.append(nn.utils.parameters_to_vector(model.parameters()).detach().clone())
        messages.append(list(sizes))
    return {
        "weights": weights,
        "messages": messages,
        "sharp_steps": method.sharp_steps,
        "extra": method.realised_extra_propagations,
    }


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


def run_stochastic_depth(rank: int, synced: bool) -> list[Tensor]:
    parallel = DistributedDataParallel(SkipsALayer(), find_unused_parameters=True)
    method = rst.RST(parallel, RHO, ALWAYS, gamma_ratio=2.0, sync_perturbation=synced)
    x, y = data(rank, 0, 0)
    method.backward(lambda: loss_on(parallel, x, y))
    return [p.grad.clone() for p in parallel.parameters()]


def run_buffers(rank: int, **options: object) -> Tensor:
    """Batch norm's mean in evaluation, after steps on other images on each rank."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    parallel = DistributedDataParallel(model)
    method = rst.RST(parallel, RHO, total_steps=STEPS, **options)
    for step in range(STEPS):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(10 * step + rank)) + rank
        method.backward(lambda x=x: parallel(x).square().mean())
        model.zero_grad()
    with torch.no_grad():
        parallel.eval()(torch.ones(2, 4))
    return model[1].running_mean.clone()


def run_left_alone(rank: int, variant: str) -> Tensor:
    """The gradient of a parameter that DDP was told to leave to each rank."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 1))
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["0.weight"])
    parallel = DistributedDataParallel(model)
    rst.RST(parallel, RHO, ALWAYS, variant=variant).backward(lambda: parallel(torch.full((4, 2), rank + 1.0)).mean())
    return model[0].weight.grad


def run_gradient_from_before(rank: int, schedule: object) -> Tensor:
    """The gradient of a plain step to which each rank had added a loss of its own."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1, bias=False)
    parallel = DistributedDataParallel(model)
    method = rst.RST(parallel, RHO, schedule, total_steps=2, sync_perturbation=True)
    method.backward(lambda: parallel(torch.ones(1, 2)).sum())
    model.zero_grad()
    with parallel.no_sync():
        parallel(torch.full((1, 2), rank + 1.0)).sum().backward()
    method.backward(lambda: 1e-3 * parallel(torch.ones(1, 2)).sum())
    return model.weight.grad


def warnings_of(case: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        case()
    return [str(warning.message) for warning in caught]


def run_unwrapped(rank: int, folder: str) -> dict[str, list[str]]:
    """The warnings of an `RST` of a bare model, and of one that is made before there are ranks and before DDP."""
    at_once = warnings_of(lambda: rst.RST(perceptron(), RHO, ALWAYS))
    dist.destroy_process_group()
    model = perceptron()
    before = warnings_of(lambda: make(model))
    method = rst.RST(model, RHO, ALWAYS)
    dist.init_process_group("gloo", init_method=f"file://{folder}/again", rank=rank, world_size=RANKS)
    parallel = DistributedDataParallel(model)
    x, y = data(rank, 0, 0)
    steps = [warnings_of(lambda: method.backward(lambda: loss_on(parallel, x, y))) for _ in range(2)]
    return {"at once": at_once, "before": before, "first step": steps[0], "second step": steps[1]}


def make(model: nn.Module, **options: object) -> rst.RST:
    return rst.RST(model, RHO, ALWAYS, **options)


def run_refusals(rank: int) -> dict[str, str]:
    static = DistributedDataParallel(perceptron(), static_graph=True)
    return {
        "static graph": refusal(lambda: make(static)),
        "static graph, closed gate": refusal(lambda: rst.RST(static, RHO, schedules.never())),
    }


def run_rank(rank: int, folder: str) -> dict:
    seen = {name: run_scenario(rank, **scenario) for name, scenario in ALL.items()}
    seen["error"] = run_error(rank)
    seen["stochastic depth"] = {synced: run_stochastic_depth(rank, synced) for synced in (False, True)}
    seen["buffers"] = [run_buffers(rank, **options) for options in ON_EACH_RANK]
    seen["left alone"] = {variant: run_left_alone(rank, variant) for variant in ("sam", "gsam")}
    seen["from before"] = [run_gradient_from_before(rank, schedule) for schedule in (schedules.never(), RARELY)]
    seen["refusals"] = run_refusals(rank)
    seen["warnings"] = run_unwrapped(rank, folder)
    return seen


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    again = tmp_path_factory.mktemp("again")
    return results_of_ranks(partial(run_rank, folder=str(again)), RANKS, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", range(4))
def test_ranks_evaluate_with_the_buffers_of_the_first_rank_as_without_the_method(ranks, case):
    first, second = (rank["buffers"][case] for rank in ranks)
    assert_bitwise(first, second)
    assert first.abs().sum() > 0


@pytest.mark.parametrize("variant", ["sam", "gsam"])
def test_a_parameter_that_ddp_leaves_to_each_rank_is_left_to_it(ranks, variant):
    first, second = (rank["left alone"][variant] for rank in ranks)
    torch.testing.assert_close(second, 2 * first)


def test_a_gradient_from_before_a_plain_step_is_averaged_with_that_of_the_step(ranks):
    for rank in ranks:
        for gradient in rank["from before"]:
            torch.testing.assert_close(gradient, torch.full((1, 2), 1.501))


# The same, written out by hand ----------------------------------------------------------------------------------------


def by_hand(
    synced: bool, c: float, micro_batches: int, schedule=ALWAYS, steps: int = STEPS, normalised: bool = False, **_: bool
) -> tuple[list[Tensor], list[bool]]:
    """The weights after each step of SGD, averaged over micro-batches and ranks, and whether each step was sharp."""
    model, norms = perceptron(), []
    weights, is_sharp = [], []
    for step in range(steps):
        total = torch.zeros(())
        for index in range(micro_batches):
            losses = [partial(loss_on, model, *data(rank, step, index)) for rank in range(RANKS)]
            clean = [clean_gradient(model, loss) for loss in losses]
            mean = sum(clean) / RANKS
            directions = [mean] * RANKS if synced else clean
            if index == 0:
                norms.append(sum(d.norm().item() ** 2 for d in directions) / RANKS)
                is_sharp.append(decision(schedule, steps, norms))
            if not is_sharp[-1]:
                total = total + mean / micro_batches
                continue
            sharp = [perturbed_gradient(model, loss, d, RHO) for loss, d in zip(losses, directions, strict=True)]
            first = [d / d.norm() if normalised else d for d in directions]
            mixed = [(1 - c) * g + c * g_s for g, g_s in zip(first, sharp, strict=True)]
            total = total + sum(mixed) / RANKS / micro_batches
        theta = nn.utils.parameters_to_vector(model.parameters()).detach() - LR * total
        nn.utils.vector_to_parameters(theta, model.parameters())
        weights.append(theta)
    return weights, is_sharp


def decision(schedule, steps: int, norms: list[float]) -> bool:
    """Whether the last step is sharp, given ‖g‖² of the steps so far, in the mean over the ranks."""
    if schedule == schedules.ae_sam():
        return ae_sam(norms, steps, -1.0, 1.0, 0.9)[-1]
    return bool(rst.RST(perceptron(), RHO, schedule, total_steps=steps, seed=SEED).gate[len(norms) - 1])


@pytest.mark.parametrize("name", ALL)
def test_ranks_train_as_written_out_by_hand(ranks, name):
    weights, is_sharp = by_hand(**ALL[name])
    for rank in ranks:
        torch.testing.assert_close(rank[name]["weights"], weights, rtol=1e-9, atol=1e-12)
        assert rank[name]["sharp_steps"] == sum(is_sharp)
        assert rank[name]["extra"] == pytest.approx(sum(is_sharp) / len(is_sharp))


@pytest.mark.parametrize("name", ["half open gate", *ADAPTIVE])
def test_of_these_steps_some_are_plain_and_some_sharp(name):
    assert set(by_hand(**ALL[name])[1]) == {False, True}


def test_perturbations_along_the_own_and_along_the_mean_gradient_differ(ranks):
    local, synced = (ranks[0][f"{word}, c=1, copies, 1 micro-batch"]["weights"][0] for word in ("local", "synced"))
    assert not torch.allclose(local, synced, rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_weights_are_equal_on_all_ranks_bit_for_bit(ranks, name):
    assert_bitwise(ranks[1][name]["weights"], ranks[0][name]["weights"])


def gradients_sent(ranks: list[dict], name: str) -> list[int]:
    """How many messages of the size of the gradient each step sends."""
    size = sum(p.numel() for p in perceptron().parameters())
    return [sum(message >= size for message in messages) for messages in ranks[0][name]["messages"]]


@pytest.mark.parametrize("name", [name for name in ALL if not ALL[name]["synced"]])
def test_a_step_averages_the_gradient_over_the_ranks_once_plain_or_sharp_and_with_any_gate(ranks, name):
    assert gradients_sent(ranks, name) == [1] * len(ranks[0][name]["messages"])


@pytest.mark.parametrize("name", SCENARIOS)
def test_beside_the_gradient_a_step_sends_nothing(ranks, name):
    assert [len(messages) for messages in ranks[0][name]["messages"]] == gradients_sent(ranks, name)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_an_adaptive_gate_sends_one_number_more_a_step(ranks, name):
    for messages, gradients in zip(ranks[0][name]["messages"], gradients_sent(ranks, name), strict=True):
        assert sorted(messages)[:-gradients] == [1]


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name.startswith("synced")])
def test_sync_perturbation_averages_once_more_for_every_clean_pass(ranks, name):
    assert gradients_sent(ranks, name) == [SCENARIOS[name]["micro_batches"] + 1] * STEPS


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_with_an_adaptive_gate_sync_perturbation_averages_a_plain_step_once_for_every_micro_batch(ranks, micro_batches):
    name = f"adaptive gate, synced, {micro_batches} micro-batch"
    expected = [micro_batches + sharp for sharp in by_hand(**ALL[name])[1]]
    assert gradients_sent(ranks, name) == expected


def test_after_an_error_in_the_clean_pass_ddp_averages_gradients_again(ranks):
    assert [rank["error"] for rank in ranks] == [True, True]


@pytest.mark.parametrize("synced", [False, True])
def test_a_layer_that_the_perturbed_pass_skips_gets_the_same_gradient_on_all_ranks(ranks, synced):
    mine, other = (rank["stochastic depth"][synced] for rank in ranks)
    assert_bitwise(mine, other)
    assert all(gradient.abs().sum() > 0 for gradient in mine)


def test_a_model_without_its_ddp_wrapper_warns(ranks):
    assert len(ranks[0]["warnings"]["at once"]) == 1
    assert "not wrapped" in ranks[0]["warnings"]["at once"][0]


def test_a_method_made_before_the_ranks_and_the_ddp_wrapper_warns_once_at_its_first_step(ranks):
    seen = ranks[0]["warnings"]
    assert [len(seen[when]) for when in ("before", "first step", "second step")] == [0, 1, 0]
    assert "give RST the DistributedDataParallel module" in seen["first step"][0]


def test_a_static_graph_is_refused_where_ranks_perturb_along_their_own_gradients(ranks):
    for rank in ranks:
        assert "static_graph=True" in rank["refusals"]["static graph"]
        assert "give sync_perturbation=True" in rank["refusals"]["static graph"]
        assert rank["refusals"]["static graph, closed gate"] == "accepted"
