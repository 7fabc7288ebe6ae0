"""A list of tensors as one long vector."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

EPSILON = 1e-12
"""Added to a norm that something is divided by, so that a zero vector stays one."""


def norm(vector: Sequence[Tensor]) -> Tensor:
    """The 2-norm, a scalar of float32 or more."""
    precision = reduce(torch.promote_types, {part.dtype for part in vector}, torch.float32)
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(vector), 2, precision)))


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """The inner product, a scalar of float32 or more."""
    precision = reduce(torch.promote_types, {part.dtype for part in a}, torch.float32)
    return torch.stack([(x * y).sum(dtype=precision) for x, y in zip(a, b, strict=True)]).sum()
