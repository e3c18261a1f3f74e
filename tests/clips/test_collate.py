"""Batches of clips: padding, masks, lengths, devices and DataLoader."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from media import write_video
from torch.utils.data import DataLoader, Dataset

import mmcore
from mmcore import DecodeError, FrameBatch, FrameTransform, TextSegment
from mmcore.clips import Clip, ClipBatch, Spectrogram, collate_clips
from mmcore.decoding.audio_samples import AudioSamples
from mmcore.tokenizers import ByteTokenizer, tokenize_segments

ALL = ("video", "audio", "text")


def frames(count: int, layout: str = "NCHW", size: tuple[int, int] = (4, 6)) -> FrameBatch:
    shape = [{"N": count, "C": 3, "H": size[0], "W": size[1]}[d] for d in layout]
    pts = torch.arange(count, dtype=torch.float64) / 4
    return FrameBatch(torch.rand(shape) + 1, pts, torch.full_like(pts, 0.25))


def clip(
    video: FrameBatch | None = None,
    samples: int | None = None,
    words: str | None = None,
    mels: int | None = None,
    **changes: Any,
) -> Clip:
    audio = None if samples is None else AudioSamples(torch.rand(2, samples) + 1, 0.5, samples / 8, 8)
    text = None if words is None else (TextSegment(0.0, 1.0, words),)
    return Clip(
        0.0, 2.0, ALL, torch.tensor([[video is not None, audio is not None, text is not None]]),
        video=video, audio=audio, text=text,
        spectrogram=None if mels is None else Spectrogram(torch.rand(5, mels) + 1, 0.0, 0.1),
        tokens=None if text is None else tokenize_segments(text, ByteTokenizer()), **changes,
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "CNHW"])
def test_everything_is_padded_behind(layout: str) -> None:
    clips = [
        clip(frames(3, layout), 16, "abc", 7, layout=layout),
        clip(None, 9, None, 3, layout="NHWC"),
        clip(frames(5, layout), None, "defgh", layout=layout),
        clip(frames(0, layout), 0, "", 0, layout=layout),
    ]
    batch = collate_clips(clips)
    dim = layout.index("N")
    assert len(batch) == 4
    assert batch.video is not None
    assert batch.video_mask is not None
    assert batch.video.shape[1 + dim] == 5
    assert batch.video_mask.sum(1).tolist() == [3, 0, 5, 0]
    assert batch.audio is not None
    assert batch.audio.shape == (4, 2, 16)
    assert batch.audio_lengths is not None
    assert batch.audio_lengths.tolist() == [16, 9, 0, 0]
    assert batch.spectrogram is not None
    assert batch.spectrogram.shape == (4, 5, 7)
    assert batch.spectrogram_lengths is not None
    assert batch.spectrogram_lengths.tolist() == [7, 3, 0, 0]
    assert batch.tokens is not None
    assert batch.token_mask is not None
    assert batch.tokens.shape == (4, 5)
    assert batch.token_mask.sum(1).tolist() == [3, 0, 5, 0]
    assert batch.mask.tolist() == [[True] * 3, [False, True, False], [True, False, True], [True] * 3]
    for b, one in enumerate(clips):
        if one.video is not None:
            kept = batch.video[b].narrow(dim, 0, len(one.video))
            assert torch.equal(kept, one.video.data)
            assert (batch.video[b].narrow(dim, len(one.video), 5 - len(one.video)) == 0).all()
        if one.audio is not None:
            assert torch.equal(batch.audio[b, :, : len(one.audio)], one.audio.data)
            assert (batch.audio[b, :, len(one.audio) :] == 0).all()
    assert batch.text == tuple(one.text for one in clips)
    assert batch.start.tolist() == [0.0] * 4


def test_patches_and_spectrograms_that_begin_with_time() -> None:
    layout = mmcore.patches(2, 1, 1)
    pts = torch.arange(2, dtype=torch.float64)
    short = FrameBatch(torch.rand(12, 12), pts, pts)
    long = FrameBatch(torch.rand(18, 12), torch.arange(3.0).double(), torch.ones(3).double())
    clips = [
        clip(short, layout=layout), clip(long, layout=mmcore.patches(2, 1, 1)),
    ]  # fmt: skip
    for one, count in zip(clips, (4, 6), strict=True):
        object.__setattr__(one, "spectrogram", Spectrogram(torch.rand(count, 5), 0.0, 0.1, 0))
    batch = collate_clips(clips)
    assert batch.video is not None
    assert batch.video.shape == (2, 18, 12)
    assert batch.video_mask is not None
    assert batch.video_mask.tolist() == [[True, True, False], [True] * 3]
    assert batch.spectrogram is not None
    assert batch.spectrogram.shape == (2, 6, 5)
    assert batch.align(2).mask.shape == (2, 4, 3)


def test_nothing_there() -> None:
    batch = collate_clips([clip(), clip()])
    assert batch.video is None
    assert batch.audio is None
    assert batch.tokens is None
    assert not batch.mask.any()
    assert not batch.align(3).mask.any()


def test_valid_frames_and_errors_are_kept() -> None:
    valid = torch.tensor([True, False, True])
    f = frames(3)
    broken = clip(
        FrameBatch(f.data, f.pts_seconds, f.duration_seconds, valid),
        errors={"audio": DecodeError("x: broken")},
    )
    batch = collate_clips([broken, clip(frames(2))])
    assert batch.video_mask is not None
    assert batch.video_mask.tolist() == [[True, False, True], [True, True, False]]
    assert str(batch.errors[0]["audio"]) == "x: broken"
    assert batch.errors[1] == {}


def test_batch_holds_its_tensors_once() -> None:
    batch = collate_clips([clip(frames(30, size=(32, 32)), 4000, "a")] * 4)
    assert batch.video is not None
    assert len(pickle.dumps(batch)) < batch.video.numel() * 4 * 1.3
    assert batch.clips[0].video is not None
    assert batch.clips[0].video.data.shape == (30, 3, 32, 32)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (clip(frames(3, size=(4, 8))), r"size of the pictures.*clip 0 is \(3, 4, 6\).*clip 1 is \(3, 4, 8\)"),
        (clip(frames(3, "NHWC"), layout="NHWC"), "layout of the pictures"),
        (Clip(0.0, 1.0, ("video",), torch.tensor([[False]])), "modalities"),
    ],
)
def test_clips_that_do_not_fit(second: Clip, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collate_clips([clip(frames(3)), second])


def test_sounds_that_do_not_fit() -> None:
    def with_audio(audio: AudioSamples) -> Clip:
        return Clip(0.0, 1.0, ALL, torch.tensor([[False, True, False]]), audio=audio)

    stereo = with_audio(AudioSamples(torch.rand(2, 4), 0.0, 0.5, 8))
    with pytest.raises(ValueError, match="sample rate"):
        collate_clips([stereo, with_audio(AudioSamples(torch.rand(2, 4), 0.0, 0.5, 16))])
    with pytest.raises(ValueError, match="number of channels"):
        collate_clips([stereo, with_audio(AudioSamples(torch.rand(1, 4), 0.0, 0.5, 8))])


def test_refusals() -> None:
    with pytest.raises(ValueError, match="expected 1 or more"):
        collate_clips([])
    with pytest.raises(TypeError, match="a str in it"):
        collate_clips([clip(), "x"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="got int"):
        collate_clips(3)  # type: ignore[arg-type]


def test_to_casts_what_is_floating() -> None:
    one = clip(frames(3), 16, "abc", 7)
    half = one.to(dtype=torch.bfloat16)
    assert half.video is not None
    assert half.audio is not None
    assert half.tokens is not None
    assert half.video.data.dtype == half.audio.data.dtype == torch.bfloat16
    assert half.video.pts_seconds.dtype == torch.float64
    assert half.mask.dtype == torch.bool
    assert half.tokens.ids.dtype == torch.int64
    assert one.video is not None
    assert one.video.data.dtype == torch.float32
    gone = one.to("meta")
    assert gone.video is not None
    assert gone.video.data.device.type == gone.mask.device.type == "meta"
    assert gone.video.pts_seconds.device.type == "cpu"
    batch = collate_clips([one, clip(frames(2))]).to(dtype=torch.float16)
    assert batch.video is not None
    assert batch.video.dtype == torch.float16
    assert batch.start.dtype == torch.float64
    assert batch.to("meta").mask.device.type == "meta"
    # empty parts are moved like others
    assert clip(frames(0), 0).to("meta").video.data.device.type == "meta"  # type: ignore[union-attr]


def test_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an accelerator: which tensors DataLoader's pinning would reach."""
    from torch.utils.data._utils.pin_memory import pin_memory

    pinned: list[int] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.numel())
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    batch = collate_clips([clip(frames(3), 16, "abc", 7), clip(frames(2))])
    assert isinstance(pin_memory(batch), ClipBatch)
    tensors = (
        batch.mask, batch.video, batch.video_mask, batch.audio, batch.audio_lengths, batch.spectrogram,
        batch.spectrogram_lengths, batch.tokens, batch.token_mask,
    )  # fmt: skip
    assert sorted(pinned) == sorted(t.numel() for t in tensors if t is not None)
    pinned.clear()
    assert isinstance(pin_memory(clip(frames(3), 16, "abc", 7)), Clip)
    assert sorted(pinned) == sorted([3, 3 * 3 * 4 * 6, 2 * 16, 5 * 7, 3])
    assert repr(batch).startswith("ClipBatch(2 clips, video (2, 3, 3, 4, 6), audio (2, 2, 16)")


class Clips(Dataset[Clip]):
    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> Clip:
        transform = FrameTransform(resize=(16, 24))
        return mmcore.read_clip(
            self.path, 0.1 * i, 0.4 + 0.2 * i, audio=False, video={"transform": transform}, seed=i
        )


@pytest.mark.parametrize("workers", [0, 1])
def test_data_loader(clip: Path, workers: int) -> None:
    loader: DataLoader[Any] = DataLoader(
        Clips(clip), batch_size=3, collate_fn=collate_clips, num_workers=workers
    )
    batches = list(loader)
    assert [type(b) for b in batches] == [ClipBatch] * 2
    lengths = []
    for batch in batches:
        assert batch.video_mask is not None
        lengths += batch.video_mask.sum(1).tolist()
        assert batch.mask.tolist() == [[True, False]] * 3
    direct = [len(Clips(clip)[i].video) for i in range(6)]  # type: ignore[arg-type]
    assert lengths == direct
    assert len(set(lengths)) > 2


def test_written_frames_are_those_of_the_decoder(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", num_frames=20)
    batch = collate_clips([mmcore.read_clip(path, 0.2, 0.5, audio=None, text=None)])
    decoder = mmcore.VideoDecoder(path)
    assert batch.video is not None
    assert torch.equal(batch.video[0], decoder.get_frames_played_in_range(0.2, 0.5).data)
