"""Which stages and which strategies can belong to a fast plan at all: quick bounds of every stage of every place.

At a price on memory (``guide.py``) a stage is a shortest path over its layers' strategies. Here the path is taken
apart: every two neighbouring layers choose by themselves, and each layer counts half in either pair. So stages are sums
over kinds of pairs, and nothing is followed layer by layer. What two layers do together is still true: changes of
layout, and parameters gathered ahead.

Legend: W metrics, P places, M memory prices, G ranges of working memory, S states, O options of one kind, C contents.
"""

from collections.abc import Sequence

import numpy as np

from galvatron_planner.search.contents import Contents
from galvatron_planner.search.graph import OUTSIDE
from galvatron_planner.search.options import BACKWARD, FORWARD, Flags, Floats, Integers, PipelineOptions, rising
from galvatron_planner.search.places import Metric, Position

NUM_CAP_GROUPS = 16
"""Ranges of working memory that are told apart."""
MAX_PRICES = 12
"""Memory prices tried, besides zero."""
HUGE = 1e200
"""What is not allowed; unlike infinity it can be multiplied by zero."""
MAX_NUMBERS = 1 << 21
"""Size of the arrays in which stages are bounded."""

Pair = tuple[int, int]
"""Kinds of two neighbouring layers, OUTSIDE in front of a stage and behind it."""


class Screen:
    """Bounds of stages of one pipeline; it has state because prices are worked out once."""

    def __init__(self, options: PipelineOptions, contents: Contents, positions: Sequence[Position]) -> None:
        """Price what layers may choose at every place.

        Args:
            options: what layers may choose.
            contents: of the model.
            positions: of the places, all with the same budget.
        """
        self._options = options
        self._contents = contents
        self._positions = tuple(positions)
        self._weights = np.array([[one.weights(metric) for one in positions] for metric in Metric])
        self._seconds = [np.einsum("wpa,ao->wpo", self._weights, layer.seconds) for layer in options.layers]
        self._kept = [
            np.array([layer.kept(one.in_flight, holds_all=one.holds_all) for one in positions], dtype=np.float64)
            for layer in options.layers
        ]
        self._prices = self._choose_prices()
        self._surpluses: dict[tuple[int, bool], Floats] = {}
        self._working = {pair: self._working_of(pair) for pair in contents.pairs}
        self._caps = _caps([self._working[pair] for pair in contents.pairs])
        self._charged = np.array([float(self._working[pair].min()) for pair in contents.pairs])
        self._paid = np.stack([self._least(pair, priced=True) for pair in contents.pairs], axis=-1)
        self._least_kept = np.stack([self._least(pair, priced=False) for pair in contents.pairs], axis=-1)

    def seconds(self, wanted: Integers) -> Floats:
        """Bound stages that hold the wanted contents, at every place, (W, P, C); infinite where none can fit."""
        size = max(1, MAX_NUMBERS // (self._prices.size * len(self._caps)))
        parts = [self._bounds(wanted[first : first + size]) for first in range(0, len(wanted), size)]
        return np.concatenate(parts, axis=-1)

    def fits(self, wanted: Integers) -> Flags:
        """Tell at which places stages can fit, (P, C); not all that can here do."""
        kept = np.tensordot(self._least_kept, self._contents.pair_counts[wanted], axes=(-1, 1))
        return np.asarray((kept <= self._room(wanted)).any(axis=1))

    def with_options(self, k: int, kind: int, wanted: Integers) -> Floats:
        """Bound stages of one place when one of their layers of a kind takes each of its options, (W, C, O)."""
        counts, room = self._contents.pair_counts[wanted], self._room(wanted)
        paid = np.tensordot(self._paid[:, k], counts, axes=(-1, 1)) - self._prices[:, k, :, None, None] * room
        kept = np.tensordot(self._least_kept[k], counts, axes=(-1, 1))
        more, more_kept = self._surplus(kind, priced=True)[:, k], self._surplus(kind, priced=False)[k]
        bounds = (paid[..., None] + more[..., None, :]).max(axis=1)
        fits = kept[..., None] + more_kept[:, None, :] <= room[..., None]
        least = np.where(fits, bounds, np.inf).min(axis=1)
        has_one = (self._contents.counts[wanted, kind] > 0)[:, None]
        return np.where(has_one & (least < HUGE / 2), least, np.inf)

    def _bounds(self, wanted: Integers) -> Floats:
        counts, room = self._contents.pair_counts[wanted], self._room(wanted)
        paid = np.tensordot(self._paid, counts, axes=(-1, 1))
        paid -= self._prices[..., None, None] * room
        kept = np.tensordot(self._least_kept, counts, axes=(-1, 1))
        least = np.where(kept > room, np.inf, paid.max(axis=2)).min(axis=2)
        return np.where(least < HUGE / 2, np.maximum(least, 0.0), np.inf)

    def _room(self, wanted: Integers) -> Floats:
        """Tell what layers may keep beside the working memory that is charged in any case, (G, C)."""
        present = self._contents.pair_counts[wanted] > 0
        needed = np.where(present, self._charged, 0.0).max(axis=1)
        least = np.array([float(least) for least, _ in self._caps])
        return np.asarray(self._positions[0].budget_bytes - np.maximum(least[:, None], needed))

    def _working_of(self, pair: Pair) -> Integers:
        """Give the working memory of the second layer of a pair, (S, O), or zero where there is none."""
        before, behind = pair
        if behind == OUTSIDE:
            return np.zeros((len(self._options.layers[before].own_states), 1), dtype=np.int64)
        layer = self._options.layers[behind]
        if before == OUTSIDE:
            return layer.transient[None, :]
        states, moves = self._options.layers[before].own_states, self._options.moves(before)
        computing = self._options.layers[before].ahead[states][:, None] + layer.transient
        return np.asarray(np.maximum(moves.working[states][:, layer.state], computing))

    def _least(self, pair: Pair, *, priced: bool) -> Floats:
        """Give the least that a pair takes within every range of working memory, (W, P, M, G) or (P, G)."""
        joint, working = self._joint(pair, priced=priced), self._working[pair].ravel()
        flat = joint.reshape(*joint.shape[:-2], 1, len(working))
        return _within(flat, working[None, :], self._caps)[..., 0, :]

    def _surplus(self, kind: int, *, priced: bool) -> Floats:
        """Tell what a stage takes more at least if a layer of a kind takes an option, (W, P, M, G, O) or (P, G, O)."""
        if (kind, priced) not in self._surpluses:
            self._surpluses[kind, priced] = self._surplus_of(kind, priced=priced)
        return self._surpluses[kind, priced]

    def _surplus_of(self, kind: int, *, priced: bool) -> Floats:
        own, state = self._options.layers[kind].own_states, self._options.layers[kind].state
        half = self._half(kind, priced=priced)
        before, behind = [], []
        for index, pair in enumerate(self._contents.pairs):
            least = (self._paid if priced else self._least_kept)[..., index]
            joint = self._joint(pair, priced=priced)
            if pair[1] == kind:
                rest = _within(np.swapaxes(joint, -1, -2), self._working[pair].T, self._caps)
                before.append(np.swapaxes(rest, -1, -2) - least[..., None])
            if pair[0] == kind:
                # Of the options that lead into a state only the cheapest is in the pair.
                rest = np.swapaxes(_within(joint, self._working[pair], self._caps), -1, -2)
                index_of = np.searchsorted(own, state)
                cheapest = self._by_state(half, kind)[..., index_of]
                behind.append(rest[..., index_of] + (half - cheapest)[..., None, :] - least[..., None])
        return np.asarray(np.minimum.reduce(before) + np.minimum.reduce(behind))

    def _joint(self, pair: Pair, *, priced: bool) -> Floats:
        """Add up the halves of two layers and what lies between them: (W, P, M, S, O) or (P, S, O)."""
        first = self._by_state(self._half(pair[0], priced=priced), pair[0])
        second = self._half(pair[1], priced=priced)
        return np.asarray(first[..., :, None] + self._between(pair, priced=priced) + second[..., None, :])

    def _by_state(self, amounts: Floats, kind: int) -> Floats:
        """Take the least of the options that lead into each of a kind's own states."""
        if kind == OUTSIDE:
            return amounts
        layer = self._options.layers[kind]
        padded = np.concatenate([amounts, np.full((*amounts.shape[:-1], 1), HUGE)], axis=-1)
        return np.asarray(padded[..., layer.slots[layer.own_states]].min(axis=-1))

    def _half(self, kind: int, *, priced: bool) -> Floats:
        """Give half of what each option of a layer takes, (W, P, M, O), or keeps, (P, O)."""
        if kind == OUTSIDE:
            return np.zeros((1,) * (4 if priced else 2))
        if not priced:
            return np.asarray(self._kept[kind] / 2)
        paid = self._seconds[kind][..., None, :] + self._prices[..., None] * self._kept[kind][:, None, :]
        return np.asarray(paid / 2)

    def _between(self, pair: Pair, *, priced: bool) -> Floats:
        """Give what lies between two layers, in front of the first or behind the last one: (W, P, M, S, O)."""
        before, behind = pair
        if OUTSIDE in pair:
            kept = self._received_bytes(behind) if before == OUTSIDE else self._sent_bytes(before)
            if not priced:
                return np.asarray(kept[..., None])
            hops = self._arriving_hops(behind) if before == OUTSIDE else self._returning_hops(before)
            seconds = self._weights[..., FORWARD if before == OUTSIDE else BACKWARD, None] * hops
            return np.asarray((seconds[..., None, :] + self._prices[..., None] * kept[:, None, :])[..., None])
        moves, states = self._options.moves(before), self._options.layers[before].own_states
        if not priced:
            return np.zeros((1, 1))
        seconds = moves.seconds[:, states][:, :, self._options.layers[behind].state]
        return np.tensordot(self._weights, seconds, axes=1)[..., None, :, :]

    def _received_bytes(self, kind: int) -> Floats:
        """Bytes of what a stage that begins with a layer of the kind at least receives, (P, 1)."""
        payloads = [float(self._options.payload(before).min()) for before in self._contents.before(kind)]
        least = min(payloads, default=0.0)
        return np.array([[0.0 if one.is_first else least] for one in self._positions])

    def _sent_bytes(self, kind: int) -> Floats:
        """Bytes of outputs that wait for their gradients, and of one gradient, (P, S)."""
        waiting = np.array([0.0 if one.is_last else one.in_flight + 1.0 for one in self._positions])
        payload = self._options.payload(kind)[self._options.layers[kind].own_states]
        return np.asarray(waiting[:, None] * payload)

    def _arriving_hops(self, kind: int) -> Floats:
        """Seconds of the quickest transfer into a stage that begins with a layer of the kind, (P, 1)."""
        before = self._contents.before(kind)
        return np.array(
            [
                [0.0 if one.is_first or not before else min(self._hops(b, one.stage_index - 1).min() for b in before)]
                for one in self._positions
            ]
        )

    def _returning_hops(self, kind: int) -> Floats:
        """Seconds of the transfer back into a stage that ends with a layer of the kind, (P, S)."""
        states = self._options.layers[kind].own_states
        exits = self._options.exit_of[states]
        none = np.zeros(len(states))
        return np.array([none if p.is_last else self._hops(kind, p.stage_index)[exits] for p in self._positions])

    def _hops(self, before: int, stage_index: int) -> Floats:
        return self._options.hop_seconds(before, stage_index=stage_index)

    def _choose_prices(self) -> Floats:
        """Choose memory prices, (W, P, M): zero, and where a layer exchanges one strategy for another.

        Of layers by themselves these are the only prices at which the cheapest choice changes. Metrics differ in little
        but their scale, except where the optimizer weighs as much as a pass.
        """
        work = self._rates(Metric.WORK)
        passes = np.array([float(one.num_micro_batches) for one in self._positions])
        is_whole = np.array([one.is_first and one.is_last for one in self._positions])
        traversal = np.where(is_whole[:, None], work, work / passes[:, None])
        return np.stack([traversal, work, work, *map(self._rates, (Metric.RETURN, Metric.DRAIN, Metric.PASSES))])

    def _rates(self, metric: Metric) -> Floats:
        """Give zero and at most as many exchange rates as are tried, (P, M); the last one fills up."""
        slopes = [_hull_rates(own[metric], held) for own, held in zip(self._seconds, self._kept, strict=True)]
        rates = np.sort(np.concatenate(slopes, axis=1), axis=1)
        if rates.shape[1] > MAX_PRICES:
            rates = rates[:, np.linspace(0, rates.shape[1] - 1, MAX_PRICES).round().astype(int)]
        rates = np.concatenate([np.zeros((len(rates), 1)), rates], axis=1)
        return np.pad(rates, ((0, 0), (0, MAX_PRICES + 1 - rates.shape[1])), mode="edge")


def _caps(working: Sequence[Integers]) -> list[tuple[int, int]]:
    """Group working memory into ranges: the least that is charged and the most that is allowed."""
    caps = rising(np.concatenate([one.ravel() for one in working]))
    return [(int(group[0]), int(group[-1])) for group in np.array_split(caps, NUM_CAP_GROUPS) if len(group)]


def _within(amounts: Floats, working: Integers, caps: Sequence[tuple[int, int]]) -> Floats:
    """Take the least over the last axis of what needs no more working memory than each range allows.

    Args:
        amounts: (..., R, N).
        working: of each, (R, N).
        caps: the ranges.

    Returns:
        (..., R, G).
    """
    order, rows = np.argsort(working, axis=1, kind="stable"), np.arange(len(working))[:, None]
    running = np.minimum.accumulate(amounts[..., rows, order], axis=-1)
    padded = np.concatenate([np.full((*running.shape[:-1], 1), HUGE), running], axis=-1)
    most = np.array([cap for _, cap in caps])
    allowed = np.array([np.searchsorted(row, most, side="right") for row in working[rows, order]])
    return np.asarray(padded[..., rows, allowed])


def _hull_rates(seconds: Floats, kept: Floats) -> Floats:
    """Give the slopes of the lower hulls of seconds over bytes kept, a hull a place: (P, number of slopes).

    All hulls are walked at once, from their fastest option to the lightest; one that has ended repeats its last slope.
    """
    rows = np.arange(len(kept))
    at = np.lexsort((kept, seconds), axis=1)[:, 0] if seconds.ndim > 1 else np.zeros(0, dtype=np.int64)
    found = [np.zeros(len(kept))]
    while True:
        saved = kept[rows, at][:, None] - kept
        with np.errstate(divide="ignore", invalid="ignore"):
            rates = np.where(saved > 0, (seconds - seconds[rows, at][:, None]) / saved, np.inf)
        best = rates.argmin(axis=1)
        ends = ~np.isfinite(rates[rows, best])
        if ends.all():
            return np.stack(found[1:], axis=1) if found[1:] else np.zeros((len(kept), 0))
        at = np.where(ends, at, best)
        found.append(np.where(ends, found[-1], rates[rows, best]))
