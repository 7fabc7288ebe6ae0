"""Named random streams: every use of random numbers has its own generator, so that changing one never moves another."""

import hashlib

import torch


def stream(name: str, *key: int) -> torch.Generator:
    """A new generator on the CPU, whose seed is a hash of ``(name, *key)`` alone.

    Its numbers are the same on every rank and platform and after every resume, and independent of torch's global
    generators and of the streams of every other name or key. Typical keys are ``(seed,)``, ``(seed, epoch)`` and
    ``(seed, epoch, step)``.
    """
    text = ":".join([name, *map(str, key)])
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
