"""Time maps: each step of a grid gets the feature of its time, for one clip and for padded batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mmcore
from mmcore import FrameBatch, TextSegment
from mmcore.clips import Clip, Spectrogram, collate_clips
from mmcore.clips.timeline import Intervals, Tiles, spread
from mmcore.decoding.audio_samples import AudioSamples
from mmcore.tokenizers import ByteTokenizer, tokenize_segments


def make_clip(
    start: float = 0.0,
    stop: float = 2.0,
    *,
    frames: int | None = 20,
    rate: int | None = 1000,
    text: tuple[TextSegment, ...] | None = (),
    begin: float | None = None,
    tokens: bool = False,
    hop: float | None = None,
    **changes: Any,
) -> Clip:
    """Ten frames a second, each with its time in milliseconds as its value; samples likewise."""
    first = start if begin is None else begin
    video = audio = spectrogram = None
    if frames is not None:
        pts = first + torch.arange(frames, dtype=torch.float64) / 10
        data = (pts * 1000).float()[:, None, None, None].expand(-1, 3, 2, 2).clone()
        video = FrameBatch(data, pts, torch.full_like(pts, 0.1))
    if rate is not None:
        count = round((stop - first) * rate)
        seconds = first + torch.arange(count) / rate
        audio = AudioSamples(seconds[None].float() * 1000, first, count / rate, rate)
    if hop is not None:
        spectrogram = Spectrogram(torch.zeros(4, round((stop - first) / hop)), first, hop)
    here = [frames is not None, rate is not None, bool(text)]
    return Clip(
        start, stop, ("video", "audio", "text"), torch.tensor([here]), video=video, audio=audio, text=text,
        spectrogram=spectrogram, tokens=tokenize_segments(text or (), ByteTokenizer()) if tokens else None,
        **changes,
    )  # fmt: skip


def times(x: Tensor) -> Tensor:
    return x.double() / 1000


@pytest.mark.parametrize("rate", [1, 4, 10, 12.5, 25, 333])
def test_each_step_gets_the_frame_shown_and_the_sample_heard(rate: float) -> None:
    clip = make_clip(7.0, 9.0)
    found = clip.align(rate)
    assert clip.video is not None
    assert clip.audio is not None
    steps = found.seconds.shape[1]
    assert steps == round(2 * rate)
    middles = 7 + (torch.arange(steps, dtype=torch.float64) + 0.5) / rate
    assert torch.allclose(found.seconds[0], middles)
    assert found.mask.shape == (1, steps, 3)
    frames = clip.video.data[None, :, 0, 0, :1]
    samples = clip.audio.data[0][None, :, None]
    shown, heard, _ = found.gather([frames, samples, torch.zeros(1, 0, 1)])
    late = middles - times(shown)[0, :, 0]
    assert (late > -1e-6).all()
    assert (late < 0.1 + 1e-6).all()
    late = middles - times(heard)[0, :, 0]
    assert (late > -1e-6).all()
    assert (late < 0.001 + 1e-6).all()
    assert found.mask[0, :, :2].all()
    assert not found.mask[0, :, 2].any()


def test_linear_mixes_the_two_features_around_a_step() -> None:
    clip = make_clip()
    found = clip.align(33, kind="linear", audio=50)
    ramp = torch.arange(20, dtype=torch.float32)[None, :, None]
    sound = torch.arange(50, dtype=torch.float32)[None, :, None]
    pictures, heard, _ = found.gather([ramp, sound, torch.zeros(1, 0, 1)])
    # feature j's middle is (j + 1/2) units after the start
    assert torch.allclose(pictures[0, :, 0].double(), (found.seconds[0] * 10 - 0.5).clamp(0, 19), atol=1e-4)
    assert torch.allclose(heard[0, :, 0].double(), (found.seconds[0] * 25 - 0.5).clamp(0, 49), atol=1e-4)


def test_it_agrees_with_the_fusion_ops_own_alignment() -> None:
    """Where streams fill the clip evenly, the maps are those of ``align=`` of the op."""
    clip = make_clip()
    x, y = torch.randn(1, 20, 8), torch.randn(1, 50, 8)
    for kind in ("nearest", "linear"):
        found = clip.align(16, kind=kind, audio=50)
        ours = mmcore.weighted_fusion(found.gather([x, y, torch.zeros(1, 1, 8)])[:2])
        op = mmcore.weighted_fusion([x, y], align=kind, length=32)
        torch.testing.assert_close(ours, op, atol=1e-5, rtol=0)


def test_words_and_tokens() -> None:
    text = (TextSegment(-1.0, 0.2, "ab"), TextSegment(0.5, 1.5, "abcd"), TextSegment(0.9, 1.0, "x"))
    clip = make_clip(text=text, tokens=True)
    words = clip.align(10, text="segments")
    assert words.maps["text"].index[0][words.mask[0, :, 2]].tolist() == [0] * 2 + [1] * 4 + [2] + [1] * 5
    assert words.mask[0, :, 2].nonzero().flatten().tolist() == [0, 1, *range(5, 15)]
    tokens = clip.align(10)
    at = dict(enumerate(tokens.maps["text"].index[0].tolist()))
    # -1 to 0.2 s: two tokens of 0.6 s; 0.5 to 1.5 s: four of 0.25 s; one of 0.1 s
    assert (at[0], at[1]) == (1, 1)
    assert [at[i] for i in (5, 6, 8, 10, 13)] == [2, 2, 3, 4, 5]
    assert at[9] == 6
    assert tokens.mask[0, 3].tolist() == [True, True, False]
    with pytest.raises(ValueError, match="without a tokenizer"):
        make_clip(text=text).align(10, text="tokens")


def test_steps_without_a_stream_are_masked() -> None:
    clip = make_clip(0.0, 4.0, begin=1.0, frames=20, rate=None)  # pictures from 1 to 3 s
    found = clip.align(2)
    assert found.mask[0, :, 0].tolist() == [False, False, True, True, True, True, False, False]
    assert not found.mask[0, :, 1:].any()
    valid = torch.ones(20, dtype=torch.bool)
    valid[5:10] = False
    assert clip.video is not None
    video = FrameBatch(clip.video.data, clip.video.pts_seconds, clip.video.duration_seconds, valid)
    lost = make_clip(0.0, 4.0, begin=1.0, frames=20, rate=None)
    object.__setattr__(lost, "video", video)
    assert lost.align(2).mask[0, :, 0].tolist() == [False, False, True, False, True, True, False, False]


def test_gaps_in_the_sound_are_masked() -> None:
    clip = make_clip()
    assert clip.audio is not None
    gaps = ((0.5, 1.0),)
    object.__setattr__(
        clip, "audio", AudioSamples(clip.audio.data, 0.0, clip.audio.duration_seconds, 1000, gaps)
    )
    assert clip.align(4).mask[0, :, 1].tolist() == [True, True, False, False, True, True, True, True]


def test_spectrogram_frames_are_found_by_their_middles() -> None:
    clip = make_clip(hop=0.01)
    found = clip.align(100)
    # step k's middle is 5 ms after frame k's: on the border to the next
    near = clip.align(1000).maps["audio"].index[0]
    assert near[:4].tolist() == [0, 0, 0, 0]
    assert near[6:14].tolist() == [1] * 8
    assert found.maps["audio"].index.max() == 199


def test_a_batch_aligns_as_its_clips_do() -> None:
    clips = [
        make_clip(0.0, 2.0, text=(TextSegment(0.5, 1.0, "hi"),), tokens=True),
        make_clip(5.0, 6.0, frames=10, tokens=True),
        make_clip(1.0, 2.5, frames=None, rate=None, text=None),
        make_clip(3.0, 4.7, frames=17, rate=None, text=(TextSegment(0.0, 9.0, "yes"),), tokens=True),
    ]
    batch = collate_clips(clips)
    assert batch.video is not None
    assert batch.audio is not None
    found = batch.align(8)
    frames, samples = batch.video[:, :, 0, 0, :1], batch.audio[:, 0, :, None]
    shown, heard, _ = found.gather([frames, samples, torch.zeros(4, 9, 1)])
    for b, clip in enumerate(clips):
        own = clip.align(8)
        steps = own.mask.shape[1]
        assert torch.equal(found.mask[b, :steps], own.mask[0])
        assert not found.mask[b, steps:].any()
        for m, (name, mine) in enumerate((("video", shown), ("audio", heard))):
            here = own.mask[0, :, m]
            assert torch.equal(found.maps[name].index[b, :steps][here], own.maps[name].index[0][here])
            late = found.seconds[b, :steps][here] - times(mine[b, :steps, 0][here])
            assert (late > -1e-6).all()
            assert (late < 0.1001).all()
    fused = mmcore.weighted_fusion([shown, heard], mask=found.mask[:, :, :2].contiguous(), mode="normalized")
    assert torch.isfinite(fused).all()
    assert (fused[2] == 0).all()
    pooled = mmcore.weighted_fusion([frames.mean(1), samples.mean(1), torch.zeros(4, 1)], mask=batch.mask)
    assert pooled.shape == (4, 1)


def test_features_of_a_padded_batch() -> None:
    """A model that makes one feature of two frames, and its last ones of padding."""
    clips = [make_clip(0.0, 2.0), make_clip(0.0, 1.0, frames=10)]
    batch = collate_clips(clips)
    assert batch.video is not None
    pairs = batch.video[:, :, 0, 0, 0].reshape(2, 10, 2).mean(2)[..., None]
    found = batch.align(5, video=10, audio=40)
    shown = found.maps["video"].gather(pairs)
    assert torch.allclose(shown[0, :, 0], torch.arange(10) * 200.0 + 50)
    assert torch.allclose(shown[1, :5, 0], torch.arange(5) * 200.0 + 50)
    assert found.mask[1, :, :2].tolist() == [[True, True]] * 5 + [[False, False]] * 5
    assert found.maps["audio"].index[1, :5].tolist() == [2, 6, 10, 14, 18]


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=12),
    st.lists(st.floats(0, 5), min_size=12, max_size=12),
    st.lists(st.floats(-1, 16), min_size=1, max_size=20),
)
def test_find_is_what_a_loop_finds(starts: list[float], lengths: list[float], at: list[float]) -> None:
    starts = sorted(starts)
    ends = [a + b for a, b in zip(starts, lengths, strict=False)]
    made = Intervals(torch.tensor(starts, dtype=torch.float64), torch.tensor(ends, dtype=torch.float64))
    index, found = made.find(torch.tensor(at, dtype=torch.float64))
    for t, i, f in zip(at, index.tolist(), found.tolist(), strict=True):
        covering = [k for k, (a, b) in enumerate(zip(starts, ends, strict=True)) if a <= t < b]
        assert f == bool(covering)
        if covering:
            assert i == covering[-1]


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 30))
def test_tiles_cut_the_units_evenly(count: int, steps: int, padding: int) -> None:
    edges = torch.cumsum(torch.rand(count + 1, dtype=torch.float64) + 0.1, 0)
    found = Tiles(edges, count).intervals(steps, count + padding)
    size = (count + padding) / steps
    assert len(found.starts) == min(steps, -(-count // size) if size else 0) or abs(count / size % 1) < 1e-6
    assert torch.equal(found.starts[1:], found.ends[:-1])
    assert found.starts[0] == edges[0]
    assert found.ends[-1] <= edges[-1] + 1e-9
    if steps == count + padding:
        torch.testing.assert_close(found.starts, edges[:-1])


def test_nothing_at_all() -> None:
    clip = make_clip(1.0, 1.0, frames=None, rate=None, text=None)
    assert clip.align(10).mask.shape == (1, 0, 3)
    empty = make_clip(1.0, 2.0, frames=None, rate=None, text=None).align(10)
    assert empty.mask.shape == (1, 10, 3)
    assert not empty.mask.any()
    gathered = empty.gather([torch.zeros(1, 0, 5)] * 3)
    assert [tuple(g.shape) for g in gathered] == [(1, 10, 5)] * 3
    assert len(spread([], [], []).starts) == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"rate": 0}, ValueError), ({"rate": -1}, ValueError), ({"rate": float("inf")}, ValueError),
        ({"rate": "4"}, TypeError), ({"rate": 4, "kind": "cubic"}, ValueError),
        ({"rate": 4, "video": 0}, ValueError), ({"rate": 4, "audio": 1.5}, TypeError),
        ({"rate": 4, "text": "letters"}, ValueError),
    ],
)  # fmt: skip
def test_refusals(arguments: dict[str, Any], error: type[Exception]) -> None:
    name = [*arguments][-1]
    with pytest.raises(error, match=name):
        make_clip().align(**arguments)


def test_gather_refuses_what_does_not_fit() -> None:
    found = make_clip().align(10)
    with pytest.raises(ValueError, match="expected 3 tensors"):
        found.gather([torch.zeros(1, 20, 2)])
    with pytest.raises(ValueError, match="expected those of video, audio, text"):
        found.gather({"video": torch.zeros(1, 20, 2)})
    with pytest.raises(ValueError, match=r"features: 5 steps are fewer than the 20"):
        found.maps["video"].gather(torch.zeros(1, 5, 2))
    with pytest.raises(ValueError, match="expected shape"):
        found.maps["video"].gather(torch.zeros(2, 20, 2))
    named = {"text": torch.zeros(1, 1, 2), "video": torch.ones(1, 20, 2), "audio": torch.zeros(1, 2000, 2)}
    assert found.gather(named)[0].unique().tolist() == [1.0]
