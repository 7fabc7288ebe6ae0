"""A YAML file that is checked against a schema, and knows on which line it says what."""

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin

from pydantic import BaseModel, StrictStr, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedBase
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError

from rst.experiments.errors import InputError, one_sentence
from rst.experiments.keys import Part, wanted

Text = Annotated[StrictStr, wanted("a text")]
Texts = Annotated[tuple[Text, ...], wanted("a list of texts, [...]")]


Content = TypeVar("Content", bound=Part)


class CheckedFile(Generic[Content]):
    """A YAML file whose content fits a schema.

    Args:
        path: the file.
        schema: the keys that it may have; it becomes `content`.
        keys: what is said of a file without any keys: "a table file has keys, at least title and rows".

    Raises:
        InputError: the file is wrong. The sentence has the file, the line and the key.
    """

    def __init__(self, path: Path, schema: type[Content], keys: str) -> None:
        self.path = path
        self._tree = self._parsed()
        self._schema = schema
        if not isinstance(self._tree, dict):
            raise InputError(f"{path.name}, line 1: {keys}.")
        try:
            self.content = schema.model_validate(self._tree)
        except ValidationError as error:
            errors = error.errors(include_url=False, include_input=False)
            wrong = min(errors, key=lambda one: one["type"] == "missing")  # a misspelt key explains a missing one
            raise InputError(self._sentence(wrong["type"], wrong["loc"], wrong["msg"])) from error

    @contextmanager
    def at(self, *keys: Any) -> Iterator[None]:
        """A context that puts file, line and dotted key before the sentence of an `InputError`."""
        try:
            yield
        except InputError as error:
            raise type(error)(f"{self._place(*keys)}: {error}") from error

    def _place(self, *keys: Any) -> str:
        """File, line and dotted key; the line is that of the innermost of the keys that the file has."""
        node, line = self._tree, 1
        for key in keys:
            lines = getattr(node.lc, "data", None) if isinstance(node, CommentedBase) else None
            if not lines or key not in lines:
                break
            line, node = lines[key][0] + 1, node[key]
        dotted = ".".join(key for key in keys if isinstance(key, str))
        return f"{self.path.name}, line {line}" + (f", {dotted}" if dotted else "")

    def _parsed(self) -> Any:
        """The file as ruamel.yaml has it: dictionaries and lists that know their lines."""
        name = self.path.name
        try:
            return YAML(typ="rt", pure=True).load(self.path.read_text(encoding="utf-8"))
        except MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            what = str(error.problem or error.context).rstrip(". ")
            if isinstance(error, DuplicateKeyError):
                what = what.partition(" with value ")[0] + ": remove one of the two"
            raise InputError(f"{name}, line {line}: {what}.") from error
        except Exception as error:  # on damaged text also ValueError, KeyError, RecursionError, UnicodeDecodeError, ...
            raise InputError(f"{name} cannot be read as YAML: {one_sentence(error)}") from error

    def _sentence(self, kind: str, keys: tuple[Any, ...], message: str) -> str:
        """One sentence for an error of pydantic."""
        if kind == "invalid_key" or "[key]" in keys:  # the error is in the key itself, which pydantic marks by "[key]"
            *above, key = (part for part in keys if part != "[key]")
            return f"{self._place(*above)}: the key {key} is not a text: write it in quotes."
        if kind in ("dict_type", "model_type"):
            message = "write keys with their values, {...}"
        if kind == "missing":
            return f"{self._place(*keys)}: the key is missing: write {keys[-1]}: <value>."
        if kind == "extra_forbidden":
            known = list(_keys_at(self._schema, keys[:-1]))
            near = difflib.get_close_matches(str(keys[-1]), known, n=1)
            better = near[0] if near else "one of " + ", ".join(known)
            return f"{self._place(*keys)}: there is no such key: write {better}."
        return f"{self._place(*keys)}: {message}."


def _keys_at(schema: Any, keys: tuple[Any, ...]) -> Mapping[str, Any]:
    """The keys that a schema declares below these keys."""
    for key in keys:
        if get_origin(schema) is Annotated:
            schema = get_args(schema)[0]
        if isinstance(schema, type) and issubclass(schema, BaseModel):
            schema = schema.model_fields[key].annotation
        else:  # dict[key, value] or tuple[value, ...]
            schema = get_args(schema)[get_origin(schema) is dict]
    fields: Mapping[str, Any] = schema.model_fields
    return fields
