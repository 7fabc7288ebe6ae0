"""The vector work of a sharp step beyond its passes: norms, saved weights, the perturbation and the way back.

The passes are stood in for by one operator with ready gradients, which costs little and the same for everybody: what
remains beyond a plain loop of as many passes is what a method itself does.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import rst
from rst.experiments.bench.peers import TextbookSAM, pytorch_optimizer_sam
from rst.experiments.bench.table import Row, Table
from rst.experiments.bench.turns import Step, Times, one_thread, operations, progress, seconds, take_turns, wall_clock
from rst.experiments.models import PyramidNet, WideResNet, small_image_resnet

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "WRN-16-1": lambda: WideResNet(16, 1, 10),
    "WRN-112-1": lambda: WideResNet(112, 1, 10),  # As many and as small tensors as ResNet-110 has.
    "ResNet18": lambda: small_image_resnet((2, 2, 2, 2), (64, 128, 256, 512), 10),
    "PyramidNet-164": lambda: PyramidNet(164, 270, 10),
    "WRN28-10": lambda: WideResNet(28, 10, 10),
}
"""Few and many tensors, small and large."""

PEERS = ("pytorch_optimizer", "textbook", "pytorch_optimizer ASAM", "textbook ASAM")
MICRO_BATCHES = 4
TURN = 0.02
"""A turn of the plain loop takes about so many seconds."""
NOTE = (
    "CPU time of one thread (on CUDA: wall time) beyond the passes, a sharp step less two plain steps of as many "
    "micro-batches in the same round; over that of the fastest peer, and in brackets in milliseconds and in "
    "dispatched operations. ASAM is beside the fastest peer's ASAM. Several micro-batches are as many perturbations, "
    "beside one perturbation of the peer. Peers are pytorch_optimizer and `textbook`, SAM as most people write it, a "
    "loop over the parameters."
)


def measure(
    device: torch.device, rounds: int = 15, networks: Mapping[str, Callable[[], nn.Module]] = NETWORKS
) -> Table:
    """Each contender on tensors of the shapes of each network."""
    rows: list[Row] = []
    clock = time.process_time if device.type == "cpu" else wall_clock(device)
    with one_thread(), warnings.catch_warnings(), progress("vectors", rounds * len(networks)) as bar:
        warnings.filterwarnings("ignore", "no weight of the model has changed")  # `Still` is meant to change none.
        for name, build in networks.items():
            passes = Passes(shapes(build), device)
            contenders = {**plain_loops(passes), **contenders_on(passes)}
            steps = max(1, round(TURN / min(seconds(contenders["2 passes"], clock) for _ in range(3))))
            times = take_turns(contenders, rounds, clock, bar, steps)
            rows += rows_of(name, passes, times, {key: operations(step) for key, step in contenders.items()})
    return Table("vectors", "The vector work of a sharp step beyond its passes", NOTE, rounds, rows, pivot(rows))


# The passes -----------------------------------------------------------------------------------------------------------


def shapes(build: Callable[[], nn.Module]) -> list[torch.Size]:
    """The shapes of a network's parameters; no memory is taken for them."""
    with torch.device("meta"):
        return [p.shape for p in build().parameters()]


class Passes(nn.Module):
    """Parameters of these shapes. Calling it returns a loss, whose gradients are ready but for one multiplication."""

    def __init__(self, shapes: Iterable[torch.Size], device: torch.device) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(shape, device=device) for shape in shapes)
        self.gradients = [torch.randn_like(weight) for weight in self.weights]

    def forward(self) -> Tensor:
        loss: Tensor = ReadyGradients.apply(self.gradients, *self.weights)
        return loss


class ReadyGradients(torch.autograd.Function):
    """A loss of 0 with given gradients, times the gradient of the loss."""

    @staticmethod
    def forward(ctx: Any, gradients: list[Tensor], *weights: Tensor) -> Tensor:
        ctx.gradients = gradients
        return weights[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *torch._foreach_mul(ctx.gradients, gradient)


class Still(Optimizer):
    """A base optimizer whose step is no work, so that only that of the method is timed."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Leave the weights as they are."""


# The contenders -------------------------------------------------------------------------------------------------------


def plain_loops(passes: Passes) -> dict[str, Step]:
    """The passes of a sharp step without a method: those of two plain steps, of one and of several micro-batches."""
    return {f"{2 * count} passes": two_plain_steps(passes, count) for count in (1, MICRO_BATCHES)}


def two_plain_steps(passes: Passes, micro_batches: int) -> Step:
    """Two steps of so many micro-batches, whose gradients add up."""
    optimizer = Still(passes.parameters())

    def step() -> None:
        for _ in range(2):
            for _ in range(micro_batches):
                passes().backward()
            optimizer.zero_grad()

    return step


def contenders_on(passes: Passes) -> dict[str, Step]:
    """A sharp step of every method, by name: those of two passes first, then those of several micro-batches."""
    pytorch_optimizer = pytorch_optimizer_sam()
    contenders: dict[str, Step] = {}
    for count, suffix in ((1, ""), (MICRO_BATCHES, f", {MICRO_BATCHES} micro-batches")):
        contenders[f"rst c=1{suffix}"] = ours(passes, 1.0, "sam", count)
        contenders[f"rst c=2{suffix}"] = ours(passes, 2.0, "sam", count)
        contenders[f"rst ASAM{suffix}"] = ours(passes, 1.0, "asam", count)
    for peer in PEERS:
        sam = TextbookSAM if "textbook" in peer else pytorch_optimizer
        contenders[peer] = theirs(passes, sam, adaptive="ASAM" in peer)
    return contenders


def ours(passes: Passes, gamma_ratio: float, variant: str, micro_batches: int) -> Step:
    """A sharp step of `rst.RST`."""
    method = rst.RST(passes, rho=0.1, schedule=rst.schedules.always(), gamma_ratio=gamma_ratio, variant=variant)
    optimizer = Still(passes.parameters())

    def step() -> None:
        for index in range(micro_batches):
            method.backward(passes, advance=index == micro_batches - 1)
        optimizer.step()
        optimizer.zero_grad()

    return step


def theirs(passes: Passes, sam: Callable[..., Any], adaptive: bool) -> Step:
    """A step of an optimizer that wraps another one."""
    optimizer = sam(passes.parameters(), Still, rho=0.1, adaptive=adaptive)

    def step() -> None:
        passes().backward()
        optimizer.first_step(zero_grad=True)
        passes().backward()
        optimizer.second_step(zero_grad=True)

    return step


# The figures ----------------------------------------------------------------------------------------------------------


def rows_of(network: str, passes: Passes, times: Times, counts: Mapping[str, int]) -> list[Row]:
    """A row for each contender: its work beyond the plain loop, and that over the fastest peer's."""
    sizes = [weight.numel() for weight in passes.weights]
    plain = {name: f"{2 * MICRO_BATCHES if 'micro-batches' in name else 2} passes" for name in times}
    beyond = {
        name: [a - b for a, b in zip(times[name], times[plain[name]], strict=True)]
        for name in times
        if "passes" not in name
    }
    rows = []
    for name, work in beyond.items():
        peers = [peer for peer in PEERS if ("ASAM" in peer) == ("ASAM" in name)]
        fastest = min(peers, key=lambda peer: statistics.median(beyond[peer]))
        rows.append(
            {
                "network": network,
                "tensors": len(sizes),
                "million_weights": round(sum(sizes) / 1e6, 1),
                "contender": name,
                "fastest_peer": fastest,
                "over_fastest_peer": statistics.median(a / b for a, b in zip(work, beyond[fastest], strict=True)),
                "milliseconds": 1000 * statistics.median(work),
                "operations": counts[name] - counts[plain[name]],
            }
        )
    return rows


def pivot(rows: Sequence[Row]) -> list[Row]:
    """A row for each contender and a column for each network."""
    shown: dict[str, Row] = {}
    for row in rows:
        network = f"{row['network']}: {row['tensors']} tensors, {row['million_weights']} M"
        cell = f"{row['over_fastest_peer']:.2f} ({row['milliseconds']:.3g} ms, {row['operations']:,})"
        shown.setdefault(row["contender"], {"contender": row["contender"]})[network] = cell
    return list(shown.values())
