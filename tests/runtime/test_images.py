"""Folders of images: every one once in an epoch, cut the same for every reader; refusals."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as generate
from PIL import Image

import builders
from galvatron_planner.model import Family
from galvatron_planner.training import ImageFolder, SyntheticData, TextFiles
from galvatron_runtime.data import PrefetchedSamples, Samples, UnusableData, open_samples
from galvatron_runtime.data.images import read_image

MODEL = builders.model(Family.VIT, vocabulary_size=3)
SIDE = MODEL.image_size
GREYS = {"ants": (0, 30, 60), "bees": (90, 120), "wasps": (150, 180, 210, 240)}


def folder(root: Path) -> ImageFolder:
    """Images of one grey each, in three classes, of several sizes, kinds and depths."""
    suffixes = (".png", ".JPG", ".bmp")
    for name, greys in GREYS.items():
        below = root / "photos" / name / ("deeper" if name == "bees" else "")
        below.mkdir(parents=True)
        for index, grey in enumerate(greys):
            Image.new("L", (9 + 7 * index, 20), grey).save(below / f"{index}{suffixes[index % 3]}")
    (root / "photos" / "ants" / "notes.txt").write_text("no image")
    return ImageFolder(path=str(root / "photos"))


def opened(source: ImageFolder, directory: Path, *, batch_size: int = 9) -> Samples:
    return open_samples(source, model=MODEL, seed=4, batch_size=batch_size, directory=directory / "node")


def test_an_epoch_has_every_image_once_with_its_class(tmp_path: Path) -> None:
    source = opened(folder(tmp_path), tmp_path)
    orders = []
    for step in range(2):
        batch = source.samples(step, 0, 9)
        (images,) = batch.inputs
        assert images.shape == (9, 3, SIDE, SIDE)
        greys = ((images.mean(dim=(1, 2, 3)) + 1) * 127.5).round().int().tolist()
        expected = {grey: number for number, name in enumerate(GREYS) for grey in GREYS[name]}
        assert {grey: expected[grey] for grey in greys} == dict(zip(greys, batch.targets.tolist(), strict=True))
        assert sorted(greys) == sorted(expected)
        orders.append(greys)
    assert orders[0] != orders[1]


def test_images_are_the_same_whoever_reads_them_and_move_with_the_size_of_a_batch(tmp_path: Path) -> None:
    source = opened(folder(tmp_path), tmp_path)
    assert isinstance(source, PrefetchedSamples)
    whole, again = source.samples(2, 0, 9), opened(folder_of(tmp_path), tmp_path)
    assert torch.equal(again.samples(2, 4, 6).inputs[0], whole.inputs[0][4:6])
    smaller = opened(folder_of(tmp_path), tmp_path, batch_size=3).moved(2 * 9 - 2 * 3)
    assert torch.equal(smaller.samples(2, 0, 3).targets, whole.targets[:3])


def folder_of(root: Path) -> ImageFolder:
    return ImageFolder(path=str(root / "photos"))


@given(
    key=generate.integers(0, 2**64 - 1),
    width=generate.integers(1, 50),
    height=generate.integers(1, 50),
    side=generate.integers(1, 9),
)
def test_any_part_of_any_image_can_be_read(
    tmp_path_factory: pytest.TempPathFactory, key: int, width: int, height: int, side: int
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any-{os.getpid()}.png"
    Image.new("RGBA", (width, height), (255, 0, 51, 128)).save(path)
    values = read_image(path, side, np.uint64(key))
    assert values.shape == (3, side, side)
    assert np.allclose(values[:, 0, 0], [1, -1, -0.6], atol=1e-5)
    assert np.ptp(values.reshape(3, -1), axis=1).max() < 1e-5


def test_parts_differ_and_some_are_mirrored(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    parts = [read_image(tmp_path / "ramp.png", 4, np.uint64(key))[0, 0] for key in range(200)]
    rising = np.mean([part[0] < part[-1] for part in parts])
    assert 0.35 < rising < 0.65
    assert len({tuple(part.round(3)) for part in parts}) > 150
    shares = [abs(part[-1] - part[0]) for part in parts]
    assert np.quantile(shares, 0.9) > 2 * np.quantile(shares, 0.1)


def test_what_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path)
    with pytest.raises(UnusableData, match="is no directory"):
        opened(ImageFolder(path=str(tmp_path / "missing")), tmp_path)
    (tmp_path / "empty" / "class").mkdir(parents=True)
    with pytest.raises(UnusableData, match=r"no \.bmp, \.jpeg"):
        opened(ImageFolder(path=str(tmp_path / "empty")), tmp_path)
    with pytest.raises(UnusableData, match="has no folders"):
        opened(ImageFolder(path=str(tmp_path / "empty" / "class")), tmp_path)
    (tmp_path / "photos" / "zebras").mkdir()
    with pytest.raises(UnusableData, match="4 classes, the model knows 3"):
        opened(source, tmp_path)
    (tmp_path / "photos" / "zebras").rmdir()
    (tmp_path / "photos" / "ants" / "0.png").write_bytes(b"no image")
    with pytest.raises(UnusableData, match=r"ants/0\.png"):
        opened(source, tmp_path)


def test_text_is_for_models_of_text_and_images_for_the_others(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("text")
    with pytest.raises(UnusableData, match="the model reads images"):
        open_samples(TextFiles(path=str(text)), model=MODEL, seed=1, batch_size=1, directory=tmp_path)
    with pytest.raises(UnusableData, match="the model reads text"):
        open_samples(folder(tmp_path), model=builders.model(), seed=1, batch_size=1, directory=tmp_path)
    assert open_samples(SyntheticData(), model=MODEL, seed=1, batch_size=1, directory=tmp_path)
