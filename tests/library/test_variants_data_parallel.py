"""Every variant on two ranks, connected by gloo, against its plain version written out rank by rank.

One pair of processes runs every scenario once and returns what it saw; the tests compare.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from gloo_ranks import counted_messages, results_of_ranks
from textbook import assert_bitwise, clean_gradient, perceptron
from textbook_variants import (
    Asam,
    Esam,
    Gsam,
    LookSam,
    Sam,
    SsamD,
    SsamF,
    device_of,
    set_gradient,
    step_gradient,
    vector,
)
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import rst
from rst import schedules
from rst.streams import stream
from rst.variants import ASAM, ESAM, GSAM, SSAMD, SSAMF, LookSAM, Variant

RANKS, STEPS, RHO, LR, SEED, C = 2, 6, 0.1, 0.1, 3, 2.0
ALWAYS = schedules.always()


def draws(t: int) -> list[float]:
    """The random number of each parameter tensor of `perceptron` at step t, from which ESAM draws its set."""
    return torch.rand(4, generator=stream("esam", SEED, t)).tolist()


def noise(t: int) -> Tensor:
    """The random number of each weight of `perceptron` at step t, from which SSAM-D draws its masks."""
    generator = stream("ssam", SEED, t)
    return torch.cat([torch.rand(p.shape, generator=generator).flatten() for p in perceptron().parameters()])


@dataclass
class Case:
    """A variant and its plain version."""

    variant: Callable[[], Variant]
    oracle: Callable[[], Sam]


CASES = {
    "asam": Case(lambda: ASAM(0.01), lambda: Asam(0.01)),
    "gsam": Case(lambda: GSAM(0.4), lambda: Gsam(0.4)),
    "looksam": Case(lambda: LookSAM(2, 0.7), lambda: LookSam(2, 0.7)),
    "esam": Case(lambda: ESAM(0.6, 0.5), lambda: Esam(0.6, 0.5, draws)),
    "ssam_f": Case(lambda: SSAMF(0.3, 2, samples=3), lambda: SsamF(0.3, 2, samples=3)),
    "ssam_d": Case(lambda: SSAMD(0.3, 2, drop=0.5), lambda: SsamD(0.3, 2, 0.5, noise, STEPS)),
}
SCENARIOS = {
    f"{name}, {gate}, {micro_batches} micro-batch": {"name": name, "gate": gate, "micro_batches": micro_batches}
    for name in CASES
    for gate in ("always open", "half open")
    for micro_batches in ((1, 2) if not name.startswith("ssam") else (1,))
}
GATES = {"always open": ALWAYS, "half open": schedules.constant(0.5)}


def number(rank: int, step: int, micro_batch: int) -> int:
    return 100 * rank + 10 * step + micro_batch


# What a rank does -----------------------------------------------------------------------------------------------------


def run_scenario(rank: int, name: str, gate: str, micro_batches: int) -> dict:
    model = perceptron()
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=gate == "half open")
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    variant = CASES[name].variant()
    method = rst.RST(parallel, RHO, GATES[gate], C, total_steps=STEPS, seed=SEED, variant=variant)
    # Averages gradients as DDP does without a hook, but through dist.all_reduce, which is counted.
    parallel.register_comm_hook(None, allreduce_hook)
    weights, counts = [], []
    for step in range(STEPS):
        with counted_messages() as messages:
            for micro_batch in range(micro_batches):
                losses = device_of(parallel, number(rank, step, micro_batch))
                last, share = micro_batch == micro_batches - 1, 1 / micro_batches
                if variant.needs_per_sample_loss:
                    method.backward(losses, last, share)
                    continue
                for weight in method.passes(last, share):
                    (weight * losses().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        weights.append(vector(model))
        counts.append(len(messages))
    cost = method.realised_extra_propagations
    return {"weights": weights, "messages": counts, "variant": variant.state_dict(), "cost": cost}


def run_synced(rank: int, name: str) -> dict:
    """The gradient of the second of two steps with sync_perturbation."""
    parallel = DistributedDataParallel(perceptron())
    method = rst.RST(parallel, RHO, ALWAYS, C, STEPS, SEED, variant=CASES[name].variant(), sync_perturbation=True)
    for step in range(2):
        parallel.zero_grad()
        method.backward(device_of(parallel, number(rank, step, 0)))
    return {"gradient": torch.cat([p.grad.flatten() for p in parallel.parameters()])}


class PartlyUsed(nn.Module):
    """The middle layer is used on the second rank only, the last layer on no rank."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rank = rank
        self.first, self.middle, self.unused = nn.Linear(36, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1)).tanh()
        return self.middle(x) if self.rank else x


def run_partly_used(rank: int, name: str) -> list[Tensor | None]:
    parallel = DistributedDataParallel(PartlyUsed(rank), find_unused_parameters=True)
    method = rst.RST(parallel, RHO, ALWAYS, C, STEPS, SEED, variant=CASES[name].variant())
    method.backward(device_of(parallel, number(rank, 0, 0)))
    return [None if p.grad is None else p.grad.clone() for p in parallel.parameters()]


def run_rank(rank: int) -> dict:
    seen = {name: run_scenario(rank, **scenario) for name, scenario in SCENARIOS.items()}
    seen |= {f"{name}, partly used": run_partly_used(rank, name) for name in CASES}
    seen |= {f"{name}, synced": run_synced(rank, name) for name in ("asam", "esam", "ssam_f", "ssam_d")}
    return seen


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return results_of_ranks(run_rank, RANKS, tmp_path_factory.mktemp("ranks of the variants"))


# The same, written out by hand ----------------------------------------------------------------------------------------

scenarios = pytest.mark.parametrize("scenario", SCENARIOS)


def gate_of(gate: str) -> list[bool]:
    return rst.RST(perceptron(), RHO, GATES[gate], total_steps=STEPS, seed=SEED).gate.tolist()


@scenarios
def test_ranks_train_as_written_out_rank_by_rank(ranks, scenario):
    """Every micro-batch of every rank is a device, with gradients of its own and in LookSAM a direction of its own."""
    name, gate, micro_batches = SCENARIOS[scenario].values()
    model, oracle = perceptron(), CASES[name].oracle()
    for step, sharp in enumerate(gate_of(gate)):
        devices = [device_of(model, number(rank, step, i)) for rank in range(RANKS) for i in range(micro_batches)]
        set_gradient(model, step_gradient(oracle, model, devices, sharp, step, RHO, C))
        torch.optim.SGD(model.parameters(), lr=LR).step()
        torch.testing.assert_close(ranks[0][scenario]["weights"][step], vector(model), rtol=1e-10, atol=1e-10)


def test_the_half_open_gate_has_plain_and_sharp_steps():
    assert set(gate_of("half open")) == {False, True}


@scenarios
def test_weights_are_equal_on_all_ranks_bit_for_bit(ranks, scenario):
    assert_bitwise(ranks[1][scenario]["weights"], ranks[0][scenario]["weights"])


@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name.startswith("ssam")])
def test_the_mask_is_the_same_on_all_ranks(ranks, scenario):
    assert_bitwise(ranks[1][scenario]["variant"], ranks[0][scenario]["variant"])


@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name.startswith("looksam")])
def test_every_rank_stores_a_looksam_direction_of_its_own(ranks, scenario):
    mine, other = (rank[scenario]["variant"] for rank in ranks)
    assert mine["counts"] == other["counts"]
    assert mine["directions"].keys() == other["directions"].keys() == set(range(SCENARIOS[scenario]["micro_batches"]))
    for micro_batch, direction in mine["directions"].items():
        for parameter, piece in direction.items():
            assert not torch.equal(piece, other["directions"][micro_batch][parameter])


@scenarios
def test_a_step_sums_over_the_ranks_once_and_once_more_where_it_makes_a_mask(ranks, scenario):
    name, gate, _ = SCENARIOS[scenario].values()
    expected, due = [], 0
    for step, sharp in enumerate(gate_of(gate)):
        makes_a_mask = name.startswith("ssam") and sharp and step >= due
        drawn = name == "ssam_d" and due == 0
        due = step // 2 * 2 + 2 if makes_a_mask else due
        expected.append(2 if makes_a_mask and not drawn else 1)
    assert ranks[0][scenario]["messages"] == expected


@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if not name.startswith("ssam")])
def test_the_counted_cost_is_that_of_the_sharp_steps_however_many_micro_batches_they_have(ranks, scenario):
    """LookSAM with k = 2 has a second pass in every other sharp step, from the first on."""
    name, gate, _ = SCENARIOS[scenario].values()
    sharp = sum(gate_of(gate))
    extra = {"asam": sharp, "gsam": sharp, "looksam": (sharp + 1) // 2, "esam": sharp * (1 / 2 + 1 / 3)}[name]
    for rank in ranks:
        assert rank[scenario]["cost"] == pytest.approx(extra / STEPS)


@pytest.mark.parametrize("name", ["asam", "esam", "ssam_f", "ssam_d"])
def test_with_sync_perturbation_ranks_perturb_along_the_mean_gradient(ranks, name):
    model, oracle = perceptron(), CASES[name].oracle()
    for step in range(2):
        devices = [device_of(model, number(rank, step, 0)) for rank in range(RANKS)]
        mean = sum(clean_gradient(model, lambda d=device: d().mean()) for device in devices) / RANKS
        sharp = oracle.sharp(model, devices, [mean] * RANKS, step, RHO)
    expected = (1 - C) * mean + C * sum(sharp) / RANKS
    torch.testing.assert_close(ranks[0][f"{name}, synced"]["gradient"], expected, rtol=1e-10, atol=1e-10)
    assert_bitwise(ranks[1][f"{name}, synced"], ranks[0][f"{name}, synced"])


@pytest.mark.parametrize("name", CASES)
def test_a_layer_used_on_one_rank_gets_the_same_gradient_on_all_and_one_used_on_none_gets_none(ranks, name):
    mine, other = (rank[f"{name}, partly used"] for rank in ranks)
    assert_bitwise(mine[:4], other[:4])
    assert all(gradient.abs().sum() > 0 for gradient in mine[:4])
    assert mine[4:] == other[4:] == [None, None]
