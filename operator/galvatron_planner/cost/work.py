"""What a pass of a stage consists of, layer by layer: to simulate and draw a step, and to say where its time goes.

Durations and bytes are those of the price list; here they are only split by kind of work.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from galvatron_planner.cluster import Group
from galvatron_planner.cost.prices import PriceList, StagePosition
from galvatron_planner.dimensions import Communication, LayerCommunication, communication
from galvatron_planner.model import LayerSpec
from galvatron_planner.profiles import Collective, Profile
from galvatron_planner.strategy import LayerStrategy, Layout


class Work(StrEnum):
    """What a device is busy with during a pass."""

    FORWARD = "forward"
    RECOMPUTATION = "recomputation"
    BACKWARD = "backward"
    TENSOR = "tensor parallel"
    """Collectives that computation waits for."""
    SHARDED = "sharded parameters"
    """Gathers and reduce-scatters of ``fsdp``, as far as computation does not hide them."""
    LAYOUT = "layout change"


@dataclass(frozen=True, slots=True)
class Piece:
    """One layer, or the change of layout in front of it, in one direction.

    Attributes:
        layer_index: in the whole model.
        shares: seconds by kind of work, in the order in which a picture shows them.
        working_bytes: held while it runs, above what is kept.
        kept_bytes: held from the start of the layer's forward to the end of its backward piece.
        late_bytes: held from the end of the layer's first backward piece to the end of the step; 0 in forward.
        collectives: what it communicates, hidden behind computation or not.
    """

    layer_index: int
    shares: tuple[tuple[Work, float], ...]
    working_bytes: int
    kept_bytes: int
    late_bytes: int
    collectives: tuple[Communication, ...]

    @property
    def seconds(self) -> float:
        """Duration of the piece."""
        return sum(seconds for _, seconds in self.shares)


@dataclass(frozen=True, slots=True)
class StageWork:
    """What a stage does with every micro-batch, in the order of execution, and the gradients it reduces once a step."""

    forward: tuple[Piece, ...]
    backward: tuple[Piece, ...]
    reductions: tuple[Communication, ...]


def stage_work(
    prices: PriceList,
    layers: tuple[LayerSpec, ...],
    strategies: tuple[LayerStrategy, ...],
    position: StagePosition,
    *,
    first_layer: int,
) -> StageWork:
    """Split the passes of a stage.

    Args:
        prices: of the problem.
        layers: of the stage.
        strategies: of its layers.
        position: where it stands in the pipeline.
        first_layer: index of its first layer in the model.
    """
    size = position.micro_batch_size
    pieces: list[tuple[Piece, Piece]] = []
    reductions: list[Communication] = []
    before, ahead = position.entry or strategies[0].layout, 0
    for index, (layer, strategy) in enumerate(zip(layers, strategies, strict=True), start=first_layer):
        if before != strategy.layout:
            pieces.append(_move_pieces(prices, before, strategy.layout, prices.arriving_bytes(layer, size), index))
        said = _said(prices, layer, strategy, size)
        pieces.append(_layer_pieces(_Layer(prices, layer, strategy, size, said), layer_index=index, ahead=ahead))
        reductions += said.gradient_sync
        before, ahead = strategy.layout, prices.layer(layer, strategy, size).gathered_bytes
    forward, backward = zip(*pieces, strict=True)
    return StageWork(forward, backward[::-1], tuple(reductions))


def link_seconds(profile: Profile, collectives: Iterable[Communication]) -> float:
    """Price collectives one after another, with nothing beside them."""
    return sum(profile.link(one.collective, one.group).seconds(one.payload_bytes) for one in collectives)


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer with its strategy, and what it communicates for one micro-batch of ``size`` samples."""

    prices: PriceList
    spec: LayerSpec
    strategy: LayerStrategy
    size: int
    said: LayerCommunication

    def measured(self, quantity: str) -> float:
        """Read a quantity of the layer's profile."""
        split = self.strategy.tensor_degree, self.strategy.sequence_degree
        measured = self.prices.conditions.profile.layer(self.spec, *split)
        return float(getattr(measured.at(self.size // self.strategy.data_degree), quantity))


def _said(prices: PriceList, layer: LayerSpec, strategy: LayerStrategy, size: int) -> LayerCommunication:
    local_samples = size // strategy.data_degree
    return communication(layer, strategy, local_samples=local_samples, precision=prices.conditions.precision)


def _layer_pieces(one: _Layer, *, layer_index: int, ahead: int) -> tuple[Piece, Piece]:
    """Give a layer's piece in forward and in backward; ``ahead`` bytes are gathered in front of it in backward."""
    cost, said = one.prices.layer(one.spec, one.strategy, one.size), one.said
    profile = one.prices.conditions.profile
    blocking = said.backward + (said.recomputed if one.strategy.checkpoint else ())
    forward = one.measured("forward_seconds")
    there = {Work.FORWARD: forward, Work.TENSOR: link_seconds(profile, said.forward)}
    back = {
        Work.RECOMPUTATION: forward if one.strategy.checkpoint else 0.0,
        Work.BACKWARD: one.measured("backward_seconds"),
        Work.TENSOR: link_seconds(profile, blocking),
    }
    return (
        Piece(
            layer_index,
            _with_rest(there, cost.forward_seconds),
            # In forward nothing is recomputed and there are no gradients: only what was measured and what is gathered.
            working_bytes=min(cost.transient_bytes, int(one.measured("transient_bytes")) + cost.gathered_bytes),
            kept_bytes=cost.activation_bytes,
            late_bytes=0,
            collectives=said.forward + said.forward_prefetched,
        ),
        Piece(
            layer_index,
            _with_rest(back, cost.backward_seconds),
            working_bytes=cost.transient_bytes + ahead,
            kept_bytes=cost.activation_bytes,
            late_bytes=cost.late_bytes,
            collectives=blocking + said.backward_prefetched,
        ),
    )


def _move_pieces(
    prices: PriceList, before: Layout, after: Layout, micro_batch_bytes: int, layer_index: int
) -> tuple[Piece, Piece]:
    cost = prices.transition(before, after, micro_batch_bytes)
    payload = micro_batch_bytes // min(before.num_slices, after.num_slices)
    group = Group(size=before.data_degree * before.tensor_degree, stride=1)
    exchange = Communication(Collective.ALL_TO_ALL, group, payload)
    there, back = (
        Piece(
            layer_index,
            ((Work.LAYOUT, seconds),),
            working_bytes=cost.transient_bytes,
            kept_bytes=0,
            late_bytes=0,
            collectives=(exchange,) if seconds else (),
        )
        for seconds in (cost.forward_seconds, cost.backward_seconds)
    )
    return there, back


def _with_rest(known: dict[Work, float], total: float) -> tuple[tuple[Work, float], ...]:
    """Add what computation did not hide of the sharded gathers: the rest of the layer's price."""
    rest = total - sum(known.values())
    # Below a billionth it is rounding.
    shares = known | ({Work.SHARDED: rest} if rest > 1e-9 * total else {})
    return tuple((work, seconds) for work, seconds in shares.items() if seconds)
