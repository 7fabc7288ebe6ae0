"""What bad input is refused with."""

from collections.abc import Callable
from typing import Any

import pytest

from rst.experiments.errors import InputError


def refusal(action: Callable[[], Any]) -> str:
    """What the action is refused with: one sentence on one line."""
    with pytest.raises(InputError) as raised:
        action()
    sentence = str(raised.value)
    assert "\n" not in sentence
    assert sentence.endswith((".", "?"))
    return sentence
