"""Which devices this machine has for a run."""

import os

import torch

from rst.experiments.errors import InputError
from rst.experiments.spec import RunSpec


def torch_device(name: str) -> torch.device:
    """The device of this name; "auto" is CUDA where there is one, else the CPU.

    Raises:
        InputError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={name} does not exist here: take device=cpu or device=auto.") from error
    return device


def check_devices(spec: RunSpec) -> None:
    """Raise `InputError` where this machine lacks the devices of a run."""
    device = torch_device(spec.device)
    if spec.devices == 1:
        return
    here = int(os.environ.get("LOCAL_WORLD_SIZE", spec.devices))
    if device.type == "cuda" and (device.index is not None or torch.cuda.device_count() < here):
        raise InputError(
            f"device={spec.device} is not {here} devices, of which there are {torch.cuda.device_count()} here: "
            "take fewer devices, and leave device out."
        )
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"devices={spec.devices} of kind {device.type} cannot work together: take device=cpu.")


def available_cores() -> int:
    """How many cores this process may use; a container or a job may have fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
