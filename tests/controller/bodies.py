"""GalvatronJobs as users write them: one that is right, and changes that make it wrong."""

import copy
from collections.abc import Mapping
from typing import Any

from galvatron_operator.api import GalvatronJob, parse

Body = dict[str, Any]

ABSENT = object()
"""As a value: take the field away."""

SMALLEST: Body = {
    "apiVersion": "galvatron.io/v1alpha1",
    "kind": "GalvatronJob",
    "metadata": {"name": "job", "namespace": "team", "uid": "0b0a0c0d-0000-4000-8000-000000000000", "generation": 1},
    "spec": {
        "model": {"family": "gpt", "hiddenSize": 32, "numLayers": 2, "numAttentionHeads": 4, "sequenceLength": 16},
        "budget": {"gpus": 4, "gpusPerNode": 2, "memoryPerGPU": "4Gi"},
        "training": {"globalBatchSize": {"value": 8}, "steps": 10},
    },
}
"""Only what must be written."""

Changes = Mapping[str, Any]

ONLY_PLANNED: Changes = {
    "spec.execution": "Plan",
    "spec.profiling": {"policy": "Never", "device": "a100-80gb"},
    "spec.budget.resourceName": "nvidia.com/gpu",
}
"""Neither measured nor trained: data sheets stand for devices."""

OWN: Changes = {
    "function": "mine:layers",
    "layers": [
        {
            "count": 1, "index": 0, "digest": "0" * 64, "outputs": [[8, 4]], "forwardFlops": 0, "keptElements": 8,
            "parameters": [{"name": "table.weight", "shape": [256, 4]}],
        },
        {
            "count": 2, "index": 1, "digest": "1" * 64, "outputs": [[8, 4]], "forwardFlops": 256, "keptElements": 64,
            "parameters": [{"name": "weight", "shape": [4, 4], "splitDim": 0}], "entered": [32], "left": [32],
        },
        {
            "count": 1, "index": 3, "digest": "2" * 64, "outputs": [], "forwardFlops": 16384, "keptElements": 2048,
            "parameters": [{"name": "weight", "shape": [256, 4]}],
        },
    ],
}  # fmt: skip
"""Layers of one's own, as `galvatron describe` writes them."""

WRONG: dict[str, tuple[str, Changes]] = {
    "a name that is too long": ("metadata.name", {"metadata.name": "a" * 41}),
    "a name that no DNS label begins with": ("metadata.name", {"metadata.name": "7b"}),
    "no model": ("spec.model", {"spec.model": ABSENT}),
    "an unknown family": ("spec.model.family", {"spec.model.family": "resnet"}),
    "no layers": ("spec.model.numLayers", {"spec.model.numLayers": 0}),
    "heads that do not divide": ("spec.model.hiddenSize", {"spec.model.numAttentionHeads": 5}),
    "key-value heads that do not divide": ("spec.model.numKeyValueHeads", {"spec.model.numKeyValueHeads": 3}),
    "odd heads with rotary positions": (
        "spec.model",
        {"spec.model.family": "llama", "spec.model.numAttentionHeads": 32},
    ),
    "an unknown preset": ("spec.model", {"spec.model": {"preset": "bert-hug-32"}}),
    "a preset and a family": ("spec.model", {"spec.model.preset": "llama2-7b"}),
    "neither preset nor family": ("spec.model", {"spec.model.family": ABSENT}),
    "a preset in another shape": ("spec.model.hiddenSize", {"spec.model": {"preset": "llama2-7b", "hiddenSize": 32}}),
    "no sequence length": ("spec.model.sequenceLength", {"spec.model.sequenceLength": ABSENT}),
    "no hidden size": ("spec.model.hiddenSize", {"spec.model.hiddenSize": ABSENT}),
    "stages of a model without stages": ("spec.model.depths", {"spec.model.depths": [1, 1]}),
    "tied word embeddings of a model that reads images": (
        "spec.model.tieWordEmbeddings",
        {
            **ONLY_PLANNED,
            "spec.model": {
                "family": "vit",
                "hiddenSize": 32,
                "numLayers": 2,
                "numAttentionHeads": 4,
                "imageSize": 32,
                "patchSize": 8,
                "tieWordEmbeddings": True,
            },
        },
    ),
    "layers of one's own without a vocabulary": (
        "spec.model.vocabularySize",
        {"spec.model": {"own": OWN, "sequenceLength": 8}},
    ),
    "layers of one's own and a width": (
        "spec.model.hiddenSize",
        {"spec.model": {"own": OWN, "sequenceLength": 8, "vocabularySize": 256, "hiddenSize": 32}},
    ),
    "a function that is none": (
        "spec.model.own.function",
        {"spec.model": {"own": {**OWN, "function": "layers"}, "sequenceLength": 8, "vocabularySize": 256}},
    ),
    "layers of one's own without a description": (
        "spec.model.own.layers",
        {"spec.model": {"own": {"function": "a:b"}, "sequenceLength": 8, "vocabularySize": 256}},
    ),
    "a decoder without a length": (
        "spec.model.decoderSequenceLength",
        {**ONLY_PLANNED, "spec.model.family": "t5", "spec.model.numDecoderLayers": 2},
    ),
    "texts for a model that reads images": (
        "spec.training.dataset.source",
        {"spec.model": {"preset": "vit-huge-32"}, "spec.training.dataset": {"source": "PythonDocs"}},
    ),
    "images for a model that reads text": (
        "spec.training.dataset.source",
        {"spec.training.dataset": {"source": "Images", "path": "a", "volume": {"claimName": "c"}}},
    ),
    "a tokenizer for tokens": (
        "spec.training.dataset.tokenizer",
        {
            "spec.training.dataset": {
                "source": "Tokens",
                "path": "a",
                "volume": {"claimName": "c"},
                "tokenizer": {"path": "tokenizer.json"},
            }
        },
    ),
    "too few tokens for text": (
        "spec.model.vocabularySize",
        {"spec.model.vocabularySize": 255, "spec.training.dataset": {"source": "PythonDocs"}},
    ),
    "devices that are no power of two": ("spec.budget.gpus", {"spec.budget.gpus": 6}),
    "a part of a node": ("spec.budget.gpus", {"spec.budget.gpusPerNode": 8}),
    "fewer devices without a mode": ("spec.budget.minGPUs", {"spec.budget.minGPUs": 2}),
    "as few devices as all": (
        "spec.budget.minGPUs",
        {"spec.budget.minGPUs": 4, "spec.elasticity": {"mode": "Replan"}},
    ),
    "elastic without a bound": ("spec.budget.minGPUs", {"spec.elasticity": {"mode": "Replan"}}),
    "fewer devices that are no power of two": (
        "spec.budget.minGPUs",
        {"spec.budget.gpus": 8, "spec.budget.minGPUs": 6, "spec.elasticity": {"mode": "Replan"}},
    ),
    "fewer devices than a node": (
        "spec.budget.minGPUs",
        {"spec.budget.minGPUs": 1, "spec.elasticity": {"mode": "Replan"}},
    ),
    "elastic with a plan of one's own": (
        "spec.elasticity.mode",
        {
            "spec.budget.minGPUs": 2,
            "spec.elasticity": {"mode": "Replan"},
            "spec.search": {"algorithm": "Fixed", "fixedPlanRef": {"name": "p"}},
        },
    ),
    "a delay of nothing": ("spec.elasticity.rescaleDelaySeconds", {"spec.elasticity": {"rescaleDelaySeconds": 0}}),
    "a number in quotes": ("spec.budget.gpus", {"spec.budget.gpus": "4"}),
    "no memory": ("spec.budget.memoryPerGPU", {"spec.budget.memoryPerGPU": ABSENT}),
    "memory of nothing": ("spec.budget.memoryPerGPU", {"spec.budget.memoryPerGPU": "0Gi"}),
    "memory in a unit that does not exist": ("spec.budget.memoryPerGPU", {"spec.budget.memoryPerGPU": "4GB"}),
    "a batch that is nothing": ("spec.training.globalBatchSize", {"spec.training.globalBatchSize": {}}),
    "a batch that is a value and a range": ("spec.training.globalBatchSize", {"spec.training.globalBatchSize.max": 16}),
    "a range without an end": ("spec.training.globalBatchSize", {"spec.training.globalBatchSize": {"min": 8}}),
    "a range that goes down": (
        "spec.training.globalBatchSize",
        {"spec.training.globalBatchSize": {"min": 8, "max": 4}},
    ),
    "a range of very many sizes": (
        "spec.training.globalBatchSize",
        {"spec.training.globalBatchSize": {"min": 1, "max": 65}},
    ),
    "no steps": ("spec.training.steps", {"spec.training.steps": 0}),
    "a precision that is not offered": ("spec.training.precision", {"spec.training.precision": "FP16"}),
    "a floating-point number": ("learningRate", {"spec.training.optimizer": {"learningRate": 0.001}}),
    "a learning rate of 0": ("learningRate", {"spec.training.optimizer": {"learningRate": "0.0"}}),
    "text without a path": (
        "spec.training.dataset",
        {"spec.training.dataset": {"source": "Text", "volume": {"claimName": "c"}}},
    ),
    "tokens without a path": (
        "spec.training.dataset",
        {"spec.training.dataset": {"source": "Tokens", "volume": {"claimName": "c"}}},
    ),
    "a type of numbers in a text": (
        "spec.training.dataset",
        {"spec.training.dataset": {"source": "Text", "path": "x", "binType": "UInt32", "volume": {"claimName": "c"}}},
    ),
    "a type of numbers that is not offered": (
        "spec.training.dataset.binType",
        {"spec.training.dataset": {"source": "Tokens", "path": "x", "binType": "I4", "volume": {"claimName": "c"}}},
    ),
    "a path that leaves the volume": (
        "spec.training.dataset.path",
        {"spec.training.dataset": {"source": "Text", "path": "../x", "volume": {"claimName": "c"}}},
    ),
    "a volume of two kinds": (
        "spec.training.dataset.volume",
        {
            "spec.training.dataset": {
                "source": "Text",
                "path": "x",
                "volume": {"claimName": "c", "configMapName": "m"},
            }
        },
    ),
    "a path without text": ("spec.training.dataset", {"spec.training.dataset": {"path": "x"}}),
    "an unknown dimension": ("spec.search.excludedDimensions", {"spec.search": {"excludedDimensions": ["CP"]}}),
    "sequence parallelism that is neither on nor off": (
        "spec.search.sequenceParallelism",
        {"spec.search": {"sequenceParallelism": "yes"}},
    ),
    "a dimension twice": ("spec.search.excludedDimensions", {"spec.search": {"excludedDimensions": ["TP", "TP"]}}),
    "no dimension left": (
        "spec.search.excludedDimensions",
        {"spec.search": {"excludedDimensions": ["PP", "TP", "DP", "ZERO2", "SDP"]}},
    ),
    "no device to look up": ("spec.profiling", {"spec.profiling": {"policy": "Never"}}),
    "a device to look up and to measure": ("spec.profiling", {"spec.profiling": {"device": "h100"}}),
    "a link without a device": ("spec.profiling", {"spec.profiling": {"linkWithinNode": "nvlink4"}}),
    "an unknown algorithm": ("spec.search.algorithm", {"spec.search": {"algorithm": "Alpa"}}),
    "sequence parallelism for a published search": (
        "spec.search.sequenceParallelism",
        {"spec.search": {"sequenceParallelism": True, "algorithm": "GalvatronBMW"}},
    ),
    "a fixed plan that is not named": ("spec.search.fixedPlanRef", {"spec.search": {"algorithm": "Fixed"}}),
    "a plan beside a search": ("spec.search.fixedPlanRef", {"spec.search": {"fixedPlanRef": {"name": "p"}}}),
    "a variable of the launcher": ("spec.runtime.env", {"spec.runtime": {"env": [{"name": "RANK", "value": "0"}]}}),
    "a variable of torchrun": ("spec.runtime.env", {"spec.runtime": {"env": [{"name": "PET_NNODES", "value": "0"}]}}),
    "a variable twice": ("spec.runtime.env", {"spec.runtime": {"env": [{"name": "A"}, {"name": "A"}]}}),
    "a rule for no failure": (
        "spec.failurePolicy.rules",
        {"spec.failurePolicy": {"rules": [{"name": "a", "action": "FailJob"}]}},
    ),
    "a rule without an action": (
        "spec.failurePolicy.rules",
        {"spec.failurePolicy": {"rules": [{"name": "a", "onReasons": ["UserError"]}]}},
    ),
    "a rule twice": (
        "spec.failurePolicy.rules",
        {"spec.failurePolicy": {"rules": [{"name": "a", "onReasons": ["UserError"], "action": "FailJob"}] * 2}},
    ),
    "a rule for a reason that does not exist": (
        "spec.failurePolicy.rules",
        {"spec.failurePolicy": {"rules": [{"name": "a", "onReasons": ["Bored"], "action": "FailJob"}]}},
    ),
    "a rule that names a reason twice": (
        "spec.failurePolicy.rules",
        {"spec.failurePolicy": {"rules": [{"name": "a", "onReasons": ["UserError"] * 2, "action": "FailJob"}]}},
    ),
    "a rule for success": (
        "spec.failurePolicy.rules",
        {
            "spec.failurePolicy": {
                "rules": [{"name": "a", "onExitCodes": {"operator": "In", "values": [0]}, "action": "FailJob"}]
            }
        },
    ),
    "an action that does not exist": (
        "spec.failurePolicy.rules",
        {"spec.failurePolicy": {"rules": [{"name": "a", "onReasons": ["UserError"], "action": "Replan"}]}},
    ),
    "a manager without a domain": ("spec.managedBy", {"spec.managedBy": "kueue"}),
    "more memory kept free than there is": (
        "spec.budget.memoryReservePercent",
        {"spec.budget.memoryReservePercent": 100},
    ),
    "a price that is no number": ("spec.budget.costPerGPUHour", {"spec.budget.costPerGPUHour": "2.50 EUR"}),
    "shared memory of nothing": (
        "spec.runtime.sharedMemory.sizeLimit",
        {"spec.runtime": {"sharedMemory": {"sizeLimit": "0Gi"}}},
    ),
    "a priority that is a number": (
        "spec.scheduling.priorityClassName",
        {"spec.scheduling": {"priorityClassName": 1000}},
    ),
    "a gang of nobody": ("spec.scheduling.gang", {"spec.scheduling": {"gang": {"provider": "YuniKorn"}}}),
    "a gang without a provider": ("spec.scheduling.gang", {"spec.scheduling": {"gang": {}}}),
    "a time that Volcano does not know": (
        "spec.scheduling.gang.timeoutSeconds",
        {"spec.scheduling": {"gang": {"provider": "Volcano", "timeoutSeconds": 60}}},
    ),
    "a queue that Coscheduling does not know": (
        "spec.scheduling.gang.queue",
        {"spec.scheduling": {"gang": {"provider": "Coscheduling", "queue": "gpus"}}},
    ),
    "pods near each other in nothing": (
        "spec.scheduling.topology.key",
        {"spec.scheduling": {"topology": {"mode": "Required"}}},
    ),
    "a topology that is no label": (
        "spec.scheduling.topology.key",
        {"spec.scheduling": {"topology": {"key": "the rack"}}},
    ),
    "a topology that is neither wished for nor required": (
        "spec.scheduling.topology.mode",
        {"spec.scheduling": {"topology": {"key": "rack", "mode": "Hard"}}},
    ),
    "a network device without a domain": (
        "spec.runtime.network.rdmaResourceName",
        {"spec.runtime": {"network": {"rdmaResourceName": "hca"}}},
    ),
    "a network device of Kubernetes itself": (
        "spec.runtime.network.rdmaResourceName",
        {"spec.runtime": {"network": {"rdmaResourceName": "devices.kubernetes.io/hca"}}},
    ),
    "a network device that is the GPU": (
        "spec.runtime.network.rdmaResourceName",
        {"spec.runtime": {"network": {"rdmaResourceName": "nvidia.com/gpu"}}},
    ),
    "no network device": (
        "spec.runtime.network.rdmaResourceCount",
        {"spec.runtime": {"network": {"rdmaResourceName": "rdma/hca", "rdmaResourceCount": 0}}},
    ),
    "a status that is never written": (
        "spec.observability.statusPeriodSeconds",
        {"spec.observability": {"statusPeriodSeconds": 0}},
    ),
    "a port of the system": ("spec.observability.metricsPort", {"spec.observability": {"metricsPort": 80}}),
    "an unknown field": ("spec.budgets", {"spec.budgets": {"gpus": 4}}),
}
"""What is wrong -> (the field that a refusal must name, the changes of ``SMALLEST``)."""


def job_body(changes: Changes | None = None) -> Body:
    """Write ``SMALLEST`` with other values at some paths, for instance ``{"spec.budget.gpus": 8}``."""
    body = copy.deepcopy(SMALLEST)
    for path, value in (changes or {}).items():
        *parents, field = path.split(".")
        part = body
        for parent in parents:
            part = part.setdefault(parent, {})
        if value is ABSENT:
            del part[field]
        else:
            part[field] = copy.deepcopy(value)
    return body


def job(changes: Changes | None = None) -> GalvatronJob:
    """Parse ``SMALLEST`` with other values at some paths."""
    return parse(job_body(changes))
