"""What the parts of ``spec`` are made of: their base, and numbers, quantities and names as Kubernetes writes them."""

from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from galvatron_planner.documents import Value

_DECIMAL = r"^[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]{1,2})?$"
PositiveDecimal = Annotated[str, StringConstraints(pattern=_DECIMAL, max_length=32)]
"""A number as text: Kubernetes objects hold no floats. None is infinite: exponents have two digits."""
_MEMORY = r"^[0-9]+(\.[0-9]+)?(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
MemoryQuantity = Annotated[str, StringConstraints(pattern=_MEMORY, max_length=32)]
_AMOUNT = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
Quantity = Annotated[
    str,
    StringConstraints(pattern=_AMOUNT, max_length=32),
    BeforeValidator(lambda value: str(value) if type(value) is int else value),
]
"""An amount of CPU or memory; whole numbers may be written without quotes."""
_OBJECT_NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
ObjectName = Annotated[str, StringConstraints(pattern=_OBJECT_NAME, max_length=253)]
_SEGMENT = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
_DIRECTORY = rf"^{_SEGMENT}(/{_SEGMENT})*$"
DirectoryPath = Annotated[str, StringConstraints(pattern=_DIRECTORY, max_length=255)]
"""A relative path that cannot leave its volume: no part begins with a dot."""
_DATA = rf"^(\.|{_SEGMENT}(/{_SEGMENT})*)$"
DataPath = Annotated[str, StringConstraints(pattern=_DATA, max_length=255)]
ConfigMapKey = Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)]
CatalogueName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
ManagerName = Annotated[
    str,
    StringConstraints(
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?$", max_length=63
    ),
]
"""A controller, as ``managedBy`` of batch/v1 Jobs names one: a domain and a path."""
_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
LabelKey = Annotated[
    str, StringConstraints(pattern=rf"^([a-z0-9]([-a-z0-9.]{{0,251}}[a-z0-9])?/)?{_NAME}$", max_length=317)
]
ResourceName = Annotated[
    str, StringConstraints(pattern=rf"^[a-z0-9]([-a-z0-9.]{{0,242}}[a-z0-9])?/{_NAME}$", max_length=308)
]
"""An extended resource: a domain, nine characters shorter than others because quotas write ``requests.`` before it."""
LabelText = Annotated[str, StringConstraints(max_length=317)]

BatchSize = Annotated[int, Field(ge=1, le=1_048_576)]
Seconds = Annotated[int, Field(ge=1, le=31_536_000)]

_RELATIVE = "a relative path without parts that begin with a dot, of letters, digits, dots, dashes and underscores"
FORMS = {
    _DECIMAL: 'a number in quotes, for instance "3e-4"',
    _MEMORY: "an amount of memory, for instance 512Mi or 40Gi",
    _AMOUNT: "an amount, for instance 4, 500m or 8Gi",
    _OBJECT_NAME: "a name of an object: lower-case letters, digits, dots and dashes",
    _DIRECTORY: _RELATIVE,
    _DATA: _RELATIVE,
}
"""Patterns in words, for messages."""


class SpecValue(Value):
    """A frozen part of ``spec``, written in camelCase; unknown fields are refused."""

    model_config = ConfigDict(alias_generator=to_camel)
