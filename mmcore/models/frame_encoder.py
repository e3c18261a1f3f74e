"""Any network for pictures as an encoder of video: timm's by name, torchvision's, your own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from mmcore.models.features import Encoder, Features, check_mask, without_padding

__all__ = ["FrameEncoder", "TimmModel", "from_timm"]


class FrameEncoder(Encoder):
    """Frames of a video through a network for pictures, each by itself.

    Parameters
    ----------
    module : nn.Module
        Pictures (N, C, H, W) to vectors (N, dim); what has more dimensions is averaged over them, as (N, dim,
        h, w) is.
    dim : int, optional
        Width of the vectors. None: the module's ``num_features`` (as timm has it) or ``dim``.

    Notes
    -----
    :func:`mmcore.models.save` writes it if the module has a ``config`` itself; :func:`from_timm` makes one
    that does.

    Examples
    --------
    A torchvision network whose last layer is taken off::

        resnet = torchvision.models.resnet18()
        resnet.fc = torch.nn.Identity()
        encoder = FrameEncoder(resnet, 512)
    """

    def __init__(self, module: nn.Module, dim: int | None = None) -> None:
        super().__init__()
        if dim is None:
            dim = getattr(module, "num_features", getattr(module, "dim", None))
        if not isinstance(dim, int):
            raise ValueError(f"dim: {type(module).__name__} does not say the width of its vectors; give it")
        self.dim = dim
        self.config = {"module": module, "dim": dim}
        self.module = module

    def gradient_checkpointing(self, enabled: bool = True) -> Self:
        """As :class:`Encoder` has it; timm's models checkpoint their own blocks, others as a whole."""
        own = getattr(self.module, "set_grad_checkpointing", None)
        if own is None:
            return super().gradient_checkpointing(enabled)
        own(enabled)
        return self

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        """Encode video (B, T, C, H, W); ``mask`` (B, T) says which frames are there."""
        if x.dim() != 5:
            raise ValueError(f"video: expected shape (B, T, C, H, W), got {tuple(x.shape)}")
        check_mask(mask, x.shape[0], x.shape[1])
        y = self._run(self.module, without_padding(x, mask).flatten(0, 1))
        if not isinstance(y, Tensor) or y.dim() < 2 or y.shape[1] != self.dim:
            shape = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f"module: expected vectors (N, {self.dim}), got {shape}")
        if y.dim() > 2:
            y = y.flatten(2).mean(2)
        return Features(y.view(*x.shape[:2], self.dim), mask)


class TimmModel(nn.Module):
    """A timm model without its classifier: pictures (N, C, H, W) to vectors (N, num_features)."""

    num_features: int

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any] | None = None,
        *,
        pretrained: bool = False,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.config = {"name": name, "options": dict(options or {})}
        if model is None:
            model = _timm().create_model(name, pretrained=pretrained, num_classes=0, **(options or {}))
        self.model = model
        self.num_features = int(model.num_features)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Encode pictures."""
        return self.model(x)  # type: ignore[no-any-return]

    def set_grad_checkpointing(self, enabled: bool = True) -> None:
        """As timm's models have it."""
        self.model.set_grad_checkpointing(enabled)  # type: ignore[operator]


def from_timm(model: str | nn.Module, *, pretrained: bool = False, **options: Any) -> FrameEncoder:
    """Encode frames with a model of timm, whose classifier is taken off.

    Parameters
    ----------
    model : str or nn.Module
        A name for ``timm.create_model``, or a model that it made, which is changed.
    pretrained : bool
        Load timm's weights, for a name.
    **options
        Further arguments of ``timm.create_model``, for a name; numbers and strings, if it is to be saved.

    Raises
    ------
    ImportError
        If timm is not installed.

    Notes
    -----
    Frames should be normalised as the model's weights want it: ``FrameTransform(mean=, std=)``.

    Examples
    --------
    >>> from mmcore.models import from_timm
    >>> encoder = from_timm("resnet18", pretrained=True)                                # doctest: +SKIP
    """
    if isinstance(model, str):
        return FrameEncoder(TimmModel(model, options, pretrained=pretrained))
    if pretrained or options:
        raise ValueError("from_timm: pretrained and other options are for a name, not for a model")
    for wanted in ("reset_classifier", "pretrained_cfg", "num_features"):
        if not hasattr(model, wanted):
            raise TypeError(f"model: expected one of timm, got {type(model).__name__} without {wanted}")
    model.reset_classifier(0)  # type: ignore[operator]
    name = str(model.pretrained_cfg["architecture"])  # type: ignore[index]
    wrapped = TimmModel(name, model=model)
    with torch.device("meta"):
        again = _timm().create_model(name, num_classes=0)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (model, again)]
    if shapes[0] != shapes[1]:
        # Made with options that it does not tell: save() must not promise to make it again.
        wrapped.config = None  # type: ignore[assignment]
    return FrameEncoder(wrapped)


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ImportError("timm is not installed: pip install 'mmcore[models]'") from error
    return timm
