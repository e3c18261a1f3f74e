"""The whole network: encoders, fusion, heads and their losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from mmcore.models.cnn import CNN
from mmcore.models.features import Encoder, Features
from mmcore.models.fusion import Contributions, Fusion
from mmcore.models.heads import ClassificationHead, Head, RegressionHead
from mmcore.models.rnn import RNN
from mmcore.models.transformer import Transformer
from mmcore.nn import GradientWeighting, MultiTaskLoss

__all__ = ["MultiTaskNet"]

_ENCODERS: Mapping[str, type[Encoder]] = {"video": CNN, "audio": RNN, "text": Transformer}
_CLASSES = ("cross_entropy", "bce_with_logits", "kl_distillation")


class MultiTaskNet(nn.Module):
    """Encoders of several modalities, their fusion, and heads with a loss each.

    Parameters
    ----------
    encoders : mapping of str to nn.Module
        By the modalities' names: modules with a ``dim`` whose ``forward(x, mask)`` gives :class:`Features`.
    fusion : Fusion
        Of modalities with the same names, in the same order.
    heads : mapping of str to nn.Module
        By the tasks' names, of which none may be "features": ``forward(x, mask)`` of what the fusion gives,
        (B, dim) or (B, T, dim).
    loss : mmcore.nn.MultiTaskLoss
        With tasks of the heads' names.

    Examples
    --------
    >>> import mmcore, torch
    >>> from mmcore.models import MultiTaskNet
    >>> loss = mmcore.nn.MultiTaskLoss({"kind": mmcore.Task.cross_entropy(), "place": mmcore.Task.mse()})
    >>> net = MultiTaskNet.preset("tiny", {"kind": 10, "place": 2}, loss)
    >>> outputs = net({"video": torch.rand(4, 8, 3, 64, 64), "audio": torch.randn(4, 100, 80)})  # no text
    >>> outputs["kind"].shape, outputs["place"].shape
    (torch.Size([4, 10]), torch.Size([4, 2]))
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        fusion: Fusion,
        heads: Mapping[str, nn.Module],
        loss: MultiTaskLoss,
    ) -> None:
        super().__init__()
        for name, encoder in encoders.items():
            if not isinstance(getattr(encoder, "dim", None), int):
                raise TypeError(
                    f"encoders[{name!r}]: expected a module with an int attribute dim, got"
                    f" {type(encoder).__name__}; from_transformers, from_timm and FrameEncoder make one"
                )
        dims = {name: int(encoder.dim) for name, encoder in encoders.items()}  # type: ignore[arg-type]
        wanted = dict(zip(fusion.names, fusion.fusion.in_dims, strict=True))
        if list(dims.items()) != list(wanted.items()):
            raise ValueError(f"fusion: expected the encoders' names and widths, {dims}, got {wanted}")
        if loss.names is None or set(loss.names) != set(heads):
            raise ValueError(
                f"loss: expected tasks named {', '.join(heads)}, as the heads, got"
                f" {', '.join(loss.names or ('none with names',))}"
            )
        if "features" in heads:
            raise ValueError(
                "heads: 'features' is what forward calls the heads' input; name the task otherwise"
            )
        self.encoders = nn.ModuleDict(encoders)
        self.fusion = fusion
        self.heads = nn.ModuleDict(heads)
        self.criterion = loss

    @property
    def config(self) -> dict[str, Any]:
        """Keyword arguments that make the network again."""
        return {
            "encoders": dict(self.encoders.items()),
            "fusion": self.fusion,
            "heads": dict(self.heads.items()),
            "loss": self.criterion,
        }

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the encoders: the columns of ``available``."""
        return tuple(self.encoders)

    @classmethod
    def preset(
        cls,
        name: str,
        outputs: Mapping[str, int],
        loss: MultiTaskLoss,
        *,
        modalities: Sequence[str] = ("video", "audio", "text"),
        num_mels: int = 80,
        vocabulary: int = 259,
        hidden: int | None = None,
        **fusion: Any,
    ) -> Self:
        """Make a network of the encoders' presets.

        Parameters
        ----------
        name : {"tiny", "base"}
        outputs : mapping of str to int
            Width of each task's output. Tasks over classes get a :class:`ClassificationHead`, the others a
            :class:`RegressionHead`.
        loss : mmcore.nn.MultiTaskLoss
        modalities : sequence of str
            Of "video" (:class:`CNN`), "audio" (:class:`RNN`) and "text" (:class:`Transformer`).
        num_mels, vocabulary : int
            Of the spectrograms and the token ids.
        hidden : int, optional
            Width of the layer in each head; None: the fused features' width.
        **fusion
            Options of :class:`Fusion`, such as ``reference`` and ``modality_dropout``.
        """
        own: dict[str, dict[str, Any]] = {
            "video": {},
            "audio": {"num_mels": num_mels},
            "text": {"vocabulary": vocabulary},
        }
        unknown = [m for m in modalities if m not in _ENCODERS]
        if unknown or not modalities:
            raise ValueError(f"modalities: expected some of {', '.join(_ENCODERS)}, got {unknown or 'none'}")
        tasks = loss.tasks
        if not isinstance(tasks, dict) or set(tasks) != set(outputs):
            raise ValueError(f"loss: expected tasks named {', '.join(outputs)}, as outputs")
        encoders = {m: _ENCODERS[m].preset(name, **own[m]) for m in modalities}
        fused = Fusion.preset(name, dims={m: e.dim for m, e in encoders.items()}, **fusion)
        heads: dict[str, Head] = {}
        for task, width in outputs.items():
            kind = ClassificationHead if tasks[task].kind in _CLASSES else RegressionHead
            heads[task] = kind(fused.dim, width, hidden=hidden or fused.dim)
        return cls(encoders, fused, heads, loss)

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
        available: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Outputs of all heads.

        Parameters
        ----------
        inputs : mapping of str to Tensor
            By modality, what its encoder takes. A modality left out is missing for all samples.
        masks : mapping of str to Tensor, optional
            By modality, (B, T) bool: which steps of the input are there; none: all.
        available : Tensor, optional
            (B, M) bool, in the order of ``modalities``: which modality each sample has.

        Returns
        -------
        dict of str to Tensor
            By task. If the loss balances gradients also "features", what the heads read.
        """
        fused = self.fusion(self.encode(inputs, masks), available)
        x, mask = fused if isinstance(fused, Features) else (fused, None)
        outputs = {name: head(x, mask) for name, head in self.heads.items()}
        if isinstance(self.criterion.weighting, GradientWeighting):
            outputs["features"] = x
        return outputs

    def encode(
        self, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None
    ) -> dict[str, Features]:
        """Features of each modality that the inputs have."""
        for what, given in (("inputs", inputs), ("masks", masks or {})):
            unknown = [name for name in given if name not in self.encoders]
            if unknown:
                raise ValueError(
                    f"{what}: expected some of {', '.join(self.encoders)}, got {', '.join(unknown)}"
                )
        masks = masks or {}
        return {
            name: encoder(inputs[name], masks.get(name))
            for name, encoder in self.encoders.items()
            if name in inputs
        }

    def loss(
        self,
        outputs: Mapping[str, Tensor],
        targets: Mapping[str, Tensor | None],
        masks: Mapping[str, Tensor | None] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, and each task's own loss, unweighted.

        Parameters
        ----------
        outputs : mapping of str to Tensor
            What ``forward`` gave.
        targets, masks : mapping of str to Tensor
            As :func:`mmcore.multi_task_loss` takes them; masks say which labels are there.
        """
        balanced: dict[str, Any] = {}
        if "features" in outputs:
            balanced = {"features": outputs["features"], "heads": self.heads}
            outputs = {name: outputs[name] for name in self.heads}
        total, losses = self.criterion(outputs, targets, masks, **balanced)
        return total, losses

    def contributions(
        self,
        inputs: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
        available: Tensor | None = None,
    ) -> Contributions:
        """Share of each modality in the fused features, of each sample and, with a reference, of each step.

        See :meth:`Fusion.contributions`; call it in evaluation mode.
        """
        with torch.no_grad():
            return self.fusion.contributions(self.encode(inputs, masks), available)

    def gradient_checkpointing(self, enabled: bool = True) -> Self:
        """Switch it on or off for all encoders; see :meth:`Encoder.gradient_checkpointing`."""
        for name, encoder in self.encoders.items():
            switch = getattr(encoder, "gradient_checkpointing", None)
            if not callable(switch):
                raise TypeError(
                    f"encoders[{name!r}]: {type(encoder).__name__} has no gradient_checkpointing()"
                )
            switch(enabled)
        return self
