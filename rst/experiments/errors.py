"""Bad input is answered by one sentence: what is wrong, where, and what to write instead."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(Exception):
    """Bad input. Its text is one sentence, on one line, that names what is wrong and what to write instead."""

    repeated = False
    """Whether another rank of the same run has raised this error before, so that it need not be printed again."""

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())


class NotAtThisScale(InputError):
    """The chosen scale does not cover the chosen data set."""


def one_sentence(error: Exception) -> str:
    """The first line of an error's text that is not empty, with a full stop; the error's name where it has no text."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    line = next((line.strip() for line in text.splitlines() if line.strip()), repr(error))
    return line if line.endswith("?") else line.rstrip(".") + "."


@contextmanager
def bad_input(prefix: str = "") -> Iterator[None]:
    """Turn a ValueError, TypeError, KeyError or OSError of the body into an `InputError` with a prefix."""
    try:
        yield
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise InputError(prefix + one_sentence(error)) from error
