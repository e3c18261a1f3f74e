"""Log-mel spectrograms to features: a convolution that strides in time, then GRU or LSTM layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcore.models.features import Encoder, Features, check_mask, without_padding

__all__ = ["RNN"]

CELLS: Mapping[str, type[nn.GRU] | type[nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}


class _Layer(nn.Module):
    """One recurrent layer. The backward direction is a second RNN on the sequence turned round.

    Each sequence is turned round within its own length, so that padding comes last for both directions and no
    step that counts ever sees it; unlike packing, that needs no lengths on the CPU.
    """

    def __init__(self, cell: str, width_in: int, hidden: int, bidirectional: bool) -> None:
        super().__init__()
        self.forwards = CELLS[cell](width_in, hidden, batch_first=True)
        self.backwards = CELLS[cell](width_in, hidden, batch_first=True) if bidirectional else None

    def forward(self, x: Tensor, turned: Tensor | None) -> Tensor:
        """``turned`` (B, T): which step each step of the turned sequence is; None: the whole length."""
        y: Tensor = self.forwards(x)[0]
        if self.backwards is None:
            return y
        return torch.cat([y, _turn(self.backwards(_turn(x, turned))[0], turned)], -1)


def _turn(x: Tensor, turned: Tensor | None) -> Tensor:
    return x.flip(1) if turned is None else x.gather(1, turned[..., None].expand_as(x))


class RNN(Encoder):
    """Recurrent network over log-mel frames.

    Parameters
    ----------
    dim : int
        Width of the features.
    num_mels : int
        Filters of the spectrogram.
    hidden : int
        Width of each direction's state.
    layers : int
        Recurrent layers.
    cell : {"gru", "lstm"}
    bidirectional : bool
    stride : int
        Spectrogram frames for each step: T frames become ``ceil(T / stride)`` steps.
    dropout : float
        Between the recurrent layers.

    Notes
    -----
    Padding never changes what is not padding. A mask is expected to have each sequence's frames first; frames
    it leaves out before the last one it has count as silence (0).

    Examples
    --------
    >>> import torch
    >>> from mmcore.models import RNN
    >>> RNN.preset("tiny")(torch.randn(2, 100, 80)).data.shape
    torch.Size([2, 25, 128])
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"dim": 128, "hidden": 96, "layers": 1},
        "base": {"dim": 512, "hidden": 512, "layers": 3},
    }

    def __init__(
        self,
        dim: int,
        *,
        num_mels: int = 80,
        hidden: int = 128,
        layers: int = 1,
        cell: str = "gru",
        bidirectional: bool = True,
        stride: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if cell not in CELLS:
            raise ValueError(f"cell: expected one of {', '.join(CELLS)}, got {cell!r}")
        sizes = {"dim": dim, "num_mels": num_mels, "hidden": hidden, "layers": layers, "stride": stride}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name}: expected 1 or more, got {value}")
        self.config = {**sizes, "cell": cell, "bidirectional": bidirectional, "dropout": dropout}
        self.dim = dim
        self.num_mels = num_mels
        self.stride = stride
        # Two strides wide and one more: every frame is seen, and step t stands around frame t * stride.
        self.stem = nn.Conv1d(num_mels, hidden, 2 * stride + 1, stride, stride)
        self.stem_norm = nn.LayerNorm(hidden)
        width = hidden * (2 if bidirectional else 1)
        self.layers = nn.ModuleList(
            _Layer(cell, width if i else hidden, hidden, bidirectional) for i in range(layers)
        )
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(width, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        """Encode log-mel frames (B, T, num_mels); ``mask`` (B, T) says which are there."""
        if not x.is_floating_point():
            raise TypeError(f"audio: expected a floating-point tensor, got {x.dtype}")
        if x.dim() != 3 or x.shape[2] != self.num_mels:
            raise ValueError(f"audio: expected shape (B, T, {self.num_mels}), got {tuple(x.shape)}")
        check_mask(mask, x.shape[0], x.shape[1])
        turned = None
        if mask is not None:
            x = without_padding(x, mask)
            mask = mask[:, :: self.stride]
            steps = torch.arange(mask.shape[1], device=mask.device)
            lengths = torch.where(mask, steps + 1, 0).amax(1, keepdim=True)
            turned = torch.where(steps < lengths, lengths - 1 - steps, steps)
        y = self.stem(x.transpose(1, 2)).transpose(1, 2)
        y = F.gelu(self.stem_norm(y))
        for i, layer in enumerate(self.layers):
            y = self._run(layer, self.dropout(y) if i else y, turned)
        return Features(self.norm(self.project(y)), mask)
