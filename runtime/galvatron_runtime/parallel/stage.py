"""One pipeline stage as one module: its layers, and the movement of rows between them."""

from collections.abc import Sequence

from torch import Tensor, nn

from galvatron_planner.workload import reads_data
from galvatron_runtime.blocks import LayerModule
from galvatron_runtime.parallel.relayout import Relayout

Stream = tuple[Tensor, ...]
"""What layers and stages hand on: hidden vectors [B, S, H], and in a decoder the encoder's output [B, M, H]."""


class Stage(nn.Module):
    """Consecutive layers on this device.

    Attributes:
        layers: first to last.
    """

    def __init__(
        self, layers: Sequence[LayerModule], relayouts: Sequence[Relayout | None], *, first_layer: int
    ) -> None:
        """Join layers.

        Args:
            layers: first to last.
            relayouts: what happens before each layer; None where the rows already lie right.
            first_layer: number of the first one in the model, for messages.
        """
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._relayouts = tuple(relayouts)
        self._first_layer = first_layer

    def forward(self, entering: Stream, inputs: Stream, targets: Tensor | None) -> Stream:
        """Compute the stage for this device's rows.

        Args:
            entering: in the layout of the stage before; empty in the first stage.
            inputs: for each layer that reads data, what it reads, in its layout.
            targets: in the layout of the head, which only the last stage has.

        Returns:
            The stream in the layout of the last layer, or the summed loss alone.
        """
        stream, unread = entering, iter(inputs)
        for number, (layer, relayout) in enumerate(zip(self.layers, self._relayouts, strict=True), self._first_layer):
            if relayout is not None:
                stream = tuple(map(relayout, stream))
            if isinstance(layer, LayerModule) and reads_data(layer.layer):
                stream = (*stream, next(unread))
            if targets is not None and layer is self.layers[-1]:
                stream = (*stream, targets)
            try:
                leaving = layer(*stream)
            except Exception as error:
                error.add_note(f"in layer {number} of the model")
                raise
            stream = leaving if isinstance(leaving, tuple) else (leaving,)
        return stream
