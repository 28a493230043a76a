"""Models of a user, as ``module:function`` names them: two that work, and many that cannot."""

import os
import sys
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

SIDE, WIDTH, CLASSES, VOCABULARY = 8, 16, 10, 32


class Pixels(nn.Module):
    """Images to two tensors: columns of pixels, and a summary of each image."""

    def __init__(self) -> None:
        super().__init__()
        self.columns = nn.Linear(3 * SIDE, WIDTH)
        self.register_buffer("places", torch.empty(SIDE, WIDTH))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill what is this module's own."""
        self.places: Tensor
        nn.init.normal_(self.places)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        columns = self.columns(images.flatten(1, 2).transpose(1, 2)) + self.places
        return columns, columns.mean(1)


class Look(nn.Module):
    """Columns look at each other, the summary at the columns; attention is torch's own module."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.norm = nn.LayerNorm(WIDTH)
        self.summary = nn.Linear(WIDTH, WIDTH)

    def forward(self, columns: Tensor, summary: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.norm(columns)
        columns = columns + self.attention(normed, normed, normed, need_weights=False)[0]
        return columns, summary + self.summary(columns.mean(1))


class Classes(nn.Module):
    """Columns, summary and classes to the summed loss."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, columns: Tensor, summary: Tensor, targets: Tensor) -> Tensor:
        scores = self.scores(torch.cat((columns.mean(1), summary), -1))
        return F.cross_entropy(scores, targets, reduction="sum")


def images() -> list[nn.Module]:
    """A model of images."""
    return [Pixels(), Look(), Look(), Look(), Classes()]


class Leaving(Classes):
    """Ends its process where it trains on the second rank."""

    def forward(self, columns: Tensor, summary: Tensor, targets: Tensor) -> Tensor:
        if os.environ.get("RANK") == "1":
            sys.exit(int(os.environ["EXIT_CODE"]))
        return super().forward(columns, summary, targets)


def leaving() -> list[nn.Module]:
    return [Pixels(), Look(), Leaving()]


class Hungry(Classes):
    """Finds no memory on the second rank, after some steps."""

    passes = 0

    def forward(self, columns: Tensor, summary: Tensor, targets: Tensor) -> Tensor:
        self.passes += 1
        if os.environ.get("RANK") == "1" and self.passes == 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(columns, summary, targets)


def hungry() -> list[nn.Module]:
    return [Pixels(), Look(), Hungry()]


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, WIDTH)

    def forward(self, tokens: Tensor) -> Any:
        return self.table(tokens)


class Loss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, hidden: Tensor, targets: Tensor) -> Any:
        return F.cross_entropy(self.projection(hidden).flatten(0, 1), targets.flatten(), reduction="sum")


class MeanLoss(Loss):
    def forward(self, hidden: Tensor, targets: Tensor) -> Any:
        return self.projection(hidden).mean(-1) * targets


class BatchNormed(nn.BatchNorm1d):
    pass


class Unstarted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * self.scale


class Scalar(Unstarted):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.scale)


class Mixed(nn.Module):
    """Lets samples see each other."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.flatten(0, 1)


class Indexed(nn.Module):
    """Hands token ids on."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.argmax(-1)


class Deciding(nn.Module):
    """Looks at values."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden if hidden.sum() > 0 else -hidden


class Misnamed(nn.Linear):
    split_dims = {"wait": 0}  # noqa: RUF012


def batch_normed() -> list[nn.Module]:
    return [Tokens(), BatchNormed(WIDTH), Loss()]


def unstarted() -> list[nn.Module]:
    return [Tokens(), Unstarted(), Loss()]


def scalar() -> list[nn.Module]:
    return [Tokens(), Scalar(), Loss()]


def mixed() -> list[nn.Module]:
    return [Tokens(), Mixed(), Loss()]


def indexed() -> list[nn.Module]:
    return [Tokens(), Indexed(), Loss()]


def deciding() -> list[nn.Module]:
    return [Tokens(), Deciding(), Loss()]


def misnamed() -> list[nn.Module]:
    return [Tokens(), Misnamed(WIDTH, WIDTH), Loss()]


def averaged() -> list[nn.Module]:
    return [Tokens(), MeanLoss()]


def too_wide() -> list[nn.Module]:
    return [Tokens(), nn.Linear(WIDTH + 1, WIDTH), Loss()]


def failing() -> list[nn.Module]:
    raise RuntimeError("no weights here")


def alone() -> list[nn.Module]:
    return [Tokens()]


def no_modules() -> list[Any]:
    return [Tokens(), "a layer"]
