"""Token files: every window once in an epoch, whatever the cut into files, steps and ranks; refusals."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as generate
from numpy.typing import NDArray

import builders
from galvatron_planner.training import TokenFiles
from galvatron_runtime.data import PrefetchedSamples, TokenSamples, UnusableData, open_samples
from galvatron_runtime.data.draws import shuffled

MODEL = builders.model(sequence_length=4, vocabulary_size=1000)


def opened(path: Path, *, bin_type: Literal["uint16", "uint32"] = "uint16", batch_size: int = 8) -> PrefetchedSamples:
    source = TokenFiles(path=str(path), bin_type=bin_type)
    samples = open_samples(source, model=MODEL, seed=3, batch_size=batch_size, directory=path.parent / "node")
    assert isinstance(samples, PrefetchedSamples)
    return samples


def saved(path: Path, tokens: NDArray[np.integer]) -> Path:
    path.parent.mkdir(exist_ok=True)
    np.save(path, tokens)
    return path


@given(size=generate.integers(1, 3000), key=generate.integers(0, 2**64 - 1))
def test_an_order_has_every_place_once(size: int, key: int) -> None:
    places = shuffled(np.arange(size), size, np.uint64(key))
    assert sorted(places.tolist()) == list(range(size))


def test_orders_look_random() -> None:
    size, num_orders = 50, 4000
    orders = np.stack([shuffled(np.arange(size), size, np.uint64(key)) for key in range(num_orders)])
    # Each place takes each value equally often: a chi-squared test of 49 degrees of freedom, far in its tail.
    for place in range(size):
        counts = np.bincount(orders[:, place], minlength=size)
        assert ((counts - num_orders / size) ** 2 / (num_orders / size)).sum() < 120
    neighbours = (np.diff(orders, axis=1) == 1).mean()
    assert abs(neighbours - 1 / size) < 0.003


@given(num_tokens=generate.lists(generate.integers(0, 60), min_size=1, max_size=4), batch_size=generate.integers(1, 9))
def test_an_epoch_has_every_window_of_every_file_once(num_tokens: list[int], batch_size: int) -> None:
    windows = [max(0, (count - 5) // 4 + 1) for count in num_tokens]
    total = sum(windows)
    if not total:
        return
    starts = np.cumsum([0, *num_tokens])
    files = tuple(np.arange(start, start + count) for start, count in zip(starts, num_tokens, strict=False))
    source = TokenSamples(files, MODEL, seed=5, batch_size=batch_size)
    steps = -(-2 * total // batch_size)
    seen = torch.cat([source.samples(step, 0, batch_size).inputs[0] for step in range(steps)])
    expected = sorted(int(tokens[4 * window]) for tokens, n in zip(files, windows, strict=True) for window in range(n))
    for epoch in range(2):
        rows = seen[epoch * total : (epoch + 1) * total]
        assert sorted(rows[:, 0].tolist()) == expected
        assert torch.equal(rows, rows[:, :1] + torch.arange(4))


def test_epochs_have_orders_of_their_own(tmp_path: Path) -> None:
    samples = opened(saved(tmp_path / "a.npy", np.arange(401)), batch_size=100)
    first, second = (samples.samples(step, 0, 100).inputs[0][:, 0].tolist() for step in range(2))
    assert first != second
    assert sorted(first) == sorted(second)


def test_steps_of_another_size_go_on_with_the_next_sample(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npy", np.arange(401))
    before, after = opened(path, batch_size=8), opened(path, batch_size=12)
    seen = [
        *(before.samples(step, 0, 8) for step in range(5)),
        *(after.moved(-20).samples(s, 0, 12) for s in range(5, 10)),
    ]
    assert sorted(torch.cat([batch.inputs[0][:, 0] for batch in seen]).tolist()) == list(range(0, 400, 4))


def test_reading_ahead_gives_the_same_samples(tmp_path: Path) -> None:
    samples = opened(saved(tmp_path / "a.npy", np.arange(400)))
    for step, (first, last) in [(0, (0, 4)), (1, (0, 4)), (1, (4, 8)), (2, (0, 4)), (2, (4, 8)), (7, (0, 4))]:
        ahead, direct = samples.samples(step, first, last), samples.source.samples(step, first, last)
        assert torch.equal(ahead.inputs[0], direct.inputs[0])
        assert torch.equal(ahead.targets, direct.targets)


@pytest.mark.parametrize("bin_type", ["uint16", "uint32"])
def test_bare_numbers_are_read_as_their_type(tmp_path: Path, bin_type: Literal["uint16", "uint32"]) -> None:
    tokens = np.arange(5)
    (tmp_path / "a.bin").write_bytes(tokens.astype(f"<{np.dtype(bin_type).str[1:]}").tobytes())
    batch = opened(tmp_path / "a.bin", bin_type=bin_type).samples(0, 0, 1)
    assert batch.inputs[0].tolist() == [[0, 1, 2, 3]]
    assert batch.targets.tolist() == [[1, 2, 3, 4]]


def test_files_of_a_directory_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    saved(tmp_path / "tokens/b.npy", np.arange(10, 15, dtype=np.uint32))
    saved(tmp_path / "tokens/a.npy", np.arange(5, dtype=np.int64))
    saved(tmp_path / "tokens/short.npy", np.arange(2))
    (tmp_path / "tokens/README").write_text("no tokens")
    files = opened(tmp_path / "tokens").source.files
    assert [tokens.tolist() for tokens in files] == [list(range(5)), list(range(10, 15)), [0, 1]]


def test_a_token_that_the_model_does_not_know_is_refused_with_its_place(tmp_path: Path) -> None:
    tokens = np.arange(50)
    tokens[17] = 1000
    with pytest.raises(UnusableData, match=r"a\.npy has token 1000 at position 17, the model knows 0 to 999"):
        opened(saved(tmp_path / "a.npy", tokens))
    tokens[17] = -1
    with pytest.raises(UnusableData, match="token -1 at position 17"):
        opened(saved(tmp_path / "a.npy", tokens))


def test_files_are_looked_through_once(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npy", np.arange(50))
    opened(path)
    (seen,) = (tmp_path / "node/data").glob("*.checked")
    made = seen.stat()
    opened(path)
    assert seen.stat() == made


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((2, 50), dtype=np.uint16), "holds uint16 of shape"),
        (np.zeros(50), "holds float64"),
        (np.zeros(4, dtype=np.uint16), "at most 4 tokens in a file, a sample needs 5"),
        (np.zeros(0, dtype=np.uint16), "at most 0 tokens"),
    ],
)
def test_what_are_no_samples_is_refused(tmp_path: Path, tokens: NDArray[np.integer], message: str) -> None:
    with pytest.raises(UnusableData, match=message):
        opened(saved(tmp_path / "a.npy", tokens))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", b"", "cannot read tokens"),
        ("a.npy", b"\x93NUMPY\x01\x00", "cannot read tokens"),
        ("a.npy", b"tokens", "cannot read tokens"),
        ("a.bin", b"abc", "3 bytes are no whole number of uint16"),
        ("a.bin", b"", "at most 0 tokens"),
        ("a.txt", b"text", r"neither a \*\.npy or \*\.bin file nor a directory"),
    ],
)
def test_what_are_no_tokens_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnusableData, match=message):
        opened(tmp_path / name)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableData, match="neither"):
        opened(tmp_path / "missing.npy")
    with pytest.raises(UnusableData, match="has no"):
        opened(tmp_path)
