"""The edges where people write and read quantities; inside there are only bytes and seconds."""

import re
from decimal import Decimal

from galvatron_planner.errors import InvalidInput

KIB = 1024
MIB = 1024**2
GIB = 1024**3

_SUFFIXES = {
    "": 1,
    "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15,
    "Ki": KIB, "Mi": MIB, "Gi": GIB, "Ti": 1024**4, "Pi": 1024**5,
}  # fmt: skip
_QUANTITY = re.compile(r"^(\d+(?:\.\d+)?)([kMGTP]|[KMGTP]i)?$")


def parse_bytes(text: str, *, where: str) -> int:
    """Read a Kubernetes quantity of memory, for instance ``40Gi``.

    Args:
        text: the quantity.
        where: the field it came from, for the error.

    Raises:
        InvalidInput: when it is no quantity of bytes, or not above zero.
    """
    match = _QUANTITY.match(text.strip())
    size = int(Decimal(match[1]) * _SUFFIXES[match[2] or ""]) if match else 0
    if size <= 0:
        raise InvalidInput(
            f"{where} is {text!r}, not an amount of memory",
            remedy="write a number with a suffix such as Mi or Gi, for instance 40Gi",
        )
    return size


def format_bytes(size: float) -> str:
    """Write bytes for people, for instance ``1.5 GiB``."""
    for unit, scale in (("TiB", 1024**4), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(size) >= scale:
            return f"{size / scale:.3g} {unit}" if size < 1000 * scale else f"{size / scale:.0f} {unit}"
    return f"{size:.0f} B"


def format_quantity(size: int) -> str:
    """Write bytes as a Kubernetes quantity, rounded up to the next MiB: ``1536Mi``."""
    return f"{-(-size // MIB)}Mi"


def format_seconds(seconds: float) -> str:
    """Write a duration for people: ``850 us``, ``12.3 ms``, ``4.2 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} us"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
