"""Models of Hugging Face transformers as encoders of text, video and sound."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcore.errors import UnsupportedError
from mmcore.models.features import Encoder, Features, check_mask, without_padding

__all__ = ["TransformersEncoder", "from_transformers"]


class TransformersEncoder(Encoder):
    """A model of Hugging Face transformers; :func:`from_transformers` says what it takes and gives.

    Parameters
    ----------
    model : transformers.PreTrainedModel or mapping
        A mapping is what ``config["model"]`` was: the class, and the settings it is made with.
    dim : int, optional
        Width of the features; None: the model's own settings say it.
    """

    def __init__(self, model: Any, dim: int | None = None) -> None:
        super().__init__()
        if isinstance(model, Mapping):
            model = _made(model)
        if not isinstance(model, nn.Module) or not hasattr(model, "main_input_name"):
            raise TypeError(f"model: expected one of transformers, got {type(model).__name__}")
        settings: Any = model.config
        if settings.is_encoder_decoder and hasattr(model, "get_encoder"):
            model = model.get_encoder()  # type: ignore[operator]
        self.input, self._encode = self._kind(model, settings)
        width = dim if dim is not None else _width(settings)
        if width is None:
            raise ValueError(f"dim: {type(model).__name__}'s settings do not say its width; give it")
        self.dim = width
        self.config = {"model": _described(model), "dim": width}
        self.model = model

    def _kind(
        self, model: nn.Module, settings: Any
    ) -> tuple[str, Callable[[Tensor, Tensor | None], Features]]:
        """What goes in, and which method takes it."""
        kind, name = settings.model_type, model.main_input_name
        if kind == "videomae":
            return "video", self._video
        if kind == "whisper":
            return "log-mel", self._whisper
        if kind == "audio-spectrogram-transformer":
            return "log-mel", self._spectrogram_patches
        if name == "input_ids":
            return "text", self._text
        if name == "pixel_values" and not hasattr(settings, "num_frames"):
            return "frames", self._frames
        if name == "input_values" and hasattr(settings, "conv_stride"):
            return "waveform", self._waveform
        raise UnsupportedError(
            f"model: no adapter for {type(model).__name__} ({kind}, which takes {name}); wrap it in a module"
            " with a dim whose forward(x, mask) gives mmcore.models.Features"
        )

    def gradient_checkpointing(self, enabled: bool = True) -> Self:
        """As :class:`Encoder` has it, by the model's own checkpointing."""
        model: Any = self.model
        if not model.supports_gradient_checkpointing:
            raise UnsupportedError(f"{type(model).__name__} of transformers has no gradient checkpointing")
        # The second names are those of transformers before 5.
        names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
        if enabled:
            getattr(model, next(n for n in names if hasattr(model, n)))({"use_reentrant": False})
        else:
            off = [n.replace("enable", "disable") for n in names]
            getattr(model, next(n for n in off if hasattr(model, n)))()
        self.checkpointing = bool(enabled)
        return self

    def extra_repr(self) -> str:
        """What goes in, and the features' width."""
        return f"{self.input} -> {self.dim}"

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        """Encode; ``mask`` (B, T) says which frames, samples or tokens are there."""
        dims = {"text": 2, "waveform": 2, "log-mel": 3, "video": 5, "frames": 5}[self.input]
        if x.dim() != dims:
            raise ValueError(f"{self.input}: expected {dims} dimensions, got shape {tuple(x.shape)}")
        check_mask(mask, x.shape[0], x.shape[1])
        return self._encode(x, mask)

    def _text(self, ids: Tensor, mask: Tensor | None) -> Features:
        attention = None if mask is None else _never_empty(mask).long()
        return Features(self.model(input_ids=ids, attention_mask=attention).last_hidden_state, mask)

    def _frames(self, video: Tensor, mask: Tensor | None) -> Features:
        found = self.model(pixel_values=without_padding(video, mask).flatten(0, 1))
        pooled = getattr(found, "pooler_output", None)
        y = found.last_hidden_state.mean(1) if pooled is None else pooled.flatten(1)
        return Features(y.view(*video.shape[:2], -1), mask)

    def _video(self, video: Tensor, mask: Tensor | None) -> Features:
        settings: Any = self.model.config
        if video.shape[1] != settings.num_frames:
            raise ValueError(f"video: expected {settings.num_frames} frames, got {video.shape[1]}")
        tokens = self.model(pixel_values=without_padding(video, mask)).last_hidden_state
        y = tokens.unflatten(1, (settings.num_frames // settings.tubelet_size, -1)).mean(2)
        if mask is not None:
            mask = mask.view(len(mask), -1, settings.tubelet_size).all(2)
        return Features(y, mask)

    def _waveform(self, samples: Tensor, mask: Tensor | None) -> Features:
        settings: Any = self.model.config
        if mask is None:
            return Features(self.model(input_values=samples).last_hidden_state)
        samples = without_padding(samples, mask)
        lengths, steps = mask.sum(1), samples.shape[1]
        for kernel, stride in zip(settings.conv_kernel, settings.conv_stride, strict=True):
            lengths = (lengths - kernel).div(stride, rounding_mode="floor") + 1
            steps = (steps - kernel) // stride + 1
        there = torch.arange(steps, device=mask.device) < lengths[:, None]
        attention = None
        if settings.feat_extract_norm == "layer":
            # A row too short for one feature attends to all of it, as attention to nothing would be NaN.
            attention = (mask | ~there.any(1, keepdim=True)).long()
        # Models with a group norm were trained on padded samples without a mask.
        y = self.model(input_values=samples, attention_mask=attention).last_hidden_state
        return Features(y, there)

    def _whisper(self, mel: Tensor, mask: Tensor | None) -> Features:
        model: Any = self.model
        frames = mel.shape[1]
        most = 2 * model.config.max_source_positions
        if frames > most:
            raise ValueError(f"log-mel: {frames} frames are more than the {most} that the model takes")
        if mask is not None:
            quiet = mel.masked_fill(~mask[..., None], torch.inf).amin((1, 2), keepdim=True)
            mel = torch.where(mask[..., None], mel, torch.where(quiet.isfinite(), quiet, 0.0))
        # What Whisper's extractor gives for silence: the floor, 8 below the loudest, which is the minimum.
        floor = mel.amin((1, 2), keepdim=True)
        padded = torch.cat([mel, floor.expand(-1, most - frames, mel.shape[2])], 1)
        y = model(padded.transpose(1, 2)).last_hidden_state
        return Features(y[:, : (frames + 1) // 2], None if mask is None else mask[:, ::2])

    def _spectrogram_patches(self, mel: Tensor, mask: Tensor | None) -> Features:
        s: Any = self.model.config
        frames = mel.shape[1]
        if frames > s.max_length:
            raise ValueError(f"log-mel: {frames} frames are more than the model's {s.max_length}")
        mel = without_padding(mel, mask)
        tokens = self.model(input_values=F.pad(mel, (0, 0, 0, s.max_length - frames))).last_hidden_state
        bands = (s.num_mel_bins - s.patch_size) // s.frequency_stride + 1
        # Two tokens of the whole first; then all times of the lowest band, of the next, ...
        y = tokens[:, 2:].unflatten(1, (bands, -1)).mean(1)
        steps = min(y.shape[1], -(-frames // s.time_stride))
        return Features(y[:, :steps], None if mask is None else mask[:, :: s.time_stride][:, :steps])


def from_transformers(model: Any, dim: int | None = None) -> TransformersEncoder:
    """Encode a modality with a model of Hugging Face transformers.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        What it is decides what goes in:

        - text models (BERT, ...): ids (B, L);
        - vision models (ViT, CLIP's vision model, ResNet, ...): video (B, T, C, H, W), each frame by itself,
          its feature the model's pooled output, or else the mean of its last layer;
        - VideoMAE: video of as many frames as it was made for; a feature for each tubelet's time;
        - Wav2Vec2, HuBERT, WavLM: samples (B, N), ``clip_inputs(waveform=True)``;
        - Whisper (its encoder is taken) and AST: log-mel frames (B, T, mels), padded to the model's length,
          so that what is behind a clip's end is silence for the model.
    dim : int, optional
        Width of the features, where the model's settings do not say it.

    Raises
    ------
    TypeError
        If it is no model of transformers.
    UnsupportedError
        For kinds of models that are not listed.

    Notes
    -----
    Inputs should be normalised as the model's own processor does it: ``FrameTransform(mean=, std=)``,
    ``LogMelSettings.whisper()`` or ``.ast()``, and the processor's tokenizer as ``text={"tokenizer": ...}``.

    Examples
    --------
    >>> from transformers import AutoModel                                              # doctest: +SKIP
    >>> bert = from_transformers(AutoModel.from_pretrained("bert-base-uncased"))        # doctest: +SKIP
    """
    return TransformersEncoder(model, dim)


def _never_empty(mask: Tensor) -> Tensor:
    """The mask, with rows that have nothing made to have everything: attention to nothing is NaN."""
    return mask | ~mask.any(1, keepdim=True)


def _width(settings: Any) -> int | None:
    for name in ("hidden_size", "d_model", "dim"):
        if isinstance(value := getattr(settings, name, None), int):
            return value
    widths = getattr(settings, "hidden_sizes", None)
    return int(widths[-1]) if widths else None


def _described(model: nn.Module) -> dict[str, Any]:
    settings: Any = model.config
    return {
        "module": type(model).__module__,
        "name": type(model).__name__,
        "settings": json.loads(settings.to_json_string(use_diff=False)),
    }


def _made(description: Mapping[str, Any]) -> nn.Module:
    try:
        import transformers
    except ImportError as error:
        raise ImportError("transformers is not installed: pip install 'mmcore[models]'") from error
    module, name = description["module"], description["name"]
    # A file names this class: nothing but a model of transformers is made of it.
    if not module.startswith("transformers.models."):
        raise UnsupportedError(f"{module}.{name}: expected a class of transformers.models")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UnsupportedError(
            f"{module}.{name}: not in transformers {transformers.__version__}: {error}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise UnsupportedError(f"{module}.{name}: expected a model")
    settings: Any = found.config_class
    made: nn.Module = found(settings.from_dict(dict(description["settings"])))
    return made
