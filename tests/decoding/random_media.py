"""Random video files made by program: what a seed gives, and how it is written.

A recipe draws from everything that makes it hard to tell which packets a frame needs and when it is shown:
codecs, containers, lengths and kinds of groups of pictures, reordering, frames that are shown again,
variable frame rates, first times, edit lists, and recordings that start anywhere.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from media import picture

__all__ = ["CONTAINERS", "UNTIMED", "Recipe", "draw", "write"]

CONTAINERS = {
    "libx264": ("mp4", "mkv", "ts", "mov", "avi", "flv", "h264"),
    "libx265": ("mp4", "mkv", "ts", "mov", "mp4", "hevc"),
    "libvpx-vp9": ("webm", "mp4", "mkv"),
    "libsvtav1": ("mp4", "webm", "mkv"),
    "mpeg2video": ("ts", "mkv", "mp4", "mpg"),
    "mpeg4": ("avi", "mp4", "mkv", "mov"),
    "libvpx": ("webm", "mkv"),
    "mjpeg": ("avi", "mov", "mkv"),
}
"""The encoders, and the containers that each of them is put into."""

# How often each encoder's turn comes; every turn takes the encoder's next container.
_TURNS = (
    *("libx264", "libx265", "libvpx-vp9", "libx264", "libsvtav1", "libx265", "mpeg2video", "libx264"),
    *("libvpx-vp9", "libx265", "libx264", "mpeg4", "libsvtav1", "libx264", "libx265", "mjpeg", "libvpx"),
)
_EDITABLE = ("mp4", "mov")  # containers with edit lists
_JOINABLE = ("ts", "h264", "hevc")  # two files, one after the other, are a file
UNTIMED = ("avi", "mpg", "h264", "hevc")
"""Containers that do not carry the times of reordered frames."""

_LOOSE = (*UNTIMED, "flv")  # without a choice of time base
_FREE = Fraction(1, 1000)
_WRAP = 1 << 33  # MPEG-TS counts 90 kHz ticks in 33 bits


@dataclass(frozen=True)
class Recipe:
    """Everything that a file is made of.

    Attributes
    ----------
    seed : int
        What :func:`draw` was called with.
    encoder, container : str
        FFmpeg's encoder, and the file's suffix.
    size : (int, int)
        Height and width.
    time_base : Fraction
        Unit of ``times``, in seconds.
    times : tuple of int
        When each frame is shown; their number is the number of frames encoded.
    gop : int
        Most frames between key frames.
    options, muxer : dict
        Options of encoder and muxer.
    key_frames : tuple of int
        Frames at which a key frame is asked for.
    scenes : tuple of int
        Frames at which the picture changes altogether.
    sound : bool
        A sound track lies between the video packets.
    first_packet : int
        Packets left out at the beginning, as in a recording that starts anywhere.
    hidden_ms : int
        Milliseconds at the beginning that an edit list hides.
    twice : bool
        The file is appended to itself, so that its times start again.
    second : dict
        If not empty, what the encoder's options change to in the middle of the file.
    features : tuple of str
        Names of what is special, to see that the seeds cover it.
    """

    seed: int
    encoder: str
    container: str
    size: tuple[int, int]
    pix_fmt: str
    time_base: Fraction
    times: tuple[int, ...]
    gop: int
    options: dict[str, str] = field(default_factory=dict)
    muxer: dict[str, str] = field(default_factory=dict)
    key_frames: tuple[int, ...] = ()
    scenes: tuple[int, ...] = ()
    sound: bool = False
    first_packet: int = 0
    hidden_ms: int = 0
    twice: bool = False
    second: dict[str, str] = field(default_factory=dict)
    features: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file's name."""
        return f"random{self.seed}.{self.container}"


def draw(seed: int) -> Recipe:
    """The recipe of a seed; encoders and containers take turns, everything else is drawn."""
    rng = random.Random(seed)
    encoder = _TURNS[seed % len(_TURNS)]
    turn = seed // len(_TURNS) * _TURNS.count(encoder) + _TURNS[: seed % len(_TURNS)].count(encoder)
    container = CONTAINERS[encoder][turn % len(CONTAINERS[encoder])]
    features: list[str] = []

    def feature(name: str, chance: float, allowed: bool = True) -> bool:
        happens = rng.random() < chance and allowed
        if happens:
            features.append(name)
        return happens

    count = rng.randint(30, 90)
    gop = rng.choice((1, 2, 3, rng.randint(4, 12), rng.randint(8, 24), rng.randint(20, 60), 60))
    height, width = rng.choice(((64, 64), (64, 80), (72, 96), (96, 128)))
    pix_fmt = "yuvj420p" if encoder == "mjpeg" else "yuv420p"
    if encoder in ("libx264", "libx265") and feature("ten bit", 0.08):
        pix_fmt = "yuv420p10le"
    options = _ENCODERS[encoder](rng, feature)
    key_frames = _some(rng, count) if feature("forced key frames", 0.3) else ()
    scenes = _some(rng, count) if feature("scene cuts", 0.4) else ()

    rate = rng.choice((24, 25, 30, Fraction(30000, 1001)))
    time_base, times = 1 / Fraction(rate), list(range(count))
    if feature("variable frame rate", 0.25, encoder != "mpeg2video" and container not in ("h264", "hevc")):
        if container in _LOOSE or rng.random() < 0.3:
            steps = rng.choices((1, 1, 1, 2, 5), k=count)
        else:
            time_base, steps = _FREE, [rng.choice((rng.randint(10, 120), 40)) for _ in range(count)]
        times = [sum(steps[:i]) for i in range(count)]
    if feature("late start", 0.3, container not in UNTIMED):
        start = rng.choice((1, 7, 1000, 123_457))
        if container == "ts" and feature("clock wraps around", 0.4):
            start = int(_WRAP / 90_000 / time_base) - times[rng.randrange(count)]
        times = [start + t for t in times]

    muxer: dict[str, str] = {}
    if container in _EDITABLE:
        if feature("fragments", 0.25):
            muxer["movflags"] = "frag_keyframe+empty_moov+default_base_moof"
        elif feature("no edit list", 0.12):
            muxer["use_editlist"] = "0"
        elif feature("negative composition offsets", 0.12):
            muxer["movflags"] = "negative_cts_offsets"
    elif container in ("mkv", "webm") and feature("live", 0.2):
        muxer["live"] = "1"  # no duration, no cues
    twice = feature("starts again", 0.3, container == "ts")
    first_packet = hidden_ms = 0
    if "fragments" not in features and feature("edit list", 0.4, container in _EDITABLE):
        hidden_ms = rng.choice((1, 40, 90, rng.randint(100, 1000)))
    elif feature("starts anywhere", 0.2, container not in UNTIMED):
        first_packet = rng.choice((1, 2, rng.randint(1, 25)))
    sound = feature("sound", 0.15, container in ("mp4", "mkv", "ts", "mov"))
    second: dict[str, str] = {}
    if feature("new parameters", 0.3, container in _JOINABLE and not first_packet):
        second = _ENCODERS[encoder](rng, lambda name, chance: rng.random() < chance)
    if feature("slices", 0.2, encoder == "libx264"):
        options["x264-params"] += ":slices=3"
    if feature("film grain", 0.2, encoder == "libsvtav1"):
        options["svtav1-params"] += ":film-grain=8"
    if feature("overlays", 0.3, "pred-struct=2" in options.get("svtav1-params", "")):
        options["svtav1-params"] += ":enable-overlays=1"
    return Recipe(
        seed,
        encoder,
        container,
        (height, width),
        pix_fmt,
        time_base,
        tuple(times),
        gop,
        options,
        muxer,
        key_frames,
        scenes,
        sound,
        first_packet,
        hidden_ms,
        twice,
        second,
        tuple(features),
    )


def _some(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(sorted(rng.sample(range(1, count), rng.randint(1, 5))))


# --- the encoders' settings


def _x264(rng: random.Random, feature: Any) -> dict[str, str]:
    options = {
        "preset": rng.choice(("ultrafast", "veryfast", "medium")),
        "bf": str(rng.choice((0, 1, 2, 3, 3, 5, 8))),
        "refs": str(rng.randint(1, 5)),
        "crf": "23",
    }
    params = [
        f"b-pyramid={rng.choice(('none', 'strict', 'normal'))}",
        f"b-adapt={rng.randint(0, 2)}",
        f"scenecut={rng.choice((0, 40))}",
        f"weightp={rng.randint(0, 2)}",
        "threads=1:lookahead-threads=1",
    ]
    if feature("open groups", 0.4):
        params.append("open-gop=1")
    elif feature("gradual refresh", 0.2):
        params.append("intra-refresh=1")
    if feature("interlaced", 0.15):
        params.append("interlaced=1")
    if feature("forced IDR", 0.5):
        options["forced-idr"] = "1"
    return {**options, "x264-params": ":".join(params)}


def _x265(rng: random.Random, feature: Any) -> dict[str, str]:
    params = [
        "log-level=none:pools=none:frame-threads=1:rc-lookahead=10",
        f"b-adapt={rng.randint(0, 2)}",
        f"ref={rng.randint(1, 4)}",
        f"scenecut={rng.choice((0, 40))}",
    ]
    if feature("temporal layers", 0.25):
        # with fewer B-frames the encoder's packets have times that contradict each other
        params.append("temporal-layers=3:b-pyramid=1:bframes=4")
    else:
        params.append(f"b-pyramid={rng.randint(0, 1)}:bframes={rng.choice((0, 1, 3, 4, 4, 8))}")
    if feature("open groups", 0.5):
        params.append("open-gop=1")
    elif feature("decodable leading pictures", 0.4):
        params.append("open-gop=0:radl=2:bframes=4")
    else:
        params.append("open-gop=0")
    return {
        "preset": "ultrafast",
        "forced-idr": str(rng.randint(0, 1)),
        "x265-params": ":".join(params),
    }


def _vp9(rng: random.Random, feature: Any) -> dict[str, str]:
    if feature("hidden frames", 0.7):
        options = {"deadline": "good", "auto-alt-ref": str(rng.choice((1, 1, 4))), "lag-in-frames": "16"}
    else:
        options = {"deadline": "realtime", "lag-in-frames": "0"}
    if feature("error resilient", 0.2):
        options["error-resilient"] = "default"
    return {**options, "cpu-used": "8", "b": "200k", "threads": "1"}


def _vp8(rng: random.Random, feature: Any) -> dict[str, str]:
    options = {"auto-alt-ref": "1", "lag-in-frames": "16"} if feature("hidden frames", 0.6) else {}
    return {**options, "deadline": "realtime", "cpu-used": "8", "b": "200k", "threads": "1"}


def _av1(rng: random.Random, feature: Any) -> dict[str, str]:
    params = [
        "lp=1",
        f"pred-struct={rng.choice((1, 2, 2, 2))}",
        f"scd={rng.randint(0, 1)}",
        f"irefresh-type={1 if feature('open groups', 0.4) else 2}",
    ]
    if rng.random() < 0.5:
        params.append(f"hierarchical-levels={rng.randint(2, 5)}")
    return {"preset": "12", "crf": "40", "svtav1-params": ":".join(params)}


def _mpeg2(rng: random.Random, feature: Any) -> dict[str, str]:
    options = _mpeg4(rng, feature)
    if feature("interlaced", 0.3):
        options["flags"] = options.get("flags", "") + "+ildct+ilme"
    return options


def _mpeg4(rng: random.Random, feature: Any) -> dict[str, str]:
    options = {"bf": str(rng.randint(0, 4)), "b": "800k"}
    if feature("closed groups", 0.4):
        options |= {"flags": "+cgop", "sc_threshold": "1000000000"}  # the encoder insists on no scene cuts
    return options


def _mjpeg(rng: random.Random, feature: Any) -> dict[str, str]:
    return {"qscale": "4"}


_ENCODERS = {
    "libx264": _x264,
    "libx265": _x265,
    "libvpx-vp9": _vp9,
    "libvpx": _vp8,
    "libsvtav1": _av1,
    "mpeg2video": _mpeg2,
    "mpeg4": _mpeg4,
    "mjpeg": _mjpeg,
}


# --- writing


def write(recipe: Recipe, path: Path) -> None:
    """Write the file of a recipe."""
    if recipe.first_packet or recipe.hidden_ms:
        whole = path.with_name(f"whole_{path.name}")
        _encode(recipe, whole, {})
        _cut(recipe, whole, path)
        whole.unlink()
    else:
        _encode(recipe, path, recipe.muxer)
    if recipe.twice:
        path.write_bytes(2 * path.read_bytes())


def _cut(recipe: Recipe, whole: Path, path: Path) -> None:
    with av.open(str(whole)) as reader, av.open(str(path), "w", options=recipe.muxer) as writer:
        stream = reader.streams.video[0]
        copy = writer.add_stream_from_template(stream, opaque=True)
        assert stream.time_base is not None
        shift = int(recipe.hidden_ms / 1000 / stream.time_base)
        if shift:
            shift += stream.start_time or 0
        for i, packet in enumerate(p for p in reader.demux(stream) if p.size):
            if i < recipe.first_packet:
                continue
            # frames before time zero make the muxer write an edit list that hides them
            packet.pts = None if packet.pts is None else packet.pts - shift
            packet.dts = None if packet.dts is None else packet.dts - shift
            packet.stream = copy
            writer.mux(packet)


def _encode(recipe: Recipe, path: Path, muxer: dict[str, str]) -> None:
    count = len(recipe.times)
    if not recipe.second:
        _encode_part(recipe, path, muxer, recipe.options, range(count))
        return
    content = b""
    for options, numbers in (
        (recipe.options, range(count // 2)),
        (recipe.second, range(count // 2, count)),
    ):
        _encode_part(recipe, path, muxer, options, numbers)
        content += path.read_bytes()
    path.write_bytes(content)


def _encode_part(
    recipe: Recipe, path: Path, muxer: dict[str, str], options: dict[str, str], numbers: range
) -> None:
    with av.open(str(path), "w", container_options=muxer) as output:
        rate = 25 if recipe.time_base == _FREE else 1 / recipe.time_base
        stream: Any = output.add_stream(recipe.encoder, rate=rate, options=dict(options))
        stream.height, stream.width, stream.pix_fmt = *recipe.size, recipe.pix_fmt
        codec = stream.codec_context
        codec.gop_size, codec.thread_count, codec.time_base = recipe.gop, 1, recipe.time_base
        sound: Any = output.add_stream("mp2", rate=16000) if recipe.sound else None
        begin, played = recipe.times[numbers[0]] * recipe.time_base, 0
        for i in numbers:
            frame = _frame(recipe, i)
            frame.pts, frame.time_base = recipe.times[i], recipe.time_base
            if i in recipe.key_frames:
                frame.pict_type = av.video.frame.PictureType.I
            output.mux(stream.encode(frame))
            while sound is not None and played / 16000 < frame.pts * recipe.time_base - begin:
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), "s16", "mono")
                silence.sample_rate, silence.time_base = 16000, Fraction(1, 16000)
                silence.pts = played + int(begin * 16000)
                output.mux(sound.encode(silence))
                played += 1152
        output.mux(stream.encode(None))
        if sound is not None:
            output.mux(sound.encode(None))


def _frame(recipe: Recipe, number: int) -> av.VideoFrame:
    scene = sum(number >= first for first in recipe.scenes)
    rgb = picture(number, *recipe.size)
    if scene % 2:
        rgb = 255 - rgb
    noise = np.random.default_rng((recipe.seed, scene)).integers(-24, 25, rgb.shape)
    rgb = (rgb + np.roll(noise, number // 2, axis=1)).clip(0, 255).astype(np.uint8)
    return av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format=recipe.pix_fmt)
