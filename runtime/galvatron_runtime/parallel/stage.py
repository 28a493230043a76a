"""One pipeline stage as one module: its layers, and the movement of rows between them."""

from collections.abc import Sequence

from torch import Tensor, nn

from galvatron_runtime.blocks import HeadLayer, LayerModule
from galvatron_runtime.parallel.relayout import Relayout


class Stage(nn.Module):
    """Consecutive layers on this device.

    Attributes:
        layers: first to last.
    """

    def __init__(self, layers: Sequence[LayerModule], relayouts: Sequence[Relayout | None]) -> None:
        """Join layers.

        Args:
            layers: first to last.
            relayouts: what happens before each layer; None where the rows already lie right.
        """
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._relayouts = tuple(relayouts)

    def forward(self, x: Tensor, targets: Tensor | None) -> Tensor:
        """Compute the stage for this device's rows.

        Args:
            x: tokens [B, S] in the first stage, else hidden vectors [B, S, H] in the layout of the stage before.
            targets: [B, S] in the layout of the head, which only the last stage has.

        Returns:
            Hidden vectors in the layout of the last layer, or the summed loss.
        """
        for layer, relayout in zip(self.layers, self._relayouts, strict=True):
            x = x if relayout is None else relayout(x)
            x = layer(x, targets) if isinstance(layer, HeadLayer) else layer(x)
        return x
