"""Folders of images, one for each class: listed once per node, decoded when they are wanted.

An image becomes a random part of itself, mirrored or not: a function of its sample's key.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from galvatron_planner.model import Model
from galvatron_planner.training import ImageFolder
from galvatron_runtime.data.draws import draws, in_epochs, numbers
from galvatron_runtime.data.node_files import node_file
from galvatron_runtime.data.samples import Batch
from galvatron_runtime.data.texts import UnusableData

log = logging.getLogger(__name__)

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
_LEAST_AREA = 0.08
_WIDEST = 4 / 3
"""Of the parts that are cut out: share of the image, and width over height (Szegedy et al. 2015, arXiv 1409.4842)."""
_MOST_THREADS = 16


@dataclass(frozen=True)
class ImageSamples:
    """Images, every one once in an epoch, in an order of its own for each (see :class:`TokenSamples`).

    Attributes:
        root: where they lie.
        files: paths below it, [N] bytes.
        classes: of each, [N].
        model: what looks at them.
        seed: of order and cuts.
        batch_size: samples of a step.
        offset: as of :class:`TokenSamples`.
    """

    root: Path
    files: NDArray[np.bytes_]
    classes: NDArray[np.int64]
    model: Model
    seed: int
    batch_size: int
    offset: int = 0

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        """Decode in: what is decoded leaves Python's lock."""
        num_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        share = len(os.sched_getaffinity(0)) // num_ranks
        return ThreadPoolExecutor(min(max(1, share), _MOST_THREADS), thread_name_prefix="images")

    def samples(self, step: int, first: int, last: int) -> Batch:
        """Read samples ``first`` to ``last`` (excluded) of the global batch of ``step``."""
        rows = np.arange(first, last, dtype=np.int64)
        chosen = in_epochs(self.offset + step * self.batch_size + rows, len(self.files), self.seed)
        images = list(self._threads.map(self._read, chosen, draws(self.seed, step, rows)))
        return Batch((torch.from_numpy(np.stack(images)),), torch.from_numpy(self.classes[chosen]))

    def _read(self, number: np.int64, key: np.uint64) -> NDArray[np.float32]:
        return read_image(self.root / os.fsdecode(self.files[number]), self.model.image_size, key)


def read_image(path: Path, side: int, key: np.uint64) -> NDArray[np.float32]:
    """Read a part of an image, [3, side, side], values from -1 to 1.

    Raises:
        UnusableData: when it is none.
    """
    (drawn,) = numbers(np.array([key]), 4)
    try:
        with Image.open(path) as image:
            box = _part(image.size, drawn / 2.0**64)
            part = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC, box=box)
    # Pillow's own errors are of both kinds.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnusableData(f"cannot read the image {path}: {error}", remedy="remove or replace it") from error
    values = np.asarray(part, dtype=np.float32).transpose(2, 0, 1) / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(values[:, :, ::-1] if drawn[0] % np.uint64(2) else values)


def _part(size: tuple[int, int], drawn: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Choose a part of an image of any size from four numbers between 0 and 1: left, upper, right, lower."""
    width, height = size
    area = width * height * (_LEAST_AREA + (1 - _LEAST_AREA) * drawn[0])
    ratio = _WIDEST ** (2 * drawn[1] - 1)
    across, down = min(width, (area * ratio) ** 0.5), min(height, (area / ratio) ** 0.5)
    left, upper = drawn[2] * (width - across), drawn[3] * (height - down)
    return (float(left), float(upper), float(min(width, left + across)), float(min(height, upper + down)))


def open_images(source: ImageFolder, *, model: Model, seed: int, batch_size: int, directory: Path) -> ImageSamples:
    """List the images of a folder, once per node.

    Raises:
        UnusableData: when there are none, or more classes than the model knows, or one that cannot be read.
    """
    root = Path(source.path)
    names = _class_names(root)
    if len(names) > model.vocabulary_size:
        raise UnusableData(
            f"{root} has {len(names)} classes, the model knows {model.vocabulary_size}",
            remedy=f"set spec.model.vocabularySize to {len(names)}",
        )

    def make(path: Path) -> None:
        found = [line for name in names for line in _images(root, name)]
        if not found:
            raise UnusableData(f"{root} has no {', '.join(sorted(SUFFIXES))} files", remedy="put images into it")
        path.write_bytes(b"\n".join(found))
        log.info("images listed", extra={"num_classes": len(names), "num_images": len(found)})

    folders = [root / name for name in names]
    listing = node_file(directory, ".images", key=source.model_dump_json(), files=folders, make=make)
    files = np.array(listing.read_bytes().split(b"\n"))
    class_of = {os.fsencode(name): number for number, name in enumerate(names)}
    classes = np.array([class_of[file.partition(b"/")[0]] for file in files.tolist()], dtype=np.int64)
    return ImageSamples(root, files, classes, model, seed, batch_size)


def _class_names(root: Path) -> Sequence[str]:
    if not root.is_dir():
        raise UnusableData(f"{root} is no directory", remedy="correct the path")
    names = sorted(path.name for path in root.iterdir() if path.is_dir())
    if not names:
        raise UnusableData(f"{root} has no folders", remedy="put the images of each class into a folder of its own")
    return names


def _images(root: Path, name: str) -> Iterator[bytes]:
    """List the images of a class, and look at the first one."""
    found = sorted(path for path in (root / name).rglob("*") if path.suffix.lower() in SUFFIXES)
    for path in found[:1]:
        read_image(path, 1, np.uint64(0))
    for path in found:
        yield os.fsencode(path.relative_to(root))
