"""What a run runs on: what a reader needs in order to judge whether two records can be compared."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import rst
from rst.experiments.devices import available_cores
from rst.experiments.spec import RunSpec


def environment(device: torch.device) -> dict[str, Any]:
    """The commit of the code, the versions of the libraries, the machine and the device."""
    return {
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "rst": rst.__version__,
        **{name: version(name) for name in ("torch", "torchvision", "timm")},
        "platform": f"{platform.system()} {platform.machine()}, {_processor()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    """The name of the processor, by which times can be compared."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def environment_of(spec: RunSpec, device: torch.device, data_digest: str) -> dict[str, Any]:
    """The environment, the flags of the run that change its speed or its rounding, and the digest of its images."""
    return {
        **environment(device),
        "devices": spec.devices,
        "autocast": spec.autocast,
        "tf32": spec.tf32,
        "channels_last": spec.channels_last,
        "compile": spec.compile,
        "cuda_graphs": spec.cuda_graphs if device.type == "cuda" else None,
        "deterministic": spec.deterministic,
        "alone": _alone(),
        "data_digest": data_digest,
    }


def _alone() -> bool:
    """Whether no more processes than there are cores ran in the last minute, so that none slowed this run down."""
    return not hasattr(os, "getloadavg") or os.getloadavg()[0] <= available_cores() + 0.5


def _git_commit() -> str | None:
    """The commit of this code, with "-dirty" where files other than results differ; None outside a git checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results")
        return git("rev-parse", "HEAD") + "-dirty" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return None


def changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between two starts of a run, as a text: "torch 2.13.0 -> 2.14.1, threads 1 -> 2".

    What else the machine does is left out: it changes the time of a run alone.
    """
    keys = [key for key in dict.fromkeys([*before, *now]) if key != "alone"]
    return ", ".join(f"{key} {before.get(key)} -> {now.get(key)}" for key in keys if before.get(key) != now.get(key))
