"""A job with layers of the user's own: the description that the planner needs is made by a process of the runtime."""

import json
import os
from pathlib import Path
from typing import Any

from galvatron_operator.supervised import ask
from galvatron_planner.errors import InvalidInput

DESCRIBE_MODULE = "galvatron_runtime.describe"

Body = dict[str, Any]


def complete(body: Body, folder: Path) -> Body:
    """Fill ``spec.model.own.layers`` in, where a job names a function; other jobs stay as they are.

    Also puts the folder on the Python path of this process and of those that it starts.

    Args:
        body: a GalvatronJob that nobody has checked.
        folder: of its file, where the function's module may lie.

    Raises:
        InvalidInput: when the function gives no layers that can be planned.
    """
    spec = body.get("spec")
    model = spec.get("model") if isinstance(spec, dict) else None
    own = model.get("own") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(own, dict) or not isinstance(own.get("function"), str):
        return body
    paths = [str(folder), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    if model.get("vocabularySize") is None or (model.get("sequenceLength") is None) == (model.get("imageSize") is None):
        # What is missing is told with the other rules.
        return body if "layers" in own else _with_layers(body, [])
    return _with_layers(body, describe(own["function"], model))


def describe(function: str, model: Body) -> list[Body]:
    """Let the runtime describe a function's layers.

    Raises:
        InvalidInput: with what the runtime says.
    """
    sizes = {
        "--vocabulary": model.get("vocabularySize"),
        "--tokens": model.get("sequenceLength"),
        "--image": model.get("imageSize"),
    }
    options = [str(part) for name, size in sizes.items() if size is not None for part in (name, size)]
    try:
        answer = ask(DESCRIBE_MODULE, [function, *options])
    except InvalidInput as error:
        raise InvalidInput(f"spec.model.own.function: {error.problem}", remedy=error.remedy) from error
    # What the user's modules print comes before.
    found: list[Body] = json.loads(answer.strip().splitlines()[-1])
    return found


def _with_layers(body: Body, layers: list[Body]) -> Body:
    spec, model = body["spec"], body["spec"]["model"]
    own = {**model["own"], "layers": layers}
    return {**body, "spec": {**spec, "model": {**model, "own": own}}}
