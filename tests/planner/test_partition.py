from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as generate

from galvatron_planner.search.partition import balanced_cut, neighbours


def heaviest(weights: list[float], cut: tuple[int, ...]) -> float:
    return max(sum(weights[start:end]) for start, end in pairwise(cut))


def test_a_heavy_end_gets_fewer_layers() -> None:
    # 4 + 1 + 1 | 1 + 1 + 4: the only cut whose heavier side weighs 6.
    assert balanced_cut([4, 1, 1, 1, 1, 4], 2) == (0, 3, 6)
    # Remainders do not pile up on the last stage: 2 + 2 + 1, never 1 + 1 + 3.
    assert heaviest([1.0] * 5, balanced_cut([1.0] * 5, 3)) == 2


@given(generate.lists(generate.floats(0, 10), min_size=1, max_size=7), generate.data())
def test_no_cut_is_more_balanced(weights: list[float], data: generate.DataObject) -> None:
    num_stages = data.draw(generate.integers(1, len(weights)))
    cut = balanced_cut(weights, num_stages)
    assert (cut[0], cut[-1], len(cut)) == (0, len(weights), num_stages + 1)
    every = ((0, *inner, len(weights)) for inner in combinations(range(1, len(weights)), num_stages - 1))
    assert heaviest(weights, cut) <= min(heaviest(weights, one) for one in every) + 1e-9


def test_neighbours_move_one_layer_over_one_boundary() -> None:
    assert set(neighbours((0, 2, 3, 5))) == {(0, 1, 3, 5), (0, 2, 4, 5)}
