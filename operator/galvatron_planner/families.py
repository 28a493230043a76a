"""THE TABLE family -> layers: the only place that knows what a family's layers look like."""

from dataclasses import dataclass

from galvatron_planner.model import (
    Block,
    Embedding,
    Family,
    Head,
    LayerSpec,
    Mlp,
    ModelSpec,
    Normalization,
    Positions,
)


@dataclass(frozen=True, slots=True)
class FamilyRules:
    """What distinguishes the blocks of one family from those of another."""

    norm: Normalization
    mlp: Mlp
    positions: Positions
    bias: bool


FAMILIES: dict[Family, FamilyRules] = {
    # Radford et al. 2019: pre-norm blocks, learned positions.
    Family.GPT: FamilyRules(Normalization.LAYER_NORM, Mlp.GELU, Positions.LEARNED, bias=True),
    # Touvron et al. 2023: RMSNorm, rotary positions, gated feed-forward, no biases.
    Family.LLAMA: FamilyRules(Normalization.RMS_NORM, Mlp.SWIGLU, Positions.ROTARY, bias=False),
}


def layers(model: ModelSpec) -> tuple[LayerSpec, ...]:
    """Write a model as its layers: one embedding, ``num_layers`` equal blocks, one head."""
    rules = FAMILIES[model.family]
    embedding = Embedding(
        hidden_size=model.hidden_size,
        sequence_length=model.sequence_length,
        vocabulary_size=model.vocabulary_size,
        positions=rules.positions,
    )
    block = Block(
        hidden_size=model.hidden_size,
        sequence_length=model.sequence_length,
        num_heads=model.num_heads,
        num_key_value_heads=model.num_key_value_heads,
        feed_forward_size=model.feed_forward_size,
        norm=rules.norm,
        mlp=rules.mlp,
        positions=rules.positions,
        bias=rules.bias,
    )
    head = Head(
        hidden_size=model.hidden_size,
        sequence_length=model.sequence_length,
        vocabulary_size=model.vocabulary_size,
        norm=rules.norm,
    )
    return (embedding, *(block for _ in range(model.num_layers)), head)
