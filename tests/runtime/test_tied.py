"""Who sends which piece of a tied parameter to whom."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as generate

from galvatron_runtime.parallel.tied import Box, Boxes, pieces

SHAPE = (13, 4)


def cuts(size: int, parts: int) -> list[tuple[int, int]]:
    """As torch cuts: equal parts, the last ones smaller or empty."""
    step = -(-size // parts)
    return [(min(i * step, size), min((i + 1) * step, size)) for i in range(parts)]


@generate.composite
def layouts(draw: generate.DrawFn, first_rank: int) -> Boxes:
    """Replicas of a tensor that is cut along both dims."""
    rows, columns, replicas = (draw(generate.sampled_from([1, 2, 4])) for _ in range(3))
    boxes = [
        Box((a, c), (b, d)) for (a, b), (c, d) in product(cuts(SHAPE[0], rows), cuts(SHAPE[1], columns))
    ] * replicas
    ranks = draw(generate.permutations(range(first_rank, first_rank + len(boxes))))
    return dict(zip(ranks, boxes, strict=True))


def cells(box: Box) -> set[tuple[int, int]]:
    return set(product(range(box.starts[0], box.ends[0]), range(box.starts[1], box.ends[1])))


@given(layouts(0), generate.data())
def test_every_target_gets_every_element_of_its_box_once_from_one_that_holds_it(
    sources: Boxes, data: generate.DataObject
) -> None:
    targets = data.draw(layouts(data.draw(generate.sampled_from([0, 3, 100]))))
    arrived: dict[int, list[tuple[int, int]]] = {rank: [] for rank in targets}
    for piece in pieces(sources, targets):
        assert cells(piece.box) <= cells(sources[piece.source])
        arrived[piece.target] += cells(piece.box)
    for rank, box in targets.items():
        assert sorted(arrived[rank]) == sorted(cells(box))


def test_a_rank_takes_its_own_where_it_can_and_replicas_give_in_turn() -> None:
    whole = Box((0, 0), SHAPE)
    near = {0: whole, 1: whole}
    assert [(one.source, one.target) for one in pieces(near, near)] == [(0, 0), (1, 1)]
    assert [(one.source, one.target) for one in pieces(near, {2: whole, 3: whole})] == [(0, 2), (1, 3)]


def test_a_piece_is_indexed_in_what_a_rank_holds() -> None:
    held = Box((4, 0), (8, 4))
    met = held.meet(Box((6, 2), (13, 4)))
    assert met is not None
    assert met.within(held) == (slice(2, 4), slice(2, 4))
    assert held.meet(Box((8, 0), (13, 4))) is None
