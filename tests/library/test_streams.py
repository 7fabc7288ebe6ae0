"""Named random streams: functions of their name and key alone."""

from itertools import combinations

import torch

from rst.streams import stream


def numbers(name: str, *key: int) -> torch.Tensor:
    return torch.rand(4, generator=stream(name, *key), dtype=torch.float64)


def test_a_stream_does_not_depend_on_torchs_global_generator_and_leaves_it_alone():
    torch.manual_seed(0)
    before, first = torch.get_rng_state(), numbers("gate", 0, 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(numbers("gate", 0, 0), first)


def test_streams_of_different_names_or_keys_give_different_numbers():
    streams = [numbers("gate", 0), numbers("gate", 1), numbers("gate", 0, 0), numbers("esam", 0), numbers("gate", 10)]
    assert not any(torch.equal(a, b) for a, b in combinations([*streams, numbers("gate", 1, 0)], 2))


def test_the_numbers_of_a_stream_never_change():
    """So that the gate and the masks of a seed mean the same in every version of the library."""
    expected = [0.8385151292977798, 0.8878871676762109, 0.664473315996927, 0.8701355835107014]
    assert numbers("gate", 0, 0).tolist() == expected
