"""What a machine has for a run."""

import gc
import itertools
import platform
import resource
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest
import torch

from rst.experiments import devices
from rst.experiments.devices import emulates_bfloat16, reset_peak_memory


def processor(monkeypatch: pytest.MonkeyPatch, **has: bool) -> None:
    """A machine with a processor of these instructions, and without a GPU."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("instructions", ["avx512_bf16", "amx_bf16", "bf16"])
def test_a_processor_with_any_instructions_for_bfloat16_emulates_nothing(
    monkeypatch: pytest.MonkeyPatch, instructions: str
) -> None:
    processor(monkeypatch, avx2=True, **{instructions: True})
    assert not emulates_bfloat16("cpu")


@pytest.mark.parametrize(("device", "emulates"), [("cpu", True), ("auto", True), ("cuda", False), ("cuda:0", False)])
def test_a_processor_without_them_emulates_bfloat16_for_the_runs_that_it_trains(
    monkeypatch: pytest.MonkeyPatch, device: str, emulates: bool
) -> None:
    processor(monkeypatch, avx2=True, avx512_bf16=False)
    assert emulates_bfloat16(device) == emulates


def test_where_there_is_a_gpu_the_processor_trains_only_what_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not emulates_bfloat16("auto")
    assert emulates_bfloat16("cpu")


def test_a_torch_that_cannot_tell_is_taken_to_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not emulates_bfloat16("cpu")


# -------------------------------------------------------------------------------------------------------------- memory

STEPS = """
import resource, sys, torch
from rst.experiments.devices import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
faults = []
for step in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    activations = [torch.ones(2**26, dtype=torch.uint8) for layer in range(3)]  # Too large for malloc to keep.
    del activations
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_that_a_step_frees_is_there_for_the_next_one_without_a_fault_for_each_page() -> None:
    def fewest_faults_of_a_step(memory: str) -> int:
        return int(subprocess.run([sys.executable, "-c", STEPS, memory], capture_output=True, check=True).stdout)

    pages = 3 * 2**26 // resource.getpagesize()
    assert fewest_faults_of_a_step("given back") > pages / 2
    assert fewest_faults_of_a_step("kept") < pages / 20


# ------------------------------------------------------------------------------------------------ one run, then another


class Cycle:
    """What only a collection frees."""

    def __init__(self) -> None:
        self.own = self


@pytest.fixture
def first_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which no run has begun yet; collections begin only when they are asked for."""
    monkeypatch.setattr(devices, "_EARLIER_RUNS", itertools.count())
    gc.collect()
    gc.unfreeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


@pytest.mark.usefixtures("first_run")
def test_a_run_frees_what_the_run_before_has_left() -> None:
    reset_peak_memory(torch.device("cpu"))
    left = weakref.ref(Cycle())
    assert left() is not None
    reset_peak_memory(torch.device("cpu"))
    assert left() is None


@pytest.mark.usefixtures("first_run")
def test_the_first_run_of_a_process_waits_for_no_collection() -> None:
    left = weakref.ref(Cycle())
    reset_peak_memory(torch.device("cpu"))
    assert left() is not None


@pytest.mark.usefixtures("first_run")
def test_collections_pass_over_what_existed_before_a_run() -> None:
    reset_peak_memory(torch.device("cpu"))
    assert gc.get_freeze_count() > 10_000
    assert len(gc.get_objects()) < 1_000
