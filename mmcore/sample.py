"""A short clip rendered by program: pictures that move, sound and subtitles on one clock.

The demo, the documentation and the tests use it, so no media file has to be shipped. Each time the ball
hits the ground a flash, a click and a word begin at the same instant; those instants are returned, so what
a reader of the file finds can be compared with what was written.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import av
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.floating[Any]]

__all__ = ["SampleClip", "SampleEvent", "write_sample"]

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
FIRST_EVENT = 0.5  # seconds; then one event per second
WORD_SECONDS = 0.6
FLASH = (0.70, 0.45, 0.25, 0.10)  # share of white in the event's frame and the three after it


@dataclass(frozen=True)
class SampleEvent:
    """One bounce of the ball.

    Attributes
    ----------
    seconds : float
        The instant at which flash, click and word begin.
    frame : int
        Index of the first frame of the flash, shown at ``seconds``.
    audio_sample : int
        Index of the click's first audio sample.
    word : str
        Text of the subtitle that begins at ``seconds``.
    """

    seconds: float
    frame: int
    audio_sample: int
    word: str


@dataclass(frozen=True)
class SampleClip:
    """What :func:`write_sample` wrote."""

    path: str
    width: int
    height: int
    fps: int
    num_frames: int
    sample_rate: int
    duration_seconds: float
    events: tuple[SampleEvent, ...]


def write_sample(
    path: str | os.PathLike[str],
    *,
    seconds: float = 6.0,
    width: int = 480,
    height: int = 270,
    fps: int = 30,
    sample_rate: int = 48000,
) -> SampleClip:
    """Render the sample clip: H.264 (BT.709, limited range), AAC stereo and mov_text subtitles in an MP4.

    Where PyAV's FFmpeg lacks x264, the pictures are MPEG-4.

    Parameters
    ----------
    path : str or path-like
        File to write; an existing one is replaced.
    seconds : float
        Length; rounded to whole frames.
    width, height : int
        Size in pixels, even and at least 64.
    fps : int
        Frames per second, even, so that every event falls on a frame.
    sample_rate : int
        Audio samples per second, even; one that AAC knows (32000, 44100, 48000, ...).

    Returns
    -------
    SampleClip
        Sizes, rates and the events in the clip.

    Raises
    ------
    ValueError
        For a size, rate or length out of range.
    OSError
        If the file cannot be written.
    """
    num_frames = round(seconds * fps) if math.isfinite(seconds) else 0
    if num_frames < 1:
        raise ValueError(f"seconds: expected a length of at least one frame, got {seconds!r}")
    if min(width, height) < 64 or width % 2 or height % 2:
        raise ValueError(f"width, height: expected even numbers of at least 64, got {width}x{height}")
    if fps < 2 or fps % 2:
        raise ValueError(f"fps: expected an even number of at least 2, got {fps!r}")
    if sample_rate < 8000 or sample_rate % 2:
        raise ValueError(f"sample_rate: expected an even number of at least 8000, got {sample_rate!r}")

    duration = num_frames / fps
    events = []
    for i in range(math.ceil(duration - FIRST_EVENT)):
        at = FIRST_EVENT + i
        word = WORDS[i] if i < len(WORDS) else str(i + 1)
        events.append(SampleEvent(at, round(at * fps), round(at * sample_rate), word))
    clip = SampleClip(os.fspath(path), width, height, fps, num_frames, sample_rate, duration, tuple(events))
    try:
        _encode(clip)
    except OSError as error:
        raise OSError(error.errno, error.strerror, clip.path) from error
    return clip


def _encode(clip: SampleClip) -> None:
    import av

    with av.open(clip.path, "w", format="mp4", options={"movflags": "+faststart"}) as out:
        options = {"g": str(2 * clip.fps)}
        video: Any
        if "libx264" in av.codecs_available:
            # No assembly: x264's for AVX-512 gives other bytes now and then when the machine is busy.
            options |= {"preset": "veryfast", "crf": "20", "x264-params": "asm=0"}
            video = out.add_stream("libx264", rate=clip.fps, options=options)
        else:  # an FFmpeg without GPL parts
            video = out.add_stream("mpeg4", rate=clip.fps, options=options)
            video.bit_rate = 2_000_000
        video.width, video.height, video.pix_fmt = clip.width, clip.height, "yuv420p"
        context = video.codec_context
        context.thread_count = 1  # the same bytes on every machine
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = 1  # limited
        audio: Any = out.add_stream("aac", rate=clip.sample_rate, layout="stereo")
        text: Any = out.add_stream("mov_text")
        text.codec_context.subtitle_header = b"[Script Info]\nScriptType: v4.00+\n"
        text.time_base = Fraction(1, 1000)

        packets: list[Any] = []
        scene = _Scene(clip.width, clip.height)
        for i in range(clip.num_frames):
            packets += video.encode(_video_frame(scene.render(i / clip.fps, _flash(clip, i)), i, clip.fps))
        packets += video.encode(None)
        for frame in _audio_frames(clip):
            packets += audio.encode(frame)
        packets += audio.encode(None)
        packets += _subtitles(clip, text)
        out.start_encoding()
        packets.sort(key=lambda p: p.dts * p.time_base)
        for packet in packets:
            out.mux(packet)


def _flash(clip: SampleClip, frame: int) -> float:
    for event in clip.events:
        if 0 <= frame - event.frame < len(FLASH):
            return FLASH[frame - event.frame]
    return 0.0


def _video_frame(rgb: Array, index: int, fps: int) -> av.VideoFrame:
    import av
    import numpy as np

    rgb *= 255
    rgb += 0.5  # the cast truncates
    frame: Any = av.VideoFrame.from_ndarray(rgb.astype(np.uint8), format="rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
    frame.pts, frame.time_base = index, Fraction(1, fps)
    return frame  # type: ignore[no-any-return]


def _audio_frames(clip: SampleClip) -> list[av.AudioFrame]:
    import av
    import numpy as np

    n, rate = round(clip.duration_seconds * clip.sample_rate), clip.sample_rate
    t = np.arange(n) / rate
    # a quiet chord that breathes, then a click and a decaying note per bounce, from the ball's side
    chord = sum(np.sin(2 * np.pi * f * t) for f in (110.0, 164.81, 220.0)) * 0.02
    sound = np.stack([chord * (1 + 0.5 * np.sin(2 * np.pi * 0.25 * t + side)) for side in (0.0, 1.5)])
    for i, event in enumerate(clip.events):
        u = t[: n - event.audio_sample]
        note = 220.0 * 2 ** ((0, 3, 5, 7, 10, 12)[i % 6] / 12)
        ring = 0.25 * np.sin(2 * np.pi * note * u) * np.exp(-u * 6)
        click = 0.5 * np.sin(2 * np.pi * 2500 * u + 1) * np.exp(-u * 350)
        right = 0.5 + 0.35 * math.sin(_sway(event.seconds))
        for channel, gain in enumerate((1 - right, right)):
            sound[channel, event.audio_sample :] += (ring + click) * gain
    planar = np.ascontiguousarray(sound.astype(np.float32).clip(-1, 1))
    frames: list[av.AudioFrame] = []
    for start in range(0, n, 1024):
        frame = av.AudioFrame.from_ndarray(planar[:, start : start + 1024], format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        frames.append(frame)
    return frames


def _subtitles(clip: SampleClip, stream: Any) -> list[Any]:
    import av

    def packet(start: float, end: float, text: str) -> Any:
        data = text.encode()
        result: Any = av.Packet(len(data).to_bytes(2, "big") + data)  # mov_text: length, then UTF-8
        result.stream, result.time_base = stream, Fraction(1, 1000)
        result.pts = result.dts = round(start * 1000)
        result.duration = round(end * 1000) - round(start * 1000)
        return result

    # the muxer fills the time between two words with empty texts
    end = clip.duration_seconds
    return [packet(e.seconds, min(e.seconds + WORD_SECONDS, end), e.word) for e in clip.events]


def _sway(seconds: float) -> float:
    return 2 * math.pi * (seconds / 6 - 0.13)


def _color(rgb: list[float]) -> Array:
    import numpy as np

    return np.array(rgb, dtype=np.float32)


class _Scene:
    """A ball that bounces through a landscape at dusk; lengths are in units of the picture's height."""

    def __init__(self, width: int, height: int) -> None:
        import numpy as np

        self.np: Any = np
        self.width, self.height, self.aspect = width, height, width / height
        self.y = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
        self.x = ((np.arange(width, dtype=np.float32) + 0.5) / height)[None, :]
        self.ground = 0.80
        stops = ([0.10, 0.12, 0.30], [0.36, 0.26, 0.50], [0.90, 0.48, 0.42], [1.00, 0.78, 0.50])
        at = np.linspace(0, 0.72, len(stops))
        columns = [np.interp(self.y[:, 0], at, [s[c] for s in stops]) for c in range(3)]
        sky = np.stack(columns, axis=-1)[:, None, :].astype(np.float32)
        distance = np.hypot(self.x - 0.70 * self.aspect, self.y - 0.52)
        glow = np.exp(-distance / 0.16)[..., None] * _color([0.42, 0.30, 0.12])
        self.sky: Array = np.clip(sky + glow, 0, 1)
        self._paint(self.sky, _color([1.0, 0.93, 0.74]), (0.085 - distance) * height + 0.5)

    def render(self, t: float, flash: float) -> Array:
        """Picture at ``t`` seconds: (height, width, 3), float32, 0 to 1."""
        picture = self.sky.copy()
        for y, x0, size, speed in (
            (0.16, 0.2, 0.16, 0.020),
            (0.27, 1.1, 0.22, 0.032),
            (0.10, 1.6, 0.13, 0.015),
        ):
            self._cloud(picture, (x0 + speed * t) % (self.aspect + 0.6) - 0.3, y, size)
        self._hills(picture, 0.62, 0.060, 0.9, 0.020 * t, (0.42, 0.30, 0.46))
        self._hills(picture, 0.70, 0.045, 1.6, 0.060 * t + 3, (0.25, 0.22, 0.38))
        self._windmill(picture, 0.26 * self.aspect, 0.72, t)
        self._meadow(picture, 0.22 * t)

        bounce = t - FIRST_EVENT - math.floor(t - FIRST_EVENT)
        lift = 4 * bounce * (1 - bounce) * 0.40
        # flatter while it touches the ground, longer while it is fast
        squash = 1 - 0.28 * math.exp(-((min(bounce, 1 - bounce) / 0.05) ** 2)) + 0.08 * abs(1 - 2 * bounce)
        x, radius = self.aspect * (0.5 + 0.22 * math.sin(_sway(t))), 0.095
        bottom = self.ground + 0.07
        self._shadow(picture, x, bottom, radius, lift)
        if t > FIRST_EVENT:
            self._ripple(picture, self.aspect * (0.5 + 0.22 * math.sin(_sway(t - bounce))), bottom, bounce)
        self._ball(picture, x, bottom - lift - radius * squash, radius, squash, 2.2 * math.sin(_sway(t)) + t)
        if flash:
            picture += (1 - picture) * flash
        return picture

    def _paint(self, picture: Array, color: Any, cover: Array) -> None:
        """Blend ``color`` in where ``cover`` (pixels inside the edge, so edges are smooth) is above 0."""
        np = self.np
        alpha = np.clip(cover, 0, 1).astype(np.float32)
        picture += (np.asarray(color, dtype=np.float32) - picture) * alpha[..., None]

    def _window(self, picture: Array, x: float, y: float, rx: float, ry: float) -> tuple[Array, Array, Array]:
        """The part of the picture around (x, y), and its coordinates relative to that point."""
        h = self.height
        c0, c1 = max(0, math.floor((x - rx) * h) - 1), max(0, math.ceil((x + rx) * h) + 1)
        r0, r1 = max(0, math.floor((y - ry) * h) - 1), max(0, math.ceil((y + ry) * h) + 1)
        return picture[r0:r1, c0:c1], self.x[:, c0:c1] - x, self.y[r0:r1] - y

    def _cloud(self, picture: Array, x: float, y: float, size: float) -> None:
        np = self.np
        part, dx, dy = self._window(picture, x, y, 2 * size, size)
        u, v = dx / size, dy / size / 0.45
        density = 0.0
        for px, py, s in (
            (-0.55, 0.11, 0.30),
            (0.0, -0.22, 0.42),
            (0.55, 0.09, 0.32),
            (0.25, 0.18, 0.36),
            (-0.25, 0.22, 0.34),
        ):
            density = density + np.exp(-(((u - px) / s) ** 2) - ((v - py) / s) ** 2)
        self._paint(part, (0.98, 0.80, 0.76), np.minimum(density, 1.0) * 0.75)

    def _hills(self, picture: Array, y: float, size: float, rate: float, shift: float, color: Any) -> None:
        np = self.np
        u = (self.x[0] + shift) * rate
        top = y - size * (np.sin(4.1 * u) + 0.6 * np.sin(9.3 * u + 1.3) + 0.25 * np.sin(21.7 * u + 0.4)) / 1.4
        first = max(0, int(top.min() * self.height) - 1)
        last = int((self.ground + 0.02) * self.height)
        self._paint(picture[first:last], color, (self.y[first:last] - top[None, :]) * self.height + 0.5)

    def _windmill(self, picture: Array, x: float, y: float, t: float) -> None:
        np, h = self.np, self.height
        part, dx, dy = self._window(picture, x, y - 0.14, 0.17, 0.17)
        tower = np.where((dy > 0) & (dy < 0.20), 0.010 + 0.06 * dy - np.abs(dx), -1.0)
        self._paint(part, (0.86, 0.80, 0.78), tower * h + 0.5)
        for blade in range(3):
            a = 1.3 * t + blade * 2 * math.pi / 3
            along, across = dx * math.cos(a) + dy * math.sin(a), dy * math.cos(a) - dx * math.sin(a)
            reach = np.clip(along, 0.0, 0.15)
            edge = 0.016 * (1 - reach / 0.19) - np.hypot(along - reach, across)
            self._paint(part, (0.97, 0.94, 0.92), edge * h + 0.5)

    def _meadow(self, picture: Array, shift: float) -> None:
        np = self.np
        first = int(self.ground * self.height)
        depth = (self.y[first:] - self.ground) / (1 - self.ground)
        near = np.clip(depth, 0, 1)
        # stripes of equal width on the ground, seen in perspective from the middle
        across = (self.x - self.aspect / 2) / (0.35 + near) + shift * 2
        stripes = 0.5 + 0.5 * np.tanh(6 * np.sin(2 * np.pi * across * 1.6) * (0.2 + near))
        color = _color([0.16, 0.38, 0.26]) + near[..., None] * _color([0.12, 0.16, 0.02])
        picture[first:] = color + stripes[..., None] * _color([0.05, 0.09, 0.03])

    def _shadow(self, picture: Array, x: float, y: float, radius: float, lift: float) -> None:
        np = self.np
        r = radius * (1 + lift)
        part, dx, dy = self._window(picture, x, y, 1.6 * r, 0.6 * r)
        soft = np.exp(-((dx / r) ** 2 * 1.5 + (dy / (0.22 * r)) ** 2 * 1.5))
        self._paint(part, (0.05, 0.12, 0.10), soft * (0.75 - lift))

    def _ripple(self, picture: Array, x: float, y: float, age: float) -> None:
        np = self.np
        if age > 0.6:
            return
        r = 0.10 + 0.5 * age
        part, dx, dy = self._window(picture, x, y, r + 0.04, 0.3 * r + 0.04)
        ring = np.exp(-(((np.hypot(dx, dy / 0.25) - r) / 0.018) ** 2))
        self._paint(part, (1.0, 0.95, 0.75), ring * 0.8 * (1 - age / 0.6))

    def _ball(self, picture: Array, x: float, y: float, radius: float, squash: float, turn: float) -> None:
        np = self.np
        rx, ry = radius / math.sqrt(squash), radius * squash
        part, dx, dy = self._window(picture, x, y, rx, ry)
        u, v = dx / rx, dy / ry
        r2 = u * u + v * v
        z = np.sqrt(np.maximum(1 - r2, 0))
        sector = np.sin(3 * (np.arctan2(v, u) - turn))  # six panels
        share = np.clip(sector * np.sqrt(r2) * 14 + 0.5, 0, 1)[..., None]
        color = share * _color([0.93, 0.22, 0.20]) + (1 - share) * _color([0.98, 0.95, 0.88])
        light = np.maximum(0.28 * u - 0.62 * v + 0.66 * z, 0)
        color = color * (0.42 + 0.62 * light)[..., None] + (light**24 * 0.55)[..., None]
        self._paint(part, np.minimum(color, 1), (1 - np.sqrt(r2)) * radius * self.height + 0.5)
