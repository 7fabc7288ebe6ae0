"""Weights and gradients as long vectors: norms over all parameters and shards, and from θ to θ + ε and back."""

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from rst.guards import Parts

EPSILON = 1e-12
"""Added to every norm before a division, so that a zero gradient gives a zero perturbation and not NaN."""

Only = Callable[[str, Tensor], bool]
"""``only(name, parameter)`` says whether a parameter is perturbed."""

Perturb = Callable[["Vector", "Vector", "Vector", float, float | Tensor], None]
"""``perturb(gradient, weights, scratch, rho, factor)`` turns g into ε: see `rst.variants.Variant.perturb`."""


class Vector(list[Tensor]):
    """One long vector in pieces, one for each parameter: a list for ``torch._foreach_`` operations.

    All pieces are real: of a complex parameter they hold its real and imaginary parts. Of a parameter that is sharded
    over ranks they hold this rank's shard.

    Args:
        pieces: the tensors.
        indices: the places of their parameters among all trainable parameters of the model.
        names: the names of their parameters.
        groups: for each piece the process groups over which it is sharded; None where all parameters are whole.
    """

    def __init__(
        self,
        pieces: Iterable[Tensor],
        indices: Sequence[int],
        names: Sequence[str],
        groups: Sequence[tuple[Any, ...]] | None = None,
    ) -> None:
        super().__init__(pieces)
        self.indices, self.names, self.groups = indices, names, groups

    def norm(self) -> Tensor:
        """The 2-norm of the whole vector, other ranks' shards included: a scalar of float32, or of a wider type."""
        dtypes = {piece.dtype for piece in self}
        precision = reduce(torch.promote_types, dtypes, torch.float32)
        norms = torch.stack(torch._foreach_norm(self, 2, None if dtypes == {precision} else precision))
        return torch.linalg.vector_norm(norms) if self.groups is None else self._sum(norms.square()).sqrt()

    def dot(self, other: "Vector") -> Tensor:
        """The inner product with a vector of the same whole parameters: a scalar like `norm`."""
        precision = reduce(torch.promote_types, {piece.dtype for piece in self}, torch.float32)
        flat = [[piece.reshape(-1) for piece in vector] for vector in (self, other)]
        return torch.stack([torch.dot(a.to(precision), b.to(precision)) for a, b in zip(*flat, strict=True)]).sum()

    def _sum(self, squares: Tensor) -> Tensor:
        """The sum of the squared norms of all pieces, [pieces], and of other ranks' shards of them."""
        assert self.groups is not None
        total = squares.new_zeros(())
        for groups in dict.fromkeys(self.groups):
            # An index of numbers would be copied to the device, for which the host would wait.
            part = torch.stack([s for s, own in zip(squares.unbind(), self.groups, strict=True) if own == groups]).sum()
            for group in groups:
                torch.distributed.all_reduce(part, group=group)
            total += part
        return total


class Weights:
    """The trainable parameters of a model, θ: their gradients, and the way to θ + ε and back.

    Args:
        parts: the model.
        only: which parameters are perturbed; None for all.
        must_be_whole: whether parameters that are sharded over ranks are refused.

    Attributes:
        parameters: all trainable parameters, perturbed or not.
        device: theirs.
    """

    def __init__(self, parts: Parts, only: Only | None, must_be_whole: bool) -> None:
        self._parts, self._only, self._must_be_whole = parts, only, must_be_whole
        self._seen_walks = 0
        self._flags: list[bool] | None = None
        self._names: list[str] = []
        self.parameters: list[Tensor] = []
        self.device = torch.device("cpu")
        self.look()

    def look(self) -> None:
        """Find the parameters anew if the model has got new parts, was moved, or has parameters frozen or released.

        Raises ValueError where they lie on several devices, are sharded so that their norm is unknown, or where
        ``only`` selects none.
        """
        self._parts.look()
        flags = [p.requires_grad for _, p in self._parts.parameters]
        is_still = flags == self._flags and all(p.device == self.device for p in self.parameters[:1])
        if is_still and self._seen_walks == self._parts.walks:
            return
        self._seen_walks, self._flags = self._parts.walks, flags
        named = [(name, p) for name, p in self._parts.parameters if p.requires_grad]
        names = [name for name, _ in named]
        parameters: list[Tensor] = [p for _, p in named]
        is_same = len(parameters) == len(self.parameters) and all(map(operator.is_, parameters, self.parameters))
        if is_still and is_same and names == self._names:
            return  # The model has got other parts, such as a buffer.
        self._names, self.parameters = names, parameters
        devices = {p.device for p in self.parameters}
        if len(devices) > 1:
            raise ValueError("parameters are on several devices: put the whole model on one.")
        self.device = next(iter(devices), self.device)
        self._is_perturbed = [self._only is None or bool(self._only(name, p)) for name, p in named]
        if named and not any(self._is_perturbed):
            raise ValueError("only(name, parameter) is false for every trainable parameter: it must be true for some.")
        groups = [_groups(name, p) for name, p in named]
        self._are_distributed = any(hasattr(p, "device_mesh") for p in self.parameters)
        if self._must_be_whole and self._are_distributed:
            raise ValueError("the variant needs whole parameters, and these are DTensors: use DistributedDataParallel.")
        self._groups = groups if any(groups) else None
        self._is_plain = not self._are_distributed and not any(p.is_complex() for p in self.parameters)
        self._saved: list[Tensor | None] = [None] * len(named)
        self._copies: list[Tensor | None] = [None] * len(named)

    def perturbed_parameters(self) -> dict[str, Tensor]:
        """The parameters that are perturbed, by name."""
        return {
            name: p for name, p, chosen in zip(self._names, self.parameters, self._is_perturbed, strict=True) if chosen
        }

    # ------------------------------------------------------------------------------------------ gradients, in ``.grad``

    @contextmanager
    def gradients_set_aside(self) -> Iterator[list[Tensor | None]]:
        """Inside, ``.grad`` begins as None; yields what it held.

        After an error it holds these tensors again, to some of which a part of the step's gradient may have been added.
        """
        taken = [p.grad for p in self.parameters]
        if any(wrapper.gradient_as_bucket_view for wrapper in self._parts.wrappers):
            # DDP writes the next gradient that it averages to the memory of the last one.
            taken = [None if gradient is None else gradient.clone() for gradient in taken]
        self.clear_gradients()
        try:
            yield taken
        except BaseException:
            self.put_gradients(taken)
            raise

    def clear_gradients(self) -> None:
        """Set every ``.grad`` to None, so that autograd puts its own tensors there and adds nothing."""
        self.put_gradients([None] * len(self.parameters))

    def put_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        """Set every parameter's ``.grad``."""
        for p, gradient in zip(self.parameters, gradients, strict=True):
            p.grad = gradient

    def gradient(self) -> Vector:
        """What ``.grad`` holds, of the parameters that have it. Raises RuntimeError where none has, or it is sparse."""
        indices = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        if not indices:
            raise RuntimeError(
                "the clean pass left no gradient: call (weight * loss).backward() in every pass, and zero_grad() only "
                "after the last one" + (", and leave set_requires_gradient_sync alone." if self._parts.sharded else ".")
            )
        if any(self.parameters[i].grad.layout is not torch.strided for i in indices):  # type: ignore[union-attr]
            raise RuntimeError(
                "a gradient is sparse, which rst.RST does not take even where only= leaves its parameter out: build "
                "the embedding without sparse=True."
            )
        if not self._are_distributed:
            self._give_own_memory([self.parameters[i] for i in indices])
        return self._vector(indices, [self.parameters[i].grad for i in indices])

    def _give_own_memory(self, parameters: Sequence[Tensor]) -> None:
        """Copy a gradient that shares its memory with another one, or is conjugated: it is going to be written to.

        Autograd makes such gradients of parameters that meet through views, as in ``a.view(1, 4) + b.view(1, 4)``.
        """
        addresses: set[int] = set()
        for p in parameters:
            gradient: Any = p.grad
            if gradient.is_conj():
                p.grad = gradient = gradient.resolve_conj()
            if gradient.data_ptr() in addresses:
                p.grad = gradient.clone()
            addresses.add(gradient.data_ptr())

    @torch.no_grad()
    def copied(self, gradient: Vector) -> Vector:
        """A copy of a gradient, in buffers that are made once, and without its history."""
        copy = self._buffers(self._copies, gradient.indices)
        torch._foreach_copy_(copy, gradient)
        return copy

    @torch.no_grad()
    def add_clean(self, total: list[Tensor | None], gradient: Vector, weight: float | Tensor) -> None:
        """Add ``weight`` times the gradient, which is in ``.grad`` and stays there, to a total."""
        if not isinstance(weight, Tensor) and weight == 0:
            return
        new = [i for i in gradient.indices if total[i] is None]
        if new:
            kept = [k for k, i in enumerate(gradient.indices) if total[i] is not None]
            clean: list[Any] = [self.parameters[i].grad for i in new]
            scaled = torch._foreach_mul(clean, 1.0 if isinstance(weight, Tensor) else weight)
            if isinstance(weight, Tensor):
                torch._foreach_mul_(self._vector(new, scaled), weight)
            for i, own in zip(new, scaled, strict=True):
                total[i] = own
            gradient = self._selected(gradient, kept)
        if not gradient:
            return
        sums = self._vector(gradient.indices, [total[i] for i in gradient.indices])
        if isinstance(weight, Tensor):
            scratch = self._buffers(self._saved, gradient.indices)  # They are free until θ is saved.
            torch._foreach_copy_(scratch, gradient)
            torch._foreach_mul_(scratch, weight)
            torch._foreach_add_(sums, scratch)
        else:
            torch._foreach_add_(sums, gradient, alpha=weight)

    def add_up(self, total: list[Tensor | None]) -> None:
        """Add ``.grad`` to a total, and put the sum into ``.grad``; a total of None becomes the tensor of ``.grad``."""
        gradient = self.gradient()
        both = [k for k, i in enumerate(gradient.indices) if total[i] is not None]
        if both:
            sums = self._vector([gradient.indices[k] for k in both], [total[gradient.indices[k]] for k in both])
            torch._foreach_add_(sums, [gradient[k] for k in both])
        total[:] = [p.grad if own is None else own for own, p in zip(total, self.parameters, strict=True)]
        self.put_gradients(total)

    def filled(self, clean: Vector) -> tuple[Vector, Vector]:
        """The gradient in ``.grad`` and a clean one, both of the parameters that have either, with zeros elsewhere."""
        for i in clean.indices:
            if self.parameters[i].grad is None:
                self.parameters[i].grad = torch.zeros_like(self.parameters[i])
        sharp = self.gradient()
        filled = self._buffers(self._copies, sharp.indices)
        new = set(sharp.indices).difference(clean.indices)
        for i, piece in zip(sharp.indices, filled, strict=True):
            if i in new:
                piece.zero_()
        return sharp, filled

    def check_not_cleared(self, total: list[Tensor | None]) -> None:
        """Raise RuntimeError if ``.grad`` has lost the sum that was there before the perturbed pass."""
        if any(wrapper.gradient_as_bucket_view for wrapper in self._parts.wrappers):
            return  # Then DDP itself puts other tensors into ``.grad``.
        for p, own in zip(self.parameters, total, strict=True):
            # A backward pass with create_graph=True puts another tensor there, which has a history.
            if own is not None and p.grad is not own and (p.grad is None or p.grad.grad_fn is None):
                raise RuntimeError("a gradient was cleared inside passes(): call zero_grad() only after the last pass.")

    # ------------------------------------------------------------------------------------------------- θ + ε and back

    @contextmanager
    @torch.no_grad()
    def perturbed(self, gradient: Vector, perturb: Perturb, rho: float, factor: float | Tensor) -> Iterator[None]:
        """Inside, the parameters are θ + ε; afterwards they are θ again, to the bit. ``gradient`` is used up."""
        chosen = self._chosen(gradient)
        weights = self._vector(chosen.indices, [self.parameters[i] for i in chosen.indices])
        saved = self._buffers(self._saved, chosen.indices)
        if chosen:
            perturb(chosen, weights, saved, rho, factor)
            torch._foreach_copy_(saved, weights)
        try:
            if chosen:
                torch._foreach_add_(weights, chosen)
            # The memory of ε is free for the perturbed pass, although the caller still holds the list.
            chosen.clear()
            gradient.clear()
            self._parts.forget_copies()
            yield
        finally:
            if weights:
                torch._foreach_copy_(weights, saved)
            self._parts.forget_copies()

    def _chosen(self, gradient: Vector) -> Vector:
        """The pieces of the parameters that are perturbed."""
        if self._only is None:
            return gradient
        return self._selected(gradient, [k for k, i in enumerate(gradient.indices) if self._is_perturbed[i]])

    def _selected(self, vector: Vector, kept: Sequence[int]) -> Vector:
        """The pieces at these places of a vector."""
        return self._of_pieces([vector.indices[k] for k in kept], [vector[k] for k in kept])

    def _vector(self, indices: Sequence[int], tensors: Sequence[Any]) -> Vector:
        """Parameters, or tensors laid out like them, as a vector that shares their memory."""
        if not self._is_plain:
            tensors = [self._local(tensor, i) for i, tensor in zip(indices, tensors, strict=True)]
        return self._of_pieces(indices, tensors)

    def _of_pieces(self, indices: Sequence[int], pieces: Iterable[Tensor]) -> Vector:
        if len(indices) == len(self._names):
            return Vector(pieces, indices, self._names, self._groups)
        groups = None if self._groups is None else [self._groups[i] for i in indices]
        return Vector(pieces, indices, [self._names[i] for i in indices], groups)

    def _local(self, tensor: Any, index: int) -> Tensor:
        if hasattr(tensor, "to_local"):
            if tensor.placements != self.parameters[index].placements:  # type: ignore[attr-defined]
                raise RuntimeError(
                    f"the gradient of {self._names[index]} is laid out over the ranks as {tensor.placements}, unlike "
                    "the parameter, so that its norm is unknown: shard the model with fully_shard alone."
                )
            tensor = tensor.detach().to_local()
        return torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor

    def _buffers(self, store: list[Tensor | None], indices: Sequence[int]) -> Vector:
        """Buffers like these parameters. One is made at its first use, and anew when its parameter changes its type."""
        vector = self._vector(indices, [self.parameters[i] for i in indices])
        for k, i in enumerate(indices):
            piece, buffer = vector[k], store[i]
            if buffer is None or buffer.dtype != piece.dtype or buffer.shape != piece.shape:
                store[i] = buffer = torch.empty_like(piece, requires_grad=False)
            vector[k] = buffer
        return vector


def _groups(name: str, parameter: Any) -> tuple[Any, ...]:
    """The process groups over which a parameter is sharded; none where this rank has the whole of it."""
    if not hasattr(parameter, "device_mesh"):
        return ()
    mesh, placements = parameter.device_mesh, parameter.placements
    if any(placement.is_partial() for placement in placements):
        raise ValueError(f"parameter {name} is a partial sum on each rank, and has no norm: use fully_shard.")
    if parameter.device.type == "cpu" != mesh.device_type:
        raise ValueError(f"parameter {name} is kept on the CPU: leave out CPUOffloadPolicy.")
    return tuple(
        mesh.get_group(i) for i, placement in enumerate(placements) if placement.is_shard() and mesh.size(i) > 1
    )
