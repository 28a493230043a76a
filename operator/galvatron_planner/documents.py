"""The base of everything that crosses a process boundary as JSON.

Documents are frozen and strict: unknown keys, missing keys, wrong types and non-finite numbers are refused with the
JSON path, key order is fixed, so equal values give equal bytes and :meth:`Document.digest` identifies them. A version
in the ``schema`` key is only ever *added*: readers of version 2 keep a converter for version 1.
"""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NewType, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from galvatron_planner.errors import InvalidDocument

Digest = NewType("Digest", str)
"""Hexadecimal SHA-256 of a document's canonical bytes."""


class Value(BaseModel):
    """A frozen, strict part of a document; a value that exists is valid."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    def __hash__(self) -> int:
        return self._hash

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy without what was worked out for the original."""
        copied = super().model_copy(update=update, deep=deep)
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied

    def __getstate__(self) -> dict[Any, Any]:
        # Hashes of strings differ from process to process.
        state = super().__getstate__()
        fields = type(self).model_fields
        return state | {"__dict__": {name: value for name, value in state["__dict__"].items() if name in fields}}

    @cached_property
    def _hash(self) -> int:
        # The search looks prices up by layer some hundred thousand times.
        return hash(tuple(getattr(self, name) for name in type(self).model_fields))


class Document(Value):
    """A value that is stored or sent on its own; subclasses add ``schema_tag`` as their first field."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Decode a document.

        Raises:
            InvalidDocument: with the JSON path of the first thing that is wrong.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise InvalidDocument(
                f"{cls.__name__}: {first_problem(error)}",
                remedy="correct the value, or make the document again with this version of galvatron",
            ) from error

    def to_json(self) -> str:
        """Encode for files and ConfigMaps: indented, in field order."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"

    def digest(self) -> Digest:
        """Identify the document by its content."""
        canonical = self.model_dump_json(by_alias=True)
        return Digest(hashlib.sha256(canonical.encode()).hexdigest())


def first_problem(error: ValidationError) -> str:
    """Say in one line what is wrong first, with its JSON path."""
    detail = error.errors(include_url=False)[0]
    others = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{json_path(detail['loc'])}: {detail['msg']}{others}"


def json_path(location: tuple[int | str, ...]) -> str:
    """Write a pydantic location as a JSON path, for instance ``$.stages[1].layers[3]``."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "$" + "".join(parts)
