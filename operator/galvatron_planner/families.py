"""THE TABLE family -> layers: the only place that knows what a family's layers look like."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import assert_never

from galvatron_planner.model import (
    Attention,
    Block,
    Embedding,
    Family,
    Head,
    LayerSpec,
    Merge,
    Mlp,
    Model,
    ModelSpec,
    Normalization,
    Patches,
    Pooling,
    Positions,
    Sharing,
)
from galvatron_planner.own import OwnModel
from galvatron_planner.workload import parameters

NUM_CHANNELS = 3
"""Of images."""


@dataclass(frozen=True, slots=True)
class FamilyRules:
    """What distinguishes one family from another.

    Attributes:
        norm, mlp, positions, bias, query_bias, attention, post_norm: as in :class:`Block`.
        shares_distances: whether the blocks of an encoder or a decoder share one table of distances.
    """

    norm: Normalization
    mlp: Mlp
    positions: Positions
    bias: bool
    query_bias: bool = False
    attention: Attention = Attention.CAUSAL
    post_norm: bool = False
    shares_distances: bool = False


FAMILIES: dict[Family, FamilyRules] = {
    # Radford et al. 2019: pre-norm blocks, learned positions.
    Family.GPT: FamilyRules(Normalization.LAYER_NORM, Mlp.GELU_TANH, Positions.LEARNED, bias=True),
    # Touvron et al. 2023: RMSNorm, rotary positions, gated feed-forward, no biases.
    Family.LLAMA: FamilyRules(Normalization.RMS_NORM, Mlp.SWIGLU, Positions.ROTARY, bias=False),
    # Jiang et al. 2023 (arXiv 2310.06825): LLaMA's blocks; sequences up to the sliding window see no difference.
    Family.MISTRAL: FamilyRules(Normalization.RMS_NORM, Mlp.SWIGLU, Positions.ROTARY, bias=False),
    # Yang et al. 2024 (arXiv 2407.10671, section 2.2): LLaMA's blocks with biases of queries, keys and values.
    Family.QWEN2: FamilyRules(Normalization.RMS_NORM, Mlp.SWIGLU, Positions.ROTARY, bias=False, query_bias=True),
    # Devlin et al. 2019 (arXiv 1810.04805): the encoder of Vaswani et al. 2017, norms after the sums.
    Family.BERT: FamilyRules(
        Normalization.LAYER_NORM,
        Mlp.GELU,
        Positions.LEARNED,
        bias=True,
        attention=Attention.FULL,
        post_norm=True,
    ),
    # Raffel et al. 2020 (arXiv 1910.10683, section 2.1): no biases, norms that only scale, one table of distances.
    Family.T5: FamilyRules(
        Normalization.RMS_NORM,
        Mlp.RELU,
        Positions.RELATIVE,
        bias=False,
        attention=Attention.FULL,
        shares_distances=True,
    ),
    # Dosovitskiy et al. 2021 (arXiv 2010.11929, section 3.1).
    Family.VIT: FamilyRules(Normalization.LAYER_NORM, Mlp.GELU, Positions.LEARNED, bias=True, attention=Attention.FULL),
    # Liu et al. 2021 (arXiv 2103.14030, section 3): a table of distances in every block.
    Family.SWIN: FamilyRules(
        Normalization.LAYER_NORM, Mlp.GELU, Positions.RELATIVE, bias=True, attention=Attention.FULL
    ),
}


@lru_cache(maxsize=64)
def layers(model: Model) -> tuple[LayerSpec, ...]:
    """Write a model as its layers in the order of the forward pass, the loss last."""
    if isinstance(model, OwnModel):
        return model.layers
    match model.family:
        case Family.GPT | Family.LLAMA | Family.MISTRAL | Family.QWEN2:
            return (_embedding(model), *(_block(model),) * model.num_layers, _head(model))
        case Family.BERT:
            embedding = _embedding(model, num_segments=2, norm=Normalization.LAYER_NORM)
            return (embedding, *(_block(model),) * model.num_layers, _head(model, transform=True, bias=True))
        case Family.VIT:
            patches = _patches(model, class_token=True)
            head = _head(model, pooling=Pooling.FIRST, bias=True)
            return (patches, *(_block(model),) * model.num_layers, head)
        case Family.T5:
            return (_embedding(model), *(_block(model),) * model.num_layers, *_decoder(model))
        case Family.SWIN:
            return (_patches(model, norm=Normalization.LAYER_NORM), *_swin_stages(model))
        case _:
            assert_never(model.family)


@lru_cache(maxsize=64)
def shifted_blocks(model: Model) -> frozenset[int]:
    """List the layers whose windows are shifted by half a window: every second block of a stage of Swin.

    No field of the block, because it changes neither shapes nor costs: all blocks of a stage share one measurement.
    Stages of a single window have nothing to shift.

    Source: Liu et al. 2021 (arXiv 2103.14030), section 3.2.
    """
    shifted, since_merge = [], 0
    for index, layer in enumerate(layers(model)):
        if not isinstance(layer, Block):
            since_merge = 0
            continue
        if layer.window_size and since_merge % 2 and layer.sequence_length > layer.window_size**2:
            shifted.append(index)
        since_merge += 1
    return frozenset(shifted)


Place = tuple[int, str]
"""A layer's number, and the name of one of its parameters."""


@lru_cache(maxsize=64)
def copies(model: Model) -> Mapping[Place, Place]:
    """Map every parameter that is a copy to the one that it is a copy of, in the order of the layers.

    The stages of a pipeline hold a copy each of what the model holds once: the table of tokens, and T5's tables of
    distances.
    """
    if isinstance(model, OwnModel):
        return {}
    found: dict[Place, Place] = {}
    firsts: dict[str, Place] = {}
    for index, layer in enumerate(layers(model)):
        for role, name in _shared_tables(model, layer):
            if role in firsts:
                found[index, name] = firsts[role]
            firsts.setdefault(role, (index, name))
    return found


def _shared_tables(model: ModelSpec, layer: LayerSpec) -> Iterator[tuple[str, str]]:
    match layer:
        case Embedding() if layer.sharing is not Sharing.NONE:
            yield "tokens", "tokens.weight"
        case Head() if layer.sharing is not Sharing.NONE:
            yield "tokens", "projection.weight"
        case Block() if FAMILIES[model.family].shares_distances:
            # T5's encoder and decoder have a table of distances each.
            yield f"distances/{layer.attention}", "relative_bias.weight"


def num_parameters(model: Model) -> int:
    """Count a model's parameters as its authors do: copies do not count, so the sum over the layers may be larger."""
    known = copies(model)
    return sum(
        parameter.num_elements
        for index, layer in enumerate(layers(model))
        for parameter in parameters(layer)
        if (index, parameter.name) not in known
    )


def _embedding(
    model: ModelSpec, *, num_segments: int = 0, norm: Normalization | None = None, memory_length: int = 0
) -> Embedding:
    # T5 has one table for both sides, also where the scores have their own.
    is_shared = model.tie_word_embeddings or model.num_decoder_layers > 0
    first = Sharing.FIRST if is_shared else Sharing.NONE
    return Embedding(
        hidden_size=model.hidden_size,
        sequence_length=model.decoder_sequence_length if memory_length else model.sequence_length,
        vocabulary_size=model.vocabulary_size,
        positions=FAMILIES[model.family].positions,
        num_segments=num_segments,
        norm=norm,
        memory_length=memory_length,
        norm_epsilon=model.norm_epsilon,
        sharing=Sharing.COPY if memory_length else first,
    )


def _patches(model: ModelSpec, *, class_token: bool = False, norm: Normalization | None = None) -> Patches:
    return Patches(
        hidden_size=model.hidden_size,
        sequence_length=model.sequence_length,
        patch_values=NUM_CHANNELS * model.patch_size**2,
        class_token=class_token,
        positions=FAMILIES[model.family].positions,
        norm=norm,
        norm_epsilon=model.norm_epsilon,
    )


def _block(model: ModelSpec) -> Block:
    rules = FAMILIES[model.family]
    return Block(
        hidden_size=model.hidden_size,
        sequence_length=model.sequence_length,
        num_heads=model.num_heads,
        num_key_value_heads=model.num_key_value_heads,
        feed_forward_size=model.feed_forward_size,
        norm=rules.norm,
        mlp=rules.mlp,
        positions=rules.positions,
        bias=rules.bias,
        query_bias=rules.query_bias,
        head_size=model.head_size,
        attention=rules.attention,
        post_norm=rules.post_norm,
        window_size=model.window_size,
        rotary_base=model.rotary_base,
        norm_epsilon=model.norm_epsilon,
    )


def _head(model: ModelSpec, *, pooling: Pooling = Pooling.ALL, transform: bool = False, bias: bool = False) -> Head:
    return Head(
        hidden_size=model.hidden_size,
        sequence_length=model.decoder_sequence_length or model.sequence_length,
        vocabulary_size=model.vocabulary_size,
        norm=FAMILIES[model.family].norm,
        pooling=pooling,
        transform=transform,
        bias=bias,
        memory_length=model.sequence_length if model.num_decoder_layers else 0,
        norm_epsilon=model.norm_epsilon,
        sharing=Sharing.COPY if model.tie_word_embeddings else Sharing.NONE,
        # Raffel et al. 2020: a table that starts with a deviation of one, shared with the scores.
        is_scaled=model.family is Family.T5 and model.tie_word_embeddings,
    )


def _decoder(model: ModelSpec) -> tuple[LayerSpec, ...]:
    """T5's second half: the encoder's output enters with the embedding and goes with every activation to the end."""
    block = _block(model).model_copy(
        update={
            "sequence_length": model.decoder_sequence_length,
            "attention": Attention.CAUSAL,
            "memory_length": model.sequence_length,
        }
    )
    embedding = _embedding(model, memory_length=model.sequence_length)
    return (embedding, *(block,) * model.num_decoder_layers, _head(model))


def _swin_stages(model: ModelSpec) -> Iterator[LayerSpec]:
    """Stages of equal blocks with a merge between them: each has a quarter of the tokens, at twice the width."""
    first = _block(model)
    for stage, depth in enumerate(model.depths):
        scale, sequence_length = 2**stage, model.sequence_length // 4**stage
        width = first.hidden_size * scale
        if stage:
            yield Merge(
                hidden_size=width // 2,
                sequence_length=sequence_length * 4,
                norm=first.norm,
                norm_epsilon=model.norm_epsilon,
            )
        block = first.model_copy(
            update={
                "hidden_size": width,
                "sequence_length": sequence_length,
                "num_heads": first.num_heads * scale,
                "num_key_value_heads": first.num_key_value_heads * scale,
                "feed_forward_size": first.feed_forward_size * scale,
            }
        )
        yield from (block,) * depth
    yield _head(model).model_copy(
        update={"hidden_size": width, "sequence_length": sequence_length, "pooling": Pooling.MEAN, "bias": True}
    )
