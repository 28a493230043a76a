"""Samples: the same whatever the plan, and refusals before anything starts."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as generate

import builders
from galvatron_planner.training import DataSource, PythonDocs, SyntheticData, TextFiles
from galvatron_runtime.data import Samples, SyntheticSamples, UnusableData, open_samples

TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 4


def opened(source: DataSource, directory: Path, *, seed: int = 1, vocabulary_size: int = 256) -> Samples:
    model = builders.model(sequence_length=16, vocabulary_size=vocabulary_size)
    return open_samples(source, model=model, seed=seed, batch_size=8, directory=directory)


def text_file(directory: Path, text: str = TEXT) -> TextFiles:
    (directory / "text.txt").write_text(text)
    return TextFiles(path=str(directory / "text.txt"))


@given(step=generate.integers(0, 10**6), cut=generate.integers(0, 8), seed=generate.integers(0, 2**70))
def test_a_sample_does_not_depend_on_who_else_reads(step: int, cut: int, seed: int) -> None:
    source = SyntheticSamples(builders.model(sequence_length=5), seed=seed)
    whole = source.samples(step, 0, 8)
    parts = source.samples(step, 0, cut), source.samples(step, cut, 8)
    assert torch.equal(whole.inputs[0], torch.cat([part.inputs[0] for part in parts]))
    assert torch.equal(whole.targets, torch.cat([part.targets for part in parts]))


def test_samples_of_a_text_do_not_depend_on_who_else_reads(tmp_path: Path) -> None:
    source = opened(text_file(tmp_path), tmp_path)
    (whole,) = source.samples(3, 0, 8).inputs
    assert torch.equal(whole[5:7], source.samples(3, 5, 7).inputs[0])


def test_steps_and_seeds_bring_other_samples(tmp_path: Path) -> None:
    files = text_file(tmp_path)
    (inputs,) = opened(files, tmp_path).samples(0, 0, 8).inputs
    assert not torch.equal(inputs, opened(files, tmp_path).samples(1, 0, 8).inputs[0])
    assert not torch.equal(inputs, opened(files, tmp_path, seed=2).samples(0, 0, 8).inputs[0])


def test_a_sample_is_a_piece_of_the_text_and_its_targets_follow_it(tmp_path: Path) -> None:
    batch = opened(text_file(tmp_path), tmp_path).samples(0, 0, 4)
    (inputs,), targets = batch.inputs, batch.targets
    assert inputs.shape == targets.shape == (4, 16)
    assert inputs.dtype == targets.dtype == torch.int64
    for row, following in zip(inputs.tolist(), targets.tolist(), strict=True):
        assert bytes(row + following[-1:]).decode() in TEXT
        assert row[1:] == following[:-1]


def test_synthetic_tokens_cover_the_vocabulary_and_nothing_else(tmp_path: Path) -> None:
    (inputs,) = opened(SyntheticData(), tmp_path, vocabulary_size=67).samples(0, 0, 512).inputs
    assert set(inputs.flatten().tolist()) == set(range(67))


def test_a_text_that_is_just_long_enough_gives_its_only_sample(tmp_path: Path) -> None:
    batch = opened(text_file(tmp_path, "0123456789abcdefg"), tmp_path).samples(0, 0, 1)
    assert bytes(batch.inputs[0][0].tolist() + batch.targets[0, -1:].tolist()) == b"0123456789abcdefg"


def test_files_of_a_directory_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in ("b.md", "a.txt", "c.py"):
        (texts / name).write_text(name * 10)
    opened(TextFiles(path=str(texts)), tmp_path)
    (tokens,) = (tmp_path / "data").glob("*.tokens")
    assert tokens.read_bytes() == b"a.txt" * 10 + b"b.md" * 10


def test_the_token_file_of_a_node_is_made_once(tmp_path: Path) -> None:
    files = text_file(tmp_path)
    opened(files, tmp_path)
    (tokens,) = (tmp_path / "data").glob("*.tokens")
    made = tokens.stat()
    opened(files, tmp_path)
    assert tokens.stat() == made


def test_a_text_that_changed_is_read_again(tmp_path: Path) -> None:
    opened(text_file(tmp_path), tmp_path)
    opened(text_file(tmp_path, TEXT + "More."), tmp_path)
    assert len(list((tmp_path / "data").glob("*.tokens"))) == 2


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableData, match="neither a file nor a directory"):
        opened(TextFiles(path=str(tmp_path / "missing")), tmp_path)


def test_a_directory_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableData, match=r"no \*\.txt or \*\.md files"):
        opened(TextFiles(path=str(tmp_path)), tmp_path)


@pytest.mark.parametrize("text", ["", "0123456789abcdef"])
def test_a_text_shorter_than_a_sample_and_its_target_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UnusableData, match="a sample needs 17"):
        opened(text_file(tmp_path, text), tmp_path)


def test_a_vocabulary_that_lacks_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableData, match="the model knows 255 tokens"):
        opened(text_file(tmp_path), tmp_path, vocabulary_size=255)


@pytest.mark.slow
def test_the_documentation_of_python_is_megabytes_of_text_without_importing_it(tmp_path: Path) -> None:
    opened(PythonDocs(), tmp_path)
    (tokens,) = (tmp_path / "data").glob("*.tokens")
    text = tokens.read_bytes().decode()
    assert len(text) > 1_500_000
    assert 'The "assert" statement' in text  # of the language reference
    assert "textwrap.TextWrapper\n\nObject for wrapping/filling text." in text
