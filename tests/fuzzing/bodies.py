"""GalvatronJobs that nobody should write, and that somebody will: the same ones for the same seed.

Half begin as a job that is right (the examples, the bodies of other tests) and have some fields changed, some are known
mistakes, some are grown from the schema alone. Devices and layers are few, so that deciding is quick.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

from controller.bodies import ONLY_PLANNED, OWN, WRONG, Body, Changes, job_body
from fuzzing.schema import SPEC, Schema
from fuzzing.values import ODD_TEXTS, OVERLAYS, a_value, a_wrong_value

_EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
_PRESERVES = "x-kubernetes-preserve-unknown-fields"
_MAX_DEVICES = 64
_MAX_LAYERS = 64
_FILES = {"source": "Tokens", "path": ".", "binType": "UInt32", "volume": {"configMapName": "corpus"}}
_NETWORK = {"rdmaResourceName": "rdma/hca", "annotations": {"k8s.v1.cni.cncf.io/networks": "ib0"}}
_RULE = {"name": "a", "onReasons": ["UserError"], "afterFailures": 2, "action": "FailJob"}
_IMAGES = {"hiddenSize": 32, "numLayers": 2, "numAttentionHeads": 4, "imageSize": 32, "patchSize": 8}
_SWIN = {"hiddenSize": 32, "depths": [1, 1], "numAttentionHeads": 2, "imageSize": 32, "patchSize": 4, "windowSize": 4}

RIGHT: tuple[Changes, ...] = (
    {},
    ONLY_PLANNED,
    {"spec.budget.resourceName": "cpu"},
    {"spec.execution": "Plan"},
    {"spec.suspend": True},
    {"spec.budget.minGPUs": 2, "spec.elasticity": {"mode": "Replan", "rescaleDelaySeconds": 10}},
    {"spec.search": {"algorithm": "Fixed", "fixedPlanRef": {"name": "mine"}}},
    {"spec.search": {"algorithm": "GalvatronBMW", "excludedDimensions": ["CKPT", "TP"], "timeoutSeconds": 5}},
    {"spec.search": {"sequenceParallelism": True, "maxDegrees": {"tensor": 2}, "pipelineSchedule": "GPipe"}},
    {"spec.training.globalBatchSize": {"min": 8, "max": 64, "step": 8}, "spec.budget.costPerGPUHour": "2.5"},
    {"spec.training.dataset": _FILES, "spec.checkpoint": {"volume": {"claimName": "c"}, "periodSteps": 5}},
    {"spec.failurePolicy": {"rules": [_RULE], "maxRestarts": 0}, "spec.lifecycle": {"podRetentionSeconds": 30}},
    {"spec.lifecycle": {"ttlSecondsAfterFinished": 60, "activeDeadlineSeconds": 30}},
    {"spec.scheduling": {"priorityClassName": "high", "gang": {"provider": "Volcano", "queue": "team-a"}}},
    {"spec.scheduling": {"gang": {"provider": "Coscheduling", "timeoutSeconds": 60}}},
    {"spec.runtime": {"template": OVERLAYS[4], "env": [{"name": "A", "value": "1"}], "nodeSelector": {"a": "b"}}},
    {"spec.runtime": {"network": _NETWORK}, "spec.scheduling": {"topology": {"key": "rack", "mode": "Required"}}},
    {"spec.model": {"own": OWN, "sequenceLength": 8, "vocabularySize": 256}},
    {**ONLY_PLANNED, "spec.model": {"family": "vit", **_IMAGES}},
    {**ONLY_PLANNED, "spec.model": {"family": "swin", **_SWIN}},
    {"spec.model.family": "t5", "spec.model.numDecoderLayers": 2, "spec.model.decoderSequenceLength": 8},
    {"spec.model.family": "llama", "spec.model.numKeyValueHeads": 2, "spec.model.rotaryBase": 500000},
    {**ONLY_PLANNED, "spec.model": {"preset": "bert-huge-32"}},
)  # fmt: skip
"""Changes of ``SMALLEST`` that leave it right."""


@dataclass(frozen=True, slots=True)
class Fuzzed:
    """One job; ``changes`` says how it came about."""

    changes: tuple[str, ...]
    body: Body


def fuzzed(seed: int, number: int) -> Iterator[Fuzzed]:
    """Draw jobs; every one follows from the seed and its place alone."""
    for index in range(number):
        yield _one(Random(f"{seed}/{index}"))  # noqa: S311 -- nothing here is a secret


def _one(random: Random) -> Fuzzed:
    origin = random.random()
    if origin < 0.1:
        case = random.choice(tuple(WRONG))
        return Fuzzed((case,), job_body(WRONG[case][1]))
    body = _example(random) if origin < 0.25 else job_body(random.choice(RIGHT))
    if origin > 0.95:
        body["spec"] = a_value(random, SPEC)
        changes = ["grown from the schema"]
    elif origin < 0.6:
        changes = [_change(random, body, wrong=0.0) for _ in range(random.choice((0, 1, 1, 2)))]
    else:
        changes = [_change(random, body, wrong=0.5) for _ in range(random.choice((1, 1, 2, 4)))]
    _tame(body)
    return Fuzzed(tuple(changes), body)


def _example(random: Random) -> Body:
    path = random.choice(sorted(_EXAMPLES.rglob("*.yaml")))
    example = yaml.safe_load(path.read_text())
    example["metadata"] |= {"namespace": "team"}
    return dict(example)


def _change(random: Random, body: Body, *, wrong: float) -> str:
    """Change one field of a job, and say which."""
    path, parent, schema = _somewhere(random, body["spec"])
    name = path[-1]
    kind = random.random()
    if kind < wrong / 3:
        parent.pop(name, None)
        return f"without {'.'.join(path)}"
    if kind < wrong / 2:
        parent[random.choice((f"{name}s", *ODD_TEXTS[:8]))] = copy.deepcopy(parent.get(name))
        return f"another field beside {'.'.join(path)}"
    parent[name] = a_wrong_value(random, schema) if kind < wrong else a_value(random, schema)
    return f"{'.'.join(path)} = {str(parent[name])[:80]!r}"


def _somewhere(random: Random, spec: Any) -> tuple[list[str], dict[str, Any], Schema]:
    """Choose a field, and make the parts on the way to it that are not there yet."""
    path, schema = random.choice(FIELDS)
    *parents, _ = path
    part: dict[str, Any] = spec
    for depth, name in enumerate(parents[1:], start=2):
        if not isinstance(part.get(name, {}), dict):
            return path[:depth], part, _schema_at(path[:depth])
        part = part.setdefault(name, {})
    return path, part, schema


def _fields(schema: Schema, path: list[str]) -> Iterator[tuple[list[str], Schema]]:
    for name, child in schema.get("properties", {}).items():
        yield [*path, name], child
        yield from _fields(child, [*path, name])


def _schema_at(path: list[str]) -> Schema:
    return next(schema for known, schema in FIELDS if known == path)


FIELDS = (*_fields(SPEC, ["spec"]), *[(["spec", "runtime", "template"], {_PRESERVES: True})] * 20)
"""Every field outside lists; templates of pods, which the schema leaves to the operator, more often."""


def _tame(body: Body) -> None:
    """Keep what is allowed small: time is for many jobs, not for large ones."""
    for part, field, largest in (("budget", "gpus", _MAX_DEVICES), ("model", "numLayers", _MAX_LAYERS)):
        found = (body["spec"] or {}).get(part)
        if isinstance(found, dict) and type(found.get(field)) is int and largest < found[field] <= 4096:
            found[field] = largest
