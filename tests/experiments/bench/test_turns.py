"""Contenders take turns, and a figure is the median of the ratios of the rounds."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from rst.experiments.bench.turns import median_ratio, one_thread, operations, progress, take_turns


def test_contenders_take_turns_within_a_round_after_one_step_each_that_is_not_timed() -> None:
    calls: list[str] = []
    contenders = {name: lambda name=name: calls.append(name) for name in "ab"}
    with progress("test", 2) as bar:
        take_turns(contenders, rounds=2, clock=float, bar=bar, steps=2)
    assert "".join(calls) == "ab" + "aabb" + "aabb"


def test_a_time_is_the_mean_of_the_steps_of_a_turn() -> None:
    ticks = itertools.count(step=6.0)
    with progress("test", 3) as bar:
        times = take_turns({"a": lambda: None}, rounds=3, clock=lambda: next(ticks), bar=bar, steps=3)
    assert times == {"a": [2.0, 2.0, 2.0]}
    assert bar.n == 3


@given(st.lists(st.tuples(st.floats(1, 9), st.floats(1, 9)), min_size=1), st.floats(1, 9))
def test_a_machine_that_slows_down_in_a_round_changes_no_ratio_of_it(rounds: list, slower: float) -> None:
    times, reference = zip(*rounds, strict=True)
    slowed = [[slower * a for a in each] for each in (times, reference)]
    assert abs(median_ratio(*slowed) / median_ratio(times, reference) - 1) < 1e-12


def test_an_operation_on_many_tensors_counts_once() -> None:
    tensors = [torch.ones(2), torch.ones(3), torch.ones(4)]
    assert operations(lambda: torch._foreach_mul_(tensors, 2.0)) == 1
    assert operations(lambda: [tensor.mul_(2.0) for tensor in tensors]) == 3


def test_the_marks_of_an_optimizer_for_a_profiler_are_no_operations() -> None:
    optimizer = torch.optim.SGD([torch.ones(2, requires_grad=True)])
    assert operations(optimizer.zero_grad) == 0


def test_the_number_of_threads_comes_back() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
