"""What a module of the user's is, in one number: so that no measurement and no plan outlives its code."""

import hashlib
import inspect
from functools import cache

from torch import nn


def digest_of(module: nn.Module) -> str:
    """Digest a module's structure (as ``repr`` shows it), and the source of every class that is not torch's."""
    classes = {type(one) for one in module.modules()}
    own = (one for one in classes if not one.__module__.startswith("torch."))
    sources = sorted(_source(one) for one in own)  # type: ignore[arg-type]  # mypy: a class with __hash__ is one
    text = "\n".join((repr(module), *sources))
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # written in a shell, or compiled
        return kind.__qualname__
