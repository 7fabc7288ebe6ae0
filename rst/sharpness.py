"""How sharp the loss is around the weights: ‖∇L‖, its rise along the gradient, the Hessian's largest eigenvalue."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from rst.checks import non_negative, positive_integer
from rst.guards import check_module, keep_modules, replayed_rng, rng_states
from rst.streams import stream

Vector = list[Tensor]
"""One long vector, in pieces of the parameters' shapes."""


@dataclass(frozen=True)
class Sharpness:
    """What `rst.sharpness` measures at the weights θ of a model, where L is the mean loss over all samples.

    Example:
        >>> model, data = torch.nn.Linear(2, 1), [torch.ones(4, 2)]
        >>> measured = rst.sharpness(model, lambda x: model(x).square().mean(), data, rho=0.05)
        >>> measured.converged, measured.lambda_max > 0
        (True, True)
    """

    gradient_norm: float
    """‖g‖ with g = ∇L(θ), its 2-norm over all trainable parameters together."""
    sharpness: float
    """The rise of the loss by SAM's perturbation, L(θ + ρ g/‖g‖) - L(θ), in units of the loss; 0 where g is 0."""
    lambda_max: float
    """The largest eigenvalue of the Hessian ∇²L(θ); below 0 where all eigenvalues are."""
    iterations: int
    """How many products of the Hessian with a vector ``lambda_max`` took, each of which is one pass over the data."""
    converged: bool
    """Whether ``lambda_max`` met the tolerance; if not, it is the latest estimate, which is too low if anything."""


def sharpness(
    model: nn.Module,
    loss: Callable[[Any], Tensor],
    data: Iterable[Any],
    rho: float,
    *,
    tolerance: float = 0.01,
    max_iterations: int = 100,
    seed: int = 0,
) -> Sharpness:
    """Measure how sharp the mean loss L over all samples is, as a function of the model's trainable parameters.

    ``lambda_max`` is found by power iteration on products of the Hessian with a vector (double backward), which finds
    the eigenvalue that is largest in magnitude. Where that one is negative, the iteration goes on with H + s I for an
    s > ‖H‖: the shift moves all eigenvalues above 0 and leaves their order and their vectors as they are.

    L is measured in the mode that the model is in. With batch normalisation in training mode it depends on how the
    samples are divided into batches, and its derivatives on the batch statistics as functions of θ. With dropout it
    is the loss under one draw of the masks: each pass over the data starts from the same states of torch's generators,
    which also give a shuffling DataLoader the same order again. For the trained network, call ``model.eval()`` first.

    Weights, buffers, modes, ``.grad`` and torch's generators are left as they were, to the bit, also after an error.
    The memory beyond that of a double backward over one batch is three vectors of the size of the parameters, in
    float32 or, where a parameter is in float64, in float64. Weights of a narrower type round θ + ρ g/‖g‖.
    Attention is computed by torch's plain kernel, because the fused ones have no second derivative.

    Args:
        model: whose parameters with ``requires_grad`` are θ; they may be on any device, and on several.
        loss: from a batch to the losses of its n samples, a vector [n]. Their number weighs the batch in L. Where the
            data are one batch, a scalar is taken as well.
        data: the batches, such as a DataLoader, or ``[batch]`` for a single one. They are iterated once for each of
            the two losses and each product, and must be the same each time.
        rho: radius ρ >= 0 of the perturbation, in units of the weights.
        tolerance: ``lambda_max`` = vᵀHv has converged where ‖Hv - lambda_max v‖ is at most this share of
            ``|lambda_max|``, or its square as a share of ‖H‖. Some eigenvalue is then that near, and ``lambda_max`` is
            usually much nearer, since its error is of second order.
        max_iterations: the most products, from 1.
        seed: any integer, of the random vector that the iteration starts from.

    Raises:
        ValueError: there are no data, no trainable parameters, or losses of another shape; a loss or a derivative is
            not finite; an argument is out of its range.
        RuntimeError: a part of the model has no second derivative in torch.

    Example:
        >>> model, data = torch.nn.Linear(1, 1, bias=False), [torch.ones(4, 1)]
        >>> _ = torch.nn.init.ones_(model.weight)  # L = w² at w = 1: L' = 2, L'' = 2
        >>> loss = lambda x: model(x).square().squeeze(1)
        >>> measured = rst.sharpness(model, loss, data, rho=0.5)
        >>> measured.gradient_norm, measured.sharpness, measured.lambda_max
        (2.0, 1.25, 2.0)
    """
    check_module(model, "sharpness")
    rho, tolerance = non_negative("rho", rho), non_negative("tolerance", tolerance)
    positive_integer("max_iterations", max_iterations)
    objective = _Objective(model, loss, data)
    generator = stream("sharpness", seed)
    with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        here, gradient = objective.mean(objective.gradient)
        gradient_norm = _norm(gradient)
        _check_finite("the gradient", gradient_norm)
        with _moved(objective.parameters, _scaled(gradient) if gradient_norm else gradient, rho):
            there, _ = objective.mean(lambda mean_loss: [])
        del gradient
        largest = _largest_eigenvalue(
            lambda v: objective.mean(partial(objective.hessian_product, v))[1],
            lambda: objective.random_vector(generator),
            tolerance,
            max_iterations,
        )
    return Sharpness(gradient_norm, there - here, *largest)


# The loss as a function of the weights --------------------------------------------------------------------------------


class _Objective:
    """L and its derivatives at the weights that the model has, as means over all samples of the data."""

    def __init__(self, model: nn.Module, loss: Callable[[Any], Tensor], data: Iterable[Any]) -> None:
        self.parameters = _trainable(model)
        if isinstance(data, (Tensor, Mapping, Iterator)) or not isinstance(data, Iterable):
            raise ValueError(
                f"data must be batches that can be iterated several times, got {type(data).__name__}: give a list or a "
                "DataLoader, or [batch] for one batch."
            )
        self.loss, self.data = loss, data
        self.precision = reduce(torch.promote_types, {p.dtype for p in self.parameters}, torch.float32)
        self.restore = keep_modules(model)
        self.rng = rng_states(p.device for p in self.parameters)
        owners = (getattr(owner, "generator", None) for owner in (data, getattr(data, "sampler", None)))
        self.generators = [(g, g.get_state()) for g in owners if isinstance(g, torch.Generator)]
        self.samples = 0  # Of the first pass.
        self.looked_for_errors = False
        self.scalar = False  # Whether loss gave a scalar for the first batch.

    def mean(self, derive: Callable[[Tensor], Sequence[Tensor]]) -> tuple[float, Vector]:
        """L, and the mean over all samples of what ``derive`` makes of the mean loss of a batch."""
        total, samples, sums = 0.0, 0, list[Tensor]()
        try:
            with replayed_rng(self.rng):
                for batch in self.data:
                    losses = self._losses(batch, first=not samples)
                    n, value = losses.numel(), float(losses.detach().cpu().double().sum())
                    _check_finite("the loss", value)
                    pieces = derive(losses.mean())
                    if sums:
                        for a, piece in zip(sums, pieces, strict=True):
                            a.add_(piece.detach(), alpha=n)
                    else:
                        sums = [n * piece.detach().to(self.precision) for piece in pieces]
                    total, samples = total + value, samples + n
                    del losses, pieces  # And with them the graph, before the next batch.
                    self.restore()  # Each batch meets the buffers that the model came with.
        finally:
            self.restore()
            for generator, state in self.generators:
                generator.set_state(state)
        self._check_samples(samples)
        return total / samples, [piece.div_(samples) for piece in sums]

    def gradient(self, mean_loss: Tensor) -> Sequence[Tensor]:
        """The gradient of a batch's mean loss, zero for parameters that it does not depend on."""
        return torch.autograd.grad(mean_loss, self.parameters, allow_unused=True, materialize_grads=True)

    def hessian_product(self, v: Vector, mean_loss: Tensor) -> Sequence[Tensor]:
        """Hv of a batch's mean loss, as the gradient of gᵀv."""
        # That it requires a gradient makes `once_differentiable` functions say in the graph that they are.
        one = torch.ones_like(mean_loss, requires_grad=True)
        try:
            gradient = torch.autograd.grad(
                mean_loss, self.parameters, one, create_graph=True, allow_unused=True, materialize_grads=True
            )
            if not self.looked_for_errors and _ends_in_error(gradient):
                raise RuntimeError("a backward function is marked by once_differentiable")
            self.looked_for_errors = True
            used = [(g, piece.to(g.dtype)) for g, piece in zip(gradient, v, strict=True) if g.requires_grad]
            return torch.autograd.grad(
                *([g for g, _ in used], self.parameters, [piece for _, piece in used]),
                allow_unused=True,
                materialize_grads=True,
            )
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RuntimeError(
                f"lambda_max needs a second derivative that torch does not give ({str(error).splitlines()[0]}): let "
                "loss call the network without torch.compile, and with kernels that can be differentiated twice, such "
                "as torch.nn.attention.sdpa_kernel(SDPBackend.MATH) for attention."
            ) from error

    def random_vector(self, generator: torch.Generator) -> Vector:
        """A vector of length 1 in a random direction."""
        draws = [torch.randn(p.shape, generator=generator, dtype=self.precision, device="cpu") for p in self.parameters]
        return _scaled([draw.to(p.device) for draw, p in zip(draws, self.parameters, strict=True)])

    def _losses(self, batch: Any, first: bool) -> Tensor:
        losses = self.loss(batch)
        if not isinstance(losses, Tensor) or losses.ndim > 1 or not losses.numel() or not losses.is_floating_point():
            what = f"{losses.dtype} {list(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(f"loss must return the losses of a batch's n samples, a vector [n] of floats, got {what}.")
        if first:
            self.scalar = losses.ndim == 0
        elif self.scalar or losses.ndim == 0:
            raise ValueError(
                "loss returns a scalar for one of several batches, which does not say how many samples it is the mean "
                "of: return the vector of the samples' losses, as by reduction='none'."
            )
        if not losses.requires_grad:
            raise ValueError(
                "loss does not depend on the trainable parameters of the model: let it call this model, without "
                "torch.no_grad() and detach()."
            )
        return losses

    def _check_samples(self, samples: int) -> None:
        if not samples:
            raise ValueError("data has no batches: give at least one.")
        self.samples = self.samples or samples
        if samples != self.samples:
            raise ValueError(
                f"data gave {self.samples} samples at first and {samples} later: give batches that are the same each "
                "time they are iterated."
            )


def _trainable(model: nn.Module) -> list[Tensor]:
    for module in model.modules():
        if isinstance(module, DistributedDataParallel) or type(module).__name__ == "FullyShardedDataParallel":
            raise ValueError(
                f"model is wrapped in {type(module).__name__}, whose communication a second derivative bypasses: give "
                "the plain module, and let loss call it; a rank measures the data that it is given."
            )
    parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("model has no trainable parameters: set requires_grad for those to be measured.")
    if any(hasattr(p, "device_mesh") for p in parameters):
        raise ValueError("parameters are sharded over ranks (DTensor): gather them in a plain module, and give that.")
    if any(p.is_complex() for p in parameters):
        raise ValueError("model has complex parameters: write each as a pair of real ones.")
    return parameters


def _check_finite(what: str, *values: float) -> None:
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{what} is not finite: look for weights or inputs that are not, or take a smaller rho.")


def _ends_in_error(tensors: Iterable[Tensor]) -> bool:
    """Whether the graph behind tensors has a node that raises, which `torch.autograd.grad` takes for a constant."""
    seen, nodes = set(), [tensor.grad_fn for tensor in tensors]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            if node.name() == "torch::autograd::Error":
                return True
            seen.add(node)
            nodes += [source for source, _ in node.next_functions]
    return False


# What is left alone ---------------------------------------------------------------------------------------------------


@contextmanager
def _moved(parameters: list[Tensor], direction: Vector, distance: float) -> Iterator[None]:
    """Inside, the parameters are moved by ``distance`` times the vector; afterwards they are back, to the bit."""
    saved = [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=distance)
        torch.clear_autocast_cache()  # Autocast keeps low-precision copies of the weights, which have just changed.
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, saved, strict=True):
                p.copy_(value)
        torch.clear_autocast_cache()


# Power iteration ------------------------------------------------------------------------------------------------------

MARGIN = 1.1
"""The shift is this times the largest ‖Hv‖ so far, which is ‖H‖ or little less when the shifted iteration begins."""


def _largest_eigenvalue(
    product: Callable[[Vector], Vector], draw: Callable[[], Vector], tolerance: float, max_iterations: int
) -> tuple[float, int, bool]:
    """The largest eigenvalue of a symmetric H, how many products with H it took, and whether it has converged.

    ``draw`` gives a random vector of length 1. The iteration is shifted where negative eigenvalues are known to count:
    If there are none, each step raises ‖Hv‖ by at least the share by which vᵀHv lies below ‖Hv‖. With x the eigenvalues
    over ‖Hv‖, and E the mean over those that make up v, such that E x² = 1, this is 1 - E x <= (E x⁻²)^½ - 1, which
    follows from (E x⁻²)^½ >= 1 / E x. So where ‖Hv‖ rises by less, the dominant eigenvalue is negative or may have a
    negative rival. A new vector is drawn then, because the first one may have lost the direction that is looked for.
    """
    v, shifted, before, largest = draw(), False, 0.0, 0.0
    for iteration in range(1, max_iterations + 1):
        w = product(v)
        value, size = _dot(v, w), _norm(w)
        _check_finite("the second derivative of the loss", value, size)
        largest = max(largest, size)
        torch._foreach_add_(w, v, alpha=-value)
        residual = _norm(w)
        if (shifted or value >= 0 or not size) and residual <= tolerance * max(abs(value), tolerance * largest):
            return value, iteration, True
        if not shifted and before and 1 - value / size > size / before - 1:
            shifted, v = True, draw()
        else:
            torch._foreach_add_(w, v, alpha=value + shifted * MARGIN * largest)
            v = _scaled(w)
        before = size
    return value, max_iterations, False


def _dot(a: Vector, b: Vector) -> float:
    return float(torch.stack([(x * y).sum().to(a[0].device) for x, y in zip(a, b, strict=True)]).sum())


def _norm(vector: Vector) -> float:
    norms = [torch.linalg.vector_norm(x).to(vector[0].device) for x in vector]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def _scaled(vector: Vector) -> Vector:
    """The vector, scaled in place to length 1."""
    torch._foreach_div_(vector, _norm(vector))
    return vector
