"""Subtitles as timed segments: codecs, the clock, choice of stream, damage, ranges, markup."""

from __future__ import annotations

import io
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
from media import number_of
from text_media import srt, write_subtitled

import mmcore
from mmcore import DecodeError, TextDecoder, TextSegment, UnsupportedError
from mmcore.decoding.text_languages import language_match
from mmcore.decoding.text_markup import plain_text


def event(text: str) -> bytes:
    return f"0,0,Default,,0,0,0,,{text}".encode()


def texts(decoder: TextDecoder) -> list[str]:
    return [segment.text for segment in decoder]


# --- streams of a media file

EMBEDDED = [
    ("mp4", "mov_text", "Grüße, {you}\nthere", r"Grüße, {you}\Nthere"),
    ("mov", "mov_text", "Grüße, {you}\nthere", r"Grüße, {you}\Nthere"),
    ("mkv", "subrip", "<i>Grüße</i>, {you}\n{\\an8}there", r"{\i1}Grüße{\i0}, {you}\N{\an8}there"),
    ("mkv", "webvtt", "<v Ann><i.loud>Grüße</i>,</v> {you}\nthere", r"{\i1}Grüße{\i0}, \{{}you}\Nthere"),
    ("webm", "webvtt", "<c.red>Grüße</c>, {you}\nthere", r"Grüße, \{{}you}\Nthere"),
    ("mkv", "ass", None, r"{\b1}Grüße{\b0}, \{you\}{aside}\Nthere{\p1}m 0 0 l 9 9{\p0}"),
]


@pytest.mark.parametrize(("suffix", "codec", "content", "kept"), EMBEDDED)
def test_embedded(suffix: str, codec: str, content: str | None, kept: str, tmp_path: Path) -> None:
    first = event(kept) if content is None else content.encode()
    second, empty = (event("two"), event("")) if codec == "ass" else (b"two", b" ")
    cues = [(0.2, 0.48, first), (0.7, 0.2, empty), (1.0, 0.5, second)]
    path = tmp_path / f"film.{suffix}"
    write_subtitled(path, [(codec, cues, {})], format="matroska" if suffix == "webm" else None)
    decoder = TextDecoder(path)
    assert decoder.get_all_segments() == [
        TextSegment(0.2, 0.68, "Grüße, {you}\nthere"),
        TextSegment(1.0, 1.5, "two"),
    ]
    assert texts(TextDecoder(path, markup=True)) == [kept, "two"]
    m = decoder.metadata
    assert (m.stream_index, m.codec, m.path, m.damage) == (1, codec, None, None)
    assert (m.num_segments, m.begin_stream_seconds, m.end_stream_seconds) == (2, 0.2, 1.5)
    # and with the frames, whose numbers are known: 25 a second
    with mmcore.VideoDecoder(path) as video:
        for segment in decoder:
            frame = video.get_frame_played_at(segment.start)
            assert frame.pts_seconds == segment.start
            assert number_of(frame.data) == round(segment.start * 25)


def test_styles_of_mov_text_are_dropped(tmp_path: Path) -> None:
    box = (22).to_bytes(4, "big") + b"styl" + (1).to_bytes(2, "big")
    box += (0).to_bytes(2, "big") + (4).to_bytes(2, "big") + bytes([0, 1, 1, 18, 255, 0, 0, 255])
    text = b"bold words"
    content = len(text).to_bytes(2, "big") + text + box
    path = write_subtitled(tmp_path / "a.mp4", [("mov_text", [(0, 1, b"bold words")], {})])
    data = path.read_bytes()
    assert data.count(content[:12]) == 1
    # the box takes the place of the last bytes of a text that was as long
    padded = b"bold words" + bytes(len(box))
    path = write_subtitled(tmp_path / "b.mp4", [("mov_text", [(0, 1, padded)], {})])
    data = path.read_bytes().replace(len(padded).to_bytes(2, "big") + padded, content)
    path.write_bytes(data)
    assert texts(TextDecoder(path)) == ["bold words"]
    assert "{" in texts(TextDecoder(path, markup=True))[0]


def caption(*codes: int) -> bytes:
    """A QuickTime sample of CEA-608 codes, each with its parity bit."""
    content = bytes(code | 0x80 * (code.bit_count() % 2 == 0) for code in codes)
    return (8 + len(content)).to_bytes(4, "big") + b"cdat" + content


def test_closed_captions_are_shown_when_they_are_meant_to(tmp_path: Path) -> None:
    load, row, show, clear = (0x14, 0x20), (0x14, 0x60), (0x14, 0x2F), (0x14, 0x2C)
    cues = [
        (0.0, 0.5, caption(*load, *row, *b"HELLO ", *show)),
        (0.5, 1.0, caption(*clear)),
        (1.5, 0.3, caption(*load, *row, *b"TWO ", *show)),
        (1.8, 0.2, caption(*clear)),
    ]
    path = write_subtitled(tmp_path / "film.mov", [("mov_text", cues, {})], counted=False)
    path.write_bytes(path.read_bytes().replace(b"text", b"c608"))
    decoder = TextDecoder(path)
    assert decoder.metadata.codec == "eia_608"
    assert list(decoder) == [TextSegment(0, 0.5, "HELLO"), TextSegment(1.5, 1.8, "TWO")]
    # one that nothing ends lasts as long as the file
    path = write_subtitled(tmp_path / "open.mov", [("mov_text", cues[:3], {})], counted=False)
    path.write_bytes(path.read_bytes().replace(b"text", b"c608"))
    assert list(TextDecoder(path)) == [TextSegment(0, 0.5, "HELLO"), TextSegment(1.5, 2.0, "TWO")]


def test_mov_text_is_taken_as_it_is(tmp_path: Path) -> None:
    cues = [
        (0, 0.5, rb"a\Nb {\i1}c"),
        (0.5, 0.5, b"\xfe\xff" + "d\ne".encode("utf-16-be")),
        (1, 0.5, b"\xe9t\xe9"),
    ]
    path = write_subtitled(tmp_path / "a.mp4", [("mov_text", cues, {})])
    assert texts(TextDecoder(path)) == [r"a\Nb {\i1}c", "d\ne", "été"]
    assert texts(TextDecoder(path, markup=True))[1] == r"d\Ne"


def test_a_cue_without_end_stays_until_the_next(tmp_path: Path) -> None:
    cues = [(0.2, 0, b"one"), (0.2, 0.1, b"beside"), (1.0, 0, b"two")]
    path = write_subtitled(tmp_path / "film.mkv", [("subrip", cues, {})])
    assert list(TextDecoder(path)) == [
        TextSegment(0.2, 0.3, "beside"),
        TextSegment(0.2, 1.0, "one"),
        TextSegment(1.0, pytest.approx(2.0, abs=0.05), "two"),
    ]


@pytest.fixture(scope="module")
def many_streams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def stream(text: str, **settings: Any) -> Any:
        return ("subrip", [(0.2, 0.5, text.encode())], settings)

    return write_subtitled(
        tmp_path_factory.mktemp("many") / "film.mkv",
        [
            ("dvdsub", [(0.2, 0.5, b"\0\4\0\4")], {"language": "eng", "default": True}),
            stream("signs", language="eng", forced=True),
            stream("english", language="eng", title="Full"),
            stream("deutsch", language="ger"),
            stream("untagged"),
            stream("brasil", language="pt-BR", default=True),
        ],
    )


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ({}, "brasil"),  # the default one
        ({"language": "en"}, "english"),  # not the forced one
        ({"language": "ENG"}, "english"),
        ({"language": "en-GB"}, "english"),
        ({"language": "de"}, "deutsch"),
        ({"language": "deu"}, "deutsch"),
        ({"language": "pt"}, "brasil"),
        ({"stream_index": 2}, "signs"),
        ({"stream_index": 2, "language": "en"}, "signs"),
        ({"stream_index": 5}, "untagged"),
    ],
)
def test_choice_of_stream(choice: dict[str, Any], text: str, many_streams: Path) -> None:
    assert texts(TextDecoder(many_streams, **choice)) == [text]


def test_metadata_of_a_stream(many_streams: Path) -> None:
    m = TextDecoder(many_streams, stream_index=3).metadata
    assert (m.codec, m.language, m.title, m.default, m.forced) == ("subrip", "eng", "Full", False, False)
    assert TextDecoder(many_streams, stream_index=2).metadata.forced
    assert TextDecoder(many_streams, stream_index=5).metadata.language is None
    assert TextDecoder(many_streams).metadata.default


@pytest.mark.parametrize(
    ("choice", "error", "message"),
    [
        ({"language": "fr"}, DecodeError, r"in the language 'fr'.* 3 text subrip \(eng\)"),
        ({"language": "pt-PT"}, DecodeError, "in the language 'pt-PT'"),
        ({"stream_index": 0}, ValueError, "stream 0 .* is no text stream; .* 0 video mpeg4"),
        ({"stream_index": 7}, ValueError, "has no stream 7"),
        ({"stream_index": -1}, ValueError, "has no stream -1"),
        ({"stream_index": 3, "language": "de"}, ValueError, "stream 3 .* is not in 'de'"),
        ({"stream_index": 1}, UnsupportedError, r"stream 1.* pictures \(dvd_subtitle\)"),
        ({"stream_index": "1"}, TypeError, "stream_index"),
        ({"language": 3}, TypeError, "language"),
        ({"language": " "}, ValueError, "language"),
        ({"sidecar": 3}, TypeError, "sidecar"),
        ({"sidecar": True, "stream_index": 3}, ValueError, "stream_index, sidecar"),
        ({"encoding": "latin-0"}, ValueError, "latin-0"),
        ({"encoding": "hex"}, ValueError, "hex"),
        ({"encoding": 8}, TypeError, "encoding"),
    ],
)
def test_wrong_choices(
    choice: dict[str, Any], error: type[Exception], message: str, many_streams: Path
) -> None:
    with pytest.raises(error, match=message):
        TextDecoder(many_streams, **choice)


@pytest.mark.parametrize(("codec", "name"), [("dvdsub", "dvd_subtitle"), ("dvbsub", "dvb_subtitle")])
def test_pictures_of_text(codec: str, name: str, tmp_path: Path) -> None:
    path = write_subtitled(tmp_path / "film.mkv", [(codec, [(0, 1, b"\0\4\0\4")], {})])
    with pytest.raises(UnsupportedError, match=name):
        TextDecoder(path)
    (tmp_path / "film.srt").write_text(srt([(0, 1, "read by eye")]))
    assert texts(TextDecoder(path)) == ["read by eye"]
    with pytest.raises(UnsupportedError, match=name):
        TextDecoder(path, sidecar=False)


def test_codec_without_decoder(tmp_path: Path) -> None:
    path = write_subtitled(tmp_path / "film.mp4", [("mov_text", [(0, 1, b"words")], {})])
    path.write_bytes(path.read_bytes().replace(b"tx3g", b"stpp"))  # TTML
    with pytest.raises(UnsupportedError, match="stream 1: FFmpeg has no decoder"):
        TextDecoder(path)


def test_no_text(clip: Path) -> None:
    with pytest.raises(DecodeError, match=r"holds no text stream; its streams: 0 video h264"):
        TextDecoder(clip)


# --- damage and encodings of streams


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "subrip"), ("mkv", "webvtt"), ("mp4", "mov_text")])
def test_text_that_is_not_utf8(suffix: str, codec: str, tmp_path: Path) -> None:
    cues = [
        (0.2, 0.3, "Straße".encode("cp1252")),
        (0.6, 0.3, b"plain"),
        (1.0, 0.3, "\ufeffŽluťoučký".encode("utf-16-be")),
    ]
    path = write_subtitled(tmp_path / f"film.{suffix}", [(codec, cues, {})])
    decoder = TextDecoder(path)
    assert texts(decoder) == ["Straße", "plain", "Žluťoučký"]
    assert decoder.metadata.damage is None
    cues = [(0.2, 0.3, "привет".encode("cp1251")), (0.6, 0.3, b"plain")]
    path = write_subtitled(tmp_path / f"other.{suffix}", [(codec, cues, {})])
    assert texts(TextDecoder(path, encoding="cp1251")) == ["привет", "plain"]


def test_a_damaged_cue_costs_no_other(tmp_path: Path) -> None:
    cues = [(0.2, 0.3, event("one")), (0.6, 0.3, b"garbage"), (1.0, 0.3, event("three"))]
    decoder = TextDecoder(write_subtitled(tmp_path / "film.mkv", [("ass", cues, {})]))
    assert texts(decoder) == ["one", "three"]
    assert decoder.metadata.damage is not None
    assert decoder.metadata.damage.startswith("1 cue could not be decoded, the first at 0.6 s")
    cues = [(0.2, 0.3, "ž".encode()), (0.6, 0.3, b"\x81"), (1.0, 0.3, b"\x81\x8d"), (1.4, 0.3, b"four")]
    path = write_subtitled(tmp_path / "other.mkv", [("subrip", cues, {})])
    decoder = TextDecoder(path, encoding="utf-8")
    assert texts(decoder) == ["ž", "four"]
    assert "2 cues" in (decoder.metadata.damage or "")


def test_a_file_that_breaks_off(tmp_path: Path) -> None:
    cues = [(i * 0.2, 0.1, f"cue {i}".encode()) for i in range(10)]
    path = write_subtitled(tmp_path / "film.mkv", [("subrip", cues, {})])
    content = path.read_bytes()
    whole = texts(TextDecoder(content))
    assert len(whole) == 10
    found = texts(TextDecoder(content[: len(content) // 2]))
    assert 0 < len(found) < 10
    assert found == whole[: len(found)]


def test_damaged_bytes_never_crash(tmp_path: Path) -> None:
    rng = random.Random(3)
    for suffix, codec in (("mp4", "mov_text"), ("mkv", "subrip"), ("mkv", "ass")):
        wrap = event if codec == "ass" else str.encode
        cues = [(i * 0.1, 0.1, wrap(f"cue {i}")) for i in range(12)]
        content = write_subtitled(tmp_path / f"x.{suffix}", [(codec, cues, {})], num_frames=4).read_bytes()
        for _ in range(40):
            damaged = bytearray(content)
            for _ in range(rng.randrange(1, 30)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            try:
                decoder = TextDecoder(bytes(damaged))
            except (DecodeError, UnsupportedError):
                continue
            assert all(s.start <= s.end and s.text for s in decoder)
            assert sorted(decoder, key=lambda s: (s.start, s.end)) == list(decoder)


def test_streams_go_before_files(many_streams: Path, tmp_path: Path) -> None:
    video = tmp_path / "film.mkv"
    video.write_bytes(many_streams.read_bytes())
    (tmp_path / "film.fr.vtt").write_text("WEBVTT\n\n00:01.000 --> 00:02.000\nbonjour\n")
    assert texts(TextDecoder(video)) == ["brasil"]
    assert texts(TextDecoder(video, language="fr")) == ["bonjour"]
    assert texts(TextDecoder(video, sidecar=True)) == ["bonjour"]
    assert texts(TextDecoder(video, sidecar=tmp_path / "film.fr.vtt")) == ["bonjour"]
    with pytest.raises(ValueError, match="leaves no choice"):
        TextDecoder(video, sidecar=tmp_path / "film.fr.vtt", language="fr")


# --- the decoder


def test_the_clock_of_the_sample(tmp_path: Path) -> None:
    clip = mmcore.write_sample(tmp_path / "sample.mp4", seconds=2, width=64, height=64)
    segments = TextDecoder(clip.path)
    assert [(s.start, s.text) for s in segments] == [(e.seconds, e.word) for e in clip.events]
    with mmcore.VideoDecoder(clip.path) as video:
        for segment, event in zip(segments, clip.events, strict=True):
            assert video[event.frame].float().mean() > video[event.frame - 1].float().mean() + 30
            assert video.get_frame_at(event.frame).pts_seconds == segment.start


def test_ranges() -> None:
    rng = random.Random(1)
    cues = [(1, 3, "a"), (1, 1, "point"), (2, 9, "long"), (4, 5, "b"), (6, 6.5, "c")]
    cues += [(s := rng.randrange(40), s + rng.randrange(1, 9), str(i)) for i in range(30)]
    decoder = TextDecoder(srt(cues).encode())
    every = decoder.get_all_segments()
    times = [x / 2 for x in range(-3, 110, 3)] + [1.0, 3.0, 6.0, 6.5]
    for start in times:
        for stop in (*(t for t in times if t >= start), None):
            expected = [
                s
                for s in every
                if start != stop
                and (stop is None or s.start < stop)
                and (s.end > start or s.start == s.end == start)
            ]
            assert decoder.get_segments_played_in_range(start, stop) == expected
    assert decoder.get_segments_played_in_range() == every
    assert decoder.get_segments_played_in_range(1000, 2000) == []
    for start, stop in ((2, 1), (float("nan"), 2), (0, float("inf"))):
        with pytest.raises(ValueError, match=r"start_seconds|stop_seconds"):
            decoder.get_segments_played_in_range(start, stop)
    with pytest.raises(TypeError, match="start_seconds"):
        decoder.get_segments_played_in_range("1", 2)  # type: ignore[arg-type]
    assert TextDecoder(b"WEBVTT\n").get_segments_played_in_range(0, 5) == []


def test_sequence(many_streams: Path) -> None:
    decoder = TextDecoder(srt([(i, i + 1, str(i)) for i in range(5)]).encode())
    assert len(decoder) == 5
    assert decoder[-1].text == "4"
    assert [s.text for s in decoder[1:4:2]] == ["1", "3"]
    assert decoder[2] in decoder
    assert decoder[0].duration_seconds == 1
    for key in (5, -6):
        with pytest.raises(IndexError, match=f"no segment {key}"):
            decoder[key]
    with pytest.raises(TypeError, match="key"):
        decoder["0"]  # type: ignore[call-overload]
    decoder.get_all_segments().clear()
    assert len(decoder) == 5
    again = pickle.loads(pickle.dumps(TextDecoder(many_streams)))
    assert texts(again) == ["brasil"]
    assert "stream 6, 1 segments" in repr(again)


def test_file_objects_that_fail(many_streams: Path) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 2000:
                raise OSError("the disk is gone")
            return super().read(size)

    with pytest.raises(DecodeError):
        TextDecoder(Failing(b"\0" * 5000))
    with pytest.raises(ValueError, match="network"):
        TextDecoder("http://localhost/film.srt")


def test_inputs_stay_open_and_as_they_are(many_streams: Path) -> None:
    content = io.BytesIO(many_streams.read_bytes())
    assert texts(TextDecoder(content)) == ["brasil"]
    assert not content.closed


# --- parts


@pytest.mark.parametrize(
    ("markup", "plain"),
    [
        (r"a\Nb\nc\hd", "a\nb c d"),
        (r"{\i1}x{\i0}y", "xy"),
        (r"{\p1}m 0 0 l 1 1{\p0}x{\p2}m{\pbo3}m", "x"),
        (r"\{{}x} \{y\}", "{x} {y}"),
        ("\\\u2060N", r"\N"),
        (r"{unclosed", "{unclosed"),
        (r"  a  \N  b ", "a\nb"),
        ("", ""),
    ],
)
def test_plain_text(markup: str, plain: str) -> None:
    assert plain_text(markup, "webvtt") == plain_text(markup, "ass") == plain
    assert plain_text("a{b}c", "webvtt") == "a{b}c"
    assert plain_text("a{b}c", "ass") == "ac"


def test_languages() -> None:
    for wanted, tag in (("de", "ger"), ("ger", "deu"), ("DE", "de-AT"), ("zh-Hant", "chi"), ("fil", "fil")):
        assert language_match(wanted, tag)
        assert language_match(tag, wanted)
    for wanted, tag in (("de", "en"), ("pt-BR", "pt-PT"), ("en", None), ("en", ""), ("en", "enm")):
        assert not language_match(wanted, tag)
    assert language_match("en", "eng") > language_match("en", "en-US")
