"""Named random streams: each use of randomness has its own, so that changing one never moves another."""

import hashlib

import torch


def stream(name: str, *key: int) -> torch.Generator:
    """A CPU generator that is a function of ``(name, *key)`` alone.

    Equal on every rank, platform and resume; statistically independent of every other name or key and of torch's
    global generators. Typical keys are ``(seed,)``, ``(seed, epoch)`` or ``(seed, epoch, step)``.
    """
    text = ":".join([name, *map(str, key)])
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
