"""The trained model at work: embeddings of sentences, pictures, sounds and clips, from tensors or files."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import mmcore
from mmcore.errors import DecodeError, MMCoreError
from mmcore.models import clip_inputs
from mmcore.models import load as load_model

from .model import RetrievalModel
from .pairs import CLIP_SECONDS, MEL, NUM_FRAMES, SIZE

__all__ = ["Retriever", "Window", "load"]

_BATCH = 64
_MODALITIES = ("video", "audio")


class Window(NamedTuple):
    """The embedding of a stretch of a file."""

    start: float
    stop: float
    modalities: tuple[str, ...]
    """Those of "video" and "audio" that it has."""
    embedding: Tensor
    """(D,) float32 of length 1."""


class Retriever:
    """Embeds sentences, pictures, sounds and clips in one space, where what belongs together is near.

    Made by :func:`load`. Embeddings are float32 of length 1, on the CPU: their inner product is the cosine.

    Parameters
    ----------
    model : RetrievalModel
        In evaluation mode.
    fingerprint : str
        Tells this model from others.
    folder : Path
        Where it was loaded from.
    device : str or torch.device

    Examples
    --------
    >>> from mmcore.recipes import retrieve
    >>> retriever = retrieve.load("run")                                                # doctest: +SKIP
    >>> text = retriever.embed_text("a red circle moving left")                         # doctest: +SKIP
    >>> text @ retriever.embed_clip("clip.mp4")                                         # doctest: +SKIP
    """

    def __init__(
        self,
        model: RetrievalModel,
        fingerprint: str,
        folder: Path,
        device: str | torch.device = "cpu",
    ) -> None:
        self.model = model
        self.fingerprint = fingerprint
        self.folder = folder
        self.device = torch.device(device)

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self.model.dim

    def unknown_words(self, text: str) -> list[str]:
        """Words of a text that the model never saw; it ignores what they mean."""
        return self.model.vocabulary.unknown(text)

    @torch.inference_mode()
    def embed_text(self, text: str | Sequence[str]) -> Tensor:
        """Embedding (D,) of a text, or (N, D) of several.

        Raises
        ------
        ValueError
            For a text without words.
        """
        texts = [text] if isinstance(text, str) else list(text)
        parts = [torch.empty(0, self.dim)]
        for begin in range(0, len(texts), _BATCH):
            words, mask = self.model.vocabulary.encode(texts[begin : begin + _BATCH])
            parts.append(self.model.embed_text(words.to(self.device), mask.to(self.device)).cpu())
        found = torch.cat(parts)
        return found[0] if isinstance(text, str) else found

    @torch.inference_mode()
    def embed_picture(self, picture: Any) -> Tensor:
        """Embedding (D,) of a picture.

        Parameters
        ----------
        picture : path, PIL.Image.Image or Tensor
            A tensor is (3, H, W), uint8 RGB.

        Raises
        ------
        DecodeError
            If a file is missing or no picture.
        ImportError
            For a path, if Pillow is not installed.
        """
        if isinstance(picture, (str, os.PathLike)):
            picture = _open_picture(Path(picture))
        if not isinstance(picture, Tensor):
            picture = _pixels(picture)
        if picture.dim() != 3 or picture.shape[0] != 3 or picture.dtype != torch.uint8:
            raise ValueError(f"picture: expected uint8 (3, H, W), got {picture.dtype} {tuple(picture.shape)}")
        small = F.interpolate(
            picture[None].float() / 255, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False
        )
        features = self.model.encode({"video": small[None].to(self.device)})
        return self.model.embed(features)[0].cpu()

    @torch.inference_mode()
    def embed_sound(self, sound: Any, sample_rate: int | None = None) -> Tensor:
        """Embedding (D,) of a sound.

        Parameters
        ----------
        sound : path, AudioSamples or Tensor
            A tensor is (samples,) or (channels, samples), floating-point. Of more than 2.5 seconds, the mean
            of the embeddings of 2 seconds each.
        sample_rate : int, optional
            Of a tensor, 16000.

        Raises
        ------
        DecodeError
            If a file is missing or has no sound.
        ValueError, TypeError
            For samples of another rate, or none.
        """
        if isinstance(sound, (str, os.PathLike)):
            return _mean(list(self.windows(sound, modalities=("audio",))), sound)
        if isinstance(sound, mmcore.AudioSamples):
            sound, sample_rate = sound.data, sound.sample_rate
        if not isinstance(sound, Tensor) or not sound.is_floating_point():
            raise TypeError(f"sound: expected a path, AudioSamples or a floating-point tensor, got {sound!r}")
        if sample_rate != MEL.sample_rate:
            raise ValueError(
                f"sample_rate: expected {MEL.sample_rate}, got {sample_rate};"
                f" mmcore.AudioDecoder(source, sample_rate={MEL.sample_rate}) resamples"
            )
        wave = sound.float()
        wave = wave.mean(0) if wave.dim() == 2 else wave
        if wave.dim() != 1 or not wave.numel():
            raise ValueError(f"sound: expected (samples,) or (channels, samples), got {tuple(sound.shape)}")
        found = []
        for start, stop in _spans(0.0, len(wave) / MEL.sample_rate, CLIP_SECONDS, CLIP_SECONDS):
            part = wave[round(start * MEL.sample_rate) : round(stop * MEL.sample_rate)]
            mel = mmcore.log_mel(part, MEL.sample_rate, MEL)
            found.append(self.model.embed(self.model.encode({"audio": mel[None].to(self.device)}))[0].cpu())
        return F.normalize(torch.stack(found).mean(0), dim=0)

    def embed_clip(
        self, source: str | os.PathLike[str], start: float | None = None, stop: float | None = None
    ) -> Tensor:
        """Embedding (D,) of a file or a range of it in seconds; of a long one the mean over its windows.

        Raises
        ------
        DecodeError
            If the file is missing, or has neither pictures nor sound there.
        """
        return _mean(list(self.windows(source, start=start, stop=stop)), source)

    @torch.inference_mode()
    def windows(
        self,
        source: str | os.PathLike[str],
        *,
        window_seconds: float = CLIP_SECONDS,
        hop_seconds: float | None = None,
        start: float | None = None,
        stop: float | None = None,
        modalities: Sequence[str] = _MODALITIES,
    ) -> Iterator[Window]:
        """Embed a file piece by piece.

        Parameters
        ----------
        source : path
        window_seconds : float
            Length of a piece; the model was trained on 2 seconds. A file up to a quarter longer is one piece.
        hop_seconds : float, optional
            From one piece's start to the next one's; None: pieces touch. The last one ends with the file.
        start, stop : float, optional
            Only this range of the file.
        modalities : sequence of str
            Of "video" and "audio", what to look at.

        Yields
        ------
        Window
            Those with pictures or sound.

        Raises
        ------
        DecodeError
            If the file is missing or no media file. Damage of one stream costs only that.
        ValueError
            For lengths that are not positive, or a range outside of the file.
        """
        hop_seconds = window_seconds if hop_seconds is None else hop_seconds
        for name, value in (("window_seconds", window_seconds), ("hop_seconds", hop_seconds)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: expected more than 0 seconds, got {value}")
        first, last = _extent(Path(source))
        first = first if start is None else float(start)
        last = last if stop is None else float(stop)
        if not first < last:
            raise ValueError(f"start, stop: expected start < stop, got {first} and {last} of {source}")
        video = {
            "transform": mmcore.FrameTransform(resize=(SIZE, SIZE), dtype=torch.uint8),
            "num_frames": NUM_FRAMES,
        }
        spans = _spans(first, last, window_seconds, hop_seconds)
        with mmcore.clips.ClipReader(
            source,
            video=video if "video" in modalities else False,
            audio={"num_channels": 1, "log_mel": MEL} if "audio" in modalities else False,
            text=False,
        ) as reader:
            for begin in range(0, len(spans), _BATCH):
                clips = [reader.read(*span) for span in spans[begin : begin + _BATCH]]
                yield from self._embed_read([clip for clip in clips if clip.mask.any()])

    def _embed_read(self, clips: list[mmcore.Clip]) -> list[Window]:
        if not clips:
            return []
        batch = mmcore.collate_clips(clips)
        inputs, masks, available = clip_inputs(batch, _MODALITIES)
        features = self.model.encode(
            {name: x.to(self.device) for name, x in inputs.items()},
            {name: mask.to(self.device) for name, mask in masks.items()},
        )
        found = self.model.embed(features, available.to(self.device)).cpu()
        return [
            Window(
                clip.start,
                clip.stop,
                tuple(name for name, there in zip(_MODALITIES, row, strict=True) if there),
                one,
            )
            for clip, row, one in zip(clips, available.tolist(), found, strict=True)
        ]


def load(folder: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Retriever:
    """Load what :func:`mmcore.recipes.retrieve.train` left in its folder.

    Raises
    ------
    FileNotFoundError
        If there is no trained model.
    MMCoreError
        If its files are damaged, or hold another model.
    """
    path = Path(folder)
    model = load_model(path, classes={"RetrievalModel": RetrievalModel}, device=device)
    if not isinstance(model, RetrievalModel):
        raise MMCoreError(f"{path}: expected a model of the retrieve recipe, got {type(model).__name__}")
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        digest.update((path / name).read_bytes())
    return Retriever(model, digest.hexdigest()[:16], path, device)


def _spans(first: float, last: float, window: float, hop: float) -> list[tuple[float, float]]:
    """From when to when pieces last."""
    if last - first <= 1.25 * window:
        return [(first, last)]
    count = math.ceil((last - first - window) / hop - 1e-6) + 1
    starts = [first + i * hop for i in range(count - 1)] + [last - window]
    return [(start, start + window) for start in starts]


def _extent(path: Path) -> tuple[float, float]:
    """From when to when a file lasts, as its header says, else as its streams do."""
    import av

    from mmcore.decoding.source import Source

    with Source(path).open() as container:
        begin, duration = container.start_time, container.duration
        kinds = {stream.type for stream in container.streams}
    if duration is not None and duration > 0:
        start = max(0.0, (begin or 0) / av.time_base)
        return start, start + duration / av.time_base
    ends = [0.0]
    if "video" in kinds:
        with mmcore.VideoDecoder(path) as video:
            ends.append(video.metadata.end_stream_seconds or 0.0)
    if "audio" in kinds:
        with mmcore.AudioDecoder(path) as audio:
            ends.append(audio.end_stream_seconds)
    if max(ends) <= 0:
        raise DecodeError(f"{path}: has neither pictures nor sound")
    return 0.0, max(ends)


def _mean(windows: list[Window], source: Any) -> Tensor:
    if not windows:
        raise DecodeError(f"{source}: has neither pictures nor sound there")
    return F.normalize(torch.stack([window.embedding for window in windows]).mean(0), dim=0)


def _open_picture(path: Path) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("pictures are read with Pillow: pip install 'mmcore[cli]'") from error
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DecodeError(f"{path}: cannot be read as a picture: {error}") from error


def _pixels(picture: Any) -> Tensor:
    import numpy as np

    if not hasattr(picture, "convert"):
        raise TypeError(f"picture: expected a path, a PIL image or a tensor, got {type(picture).__name__}")
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
