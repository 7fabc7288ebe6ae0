"""What a run runs on: what a reader needs in order to judge whether two records can be compared."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import rst
from rst.experiments.spec import RunSpec


def environment(device: torch.device) -> dict[str, Any]:
    """The commit of the code, the versions of the libraries, the machine and the device."""
    return {
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "rst": rst.__version__,
        **{name: version(name) for name in ("torch", "torchvision", "timm")},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }


def environment_of(spec: RunSpec, device: torch.device, data_digest: str) -> dict[str, Any]:
    """The environment, the flags of the run that change its speed or its rounding, and the digest of its images."""
    return {
        **environment(device),
        "devices": spec.devices,
        "autocast": spec.autocast,
        "tf32": spec.tf32,
        "channels_last": spec.channels_last,
        "compile": spec.compile,
        "deterministic": spec.deterministic,
        "data_digest": data_digest,
    }


def _git_commit() -> str | None:
    """The commit of this code, marked where files differ from it; None outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
