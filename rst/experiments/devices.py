"""What this machine has for a run: devices, cores and memory."""

import ctypes
import gc
import itertools
import os
from contextlib import suppress
from pathlib import Path

import torch

from rst.experiments.errors import InputError
from rst.experiments.spec import RunSpec


def is_rank() -> bool:
    """Whether torch's launcher, ours or ``torchrun``, has made this process one of its ranks.

    It sets all of these variables. Where some are missing, those that are set are left over from something else.
    """
    ranks = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}
    return ranks | {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


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
    here = int(os.environ["LOCAL_WORLD_SIZE"]) if is_rank() else spec.devices
    if device.type == "cuda" and (device.index is not None or torch.cuda.device_count() < here):
        raise InputError(
            f"device={spec.device} is not {here} devices, of which there are {torch.cuda.device_count()} here: "
            "take fewer devices, and leave device out."
        )
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"devices={spec.devices} of kind {device.type} cannot work together: take device=cpu.")


def emulates_bfloat16(name: str) -> bool:
    """Whether this machine's processor trains a run on the device of this name, and lacks bfloat16 instructions.

    The run gives the same result to rounding, in more time. A torch that cannot tell what the processor has says no.
    """
    if name != "cpu" and (name != "auto" or torch.cuda.is_available()):
        return False
    if not hasattr(torch.cpu, "get_capabilities"):
        return False
    has = torch.cpu.get_capabilities()
    return not any(has.get(instructions) for instructions in ("avx512_bf16", "amx_bf16", "bf16"))  # x86, x86, ARM


def keep_freed_memory() -> None:
    """Let the C library keep the memory that a step frees, where it is glibc: the next step takes as much again.

    Given back to the system, every page of it costs a fault when it is taken anew, which made up to a tenth of the time
    of a step of WRN-16-1 on CPUs.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(trim_threshold, 2**30)
        library.mallopt(mmap_threshold, 2**30)


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` count from now on, without what an earlier run of this process has left behind."""
    _free_the_run_before()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


_EARLIER_RUNS = itertools.count()
"""How many runs of this process have begun; `gc.get_freeze_count` would tell, but counts every object for 33 ms."""


def _free_the_run_before() -> None:
    """Give back what the run before has left, and let later collections pass over what still exists.

    What outlives a run is imported modules, a visit to which takes a collection a fifth of a second. The first run of a
    process has nothing to give back and does not wait for a collection.
    """
    if next(_EARLIER_RUNS):
        gc.collect()
        with suppress(OSError, AttributeError):  # Not every C library can return memory to the system.
            ctypes.CDLL(None).malloc_trim(0)
    gc.freeze()


def peak_memory(device: torch.device) -> int | None:
    """The most memory in use since `reset_peak_memory`, in bytes: allocated on CUDA, or resident of this process.

    None where the system cannot tell it for a part of the life of a process, as on macOS.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        if not os.access("/proc/self/clear_refs", os.W_OK):
            return None
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return 1024 * int(status["VmHWM"].split()[0])
    except (OSError, LookupError, ValueError):
        return None


def available_cores() -> int:
    """How many cores this process may use; a container or a job may have fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
