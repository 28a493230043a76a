"""Activation checkpointing: a layer keeps its input and computes the rest again in the backward pass.

It goes around tensor parallelism, so that recomputing repeats its collectives on all devices alike, and inside
sharding, so that the parameters are gathered when recomputing starts.
"""

from functools import partial

from torch.utils.checkpoint import checkpoint

from galvatron_runtime.blocks import LayerModule, OwnLayerModule


def recompute_activations(module: LayerModule) -> None:
    """Make a layer recompute its activations; its parameters keep their names, as a wrapper's would not."""
    # Ours draw no random numbers (there is no dropout), so the generator's state need not be kept.
    draws = isinstance(module, OwnLayerModule)
    module.forward = partial(checkpoint, module.forward, use_reentrant=False, preserve_rng_state=draws)
