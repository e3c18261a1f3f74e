"""Subtitle files: formats, odd cues, encodings, and which file is read for a video."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pysubs2
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from media import number_of
from text_media import srt, write_subtitled

import mmcore
from mmcore import DecodeError, TextDecoder, TextSegment
from mmcore.decoding.text_encoding import decode_text

ASS_HEAD = """[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize
Style: Default,Arial,20

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""


def texts(decoder: TextDecoder) -> list[str]:
    return [segment.text for segment in decoder]


# --- subtitle files

VTT = """WEBVTT - a title

STYLE
::cue { color: red }

NOTE a comment

intro
00:01.000 --> 00:02.000 align:start position:0%
<v Fred>Hi &amp; <i.loud>bye</i> &lt;3

01:00:00.000 --> 01:00:01.500
<00:00:03.500><c>late</c>
"""


def test_a_media_file_that_holds_such_a_header_is_none(tmp_path: Path) -> None:
    """Matroska has the headers of its ASS tracks at its beginning."""
    path = tmp_path / "film.mkv"
    mmcore.encode(path, text=[(1, 2, "words")], text_codec="ass")
    head = path.read_bytes()[:8192]
    assert b"[Script Info]" in head
    assert list(TextDecoder(path)) == [TextSegment(1, 2, "words")]
    assert TextDecoder(path).metadata.stream_index == 0
    with pytest.raises(DecodeError, match="cannot be opened as a media file"):
        TextDecoder(b"\x1aE\xdf\xa3\n" + ASS_HEAD.encode())
    # what is text before the sign of a format, and binary behind it, is a subtitle file
    assert texts(TextDecoder(b"; made by hand\n" + srt([(1, 2, "a\x03b\x1a")]).encode())) == ["a\x03b\x1a"]


def test_webvtt_file() -> None:
    decoder = TextDecoder(VTT.encode())
    assert list(decoder) == [TextSegment(1, 2, "Hi & bye <3"), TextSegment(3600, 3601.5, "late")]
    assert (decoder.metadata.codec, decoder.metadata.encoding) == ("webvtt", "utf-8")
    assert list(TextDecoder(b"WEBVTT\n")) == []


def test_ass_file() -> None:
    lines = (
        "Comment: 0,0:00:00.00,0:00:09.00,Default,,0,0,0,,not shown",
        r"Dialogue: 0,0:00:01.00,0:00:02.50,Default,Ann,0,0,0,,{\i1}Well{\i0}, yes\Nand\hno{aside}",
        "Dialogue: 1,0:00:00.50,0:00:01.50,Default,,0,0,0,,early",
        r"Dialogue: 0,0:00:03.00,0:00:04.00,Default,,0,0,0,,{\pos(1,2)\p1}m 0 0 l 100 0 0 100{\p0}",
        "Dialogue: 0,0:00:05.00,0:00:04.00,Default,,0,0,0,,backwards",
        "Dialogue: 0,0:00:07.00,0:00:08.00,Default,,0,0,0,,last",
    )
    assert list(TextDecoder((ASS_HEAD + "\n".join(lines)).encode())) == [
        TextSegment(0.5, 1.5, "early"),
        TextSegment(1, 2.5, "Well, yes\nand no"),
        TextSegment(5, 7, "backwards"),
        TextSegment(7, 8, "last"),
    ]
    # SSA: the first field is another
    old = ASS_HEAD.replace("v4.00+", "v4.00").replace("V4+", "V4").replace("Layer", "Marked")
    old += "Dialogue: Marked=0,0:00:01.00,0:00:02.50,Default,,0000,0000,0000,,old, but fine\n"
    assert list(TextDecoder(old.encode())) == [TextSegment(1, 2.5, "old, but fine")]


def test_overlapping_unordered_and_odd_cues() -> None:
    cues = [
        (5.0, 6.0, "later"),
        (5.0, 6.0, "at the same time"),
        (1.0, 4.0, "long"),
        (1.0, 2.0, "short"),
        (1.5, 1.6, "within"),
        (7.0, 7.0, "an instant"),
        (9.0, 8.0, "backwards"),
        (10.0, 11.0, ""),
        (12.0, 13.0, "{\\an8}"),
        (-1.0, 0.5, "negative"),
        (20.0, 21.0, "the\nend"),
    ]
    assert list(TextDecoder(srt(cues).encode())) == [
        TextSegment(0, 0.5, "negative"),
        TextSegment(1, 2, "short"),
        TextSegment(1, 4, "long"),
        TextSegment(1.5, 1.6, "within"),
        TextSegment(5, 6, "later"),
        TextSegment(5, 6, "at the same time"),
        TextSegment(7, 7, "an instant"),
        TextSegment(9, 12, "backwards"),
        TextSegment(20, 21, "the\nend"),
    ]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 10_000_000),
            st.integers(1, 10_000),
            st.lists(
                st.text("abcäß漢字 ,.!?'", min_size=1).map(str.strip).filter(bool), min_size=1, max_size=3
            ),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_srt_files_as_another_reader_reads_them(cues: list[tuple[int, int, list[str]]]) -> None:
    lines = [(start / 1000, (start + length) / 1000, "\n".join(text)) for start, length, text in cues]
    content = srt(lines)
    expected = {(e.start, e.end, e.plaintext) for e in pysubs2.SSAFile.from_string(content, "srt")}
    found = [(round(s.start * 1000), round(s.end * 1000), s.text) for s in TextDecoder(content.encode())]
    # FFmpeg leaves out a cue that repeats the one before
    assert set(found) == expected
    assert found == sorted(found, key=lambda cue: cue[:2])


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("encoding", "found"),
    [
        ("utf-8", "utf-8"),
        ("utf-8-sig", "utf-8"),
        ("utf-16", "utf-16-le" if sys.byteorder == "little" else "utf-16-be"),
        ("utf-16-le", "utf-16-le"),
        ("utf-16-be", "utf-16-be"),
        ("utf-32", "utf-32-le" if sys.byteorder == "little" else "utf-32-be"),
        ("latin-1", "cp1252"),
        ("cp1252", "cp1252"),
    ],
)
@pytest.mark.parametrize("kind", ["srt", "vtt", "ass"])
def test_encodings(kind: str, encoding: str, found: str, line_end: str) -> None:
    words = "Déjà vu, ÿ, ñandú"
    text = {
        "srt": srt([(1, 2, words)]),
        "vtt": f"WEBVTT\n\n00:01.000 --> 00:02.000\n{words}\n",
        "ass": f"{ASS_HEAD}Dialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,{words}\n",
    }[kind]
    content = text.replace("\n", line_end).encode(encoding)
    decoder = TextDecoder(content)
    assert list(decoder) == [TextSegment(1, 2, words)]
    assert decoder.metadata.encoding == found


def test_given_encoding(tmp_path: Path) -> None:
    content = srt([(1, 2, "Привет, мир")]).encode("cp1251")
    assert texts(TextDecoder(content)) != ["Привет, мир"]
    decoder = TextDecoder(content, encoding="cp1251")
    assert texts(decoder) == ["Привет, мир"]
    assert decoder.metadata.encoding == "cp1251"
    with pytest.raises(DecodeError, match="is not in the encoding 'utf-8'"):
        TextDecoder(content, encoding="utf-8")
    with pytest.raises(DecodeError, match="utf-16"):
        TextDecoder(srt([(1, 2, "even")]).encode()[:-1], encoding="utf-16")


def test_detection() -> None:
    assert decode_text("漢字と仮名 10:00".encode("utf-16-le") * 9)[1] == "utf-16-le"
    damaged = ("こんにちは世界" * 20).encode()
    text, encoding = decode_text(damaged[:50] + b"\xff" + damaged[50:])
    assert encoding == "utf-8"
    assert text.count("\ufffd") <= 3
    assert decode_text(b"caf\xe9") == ("café", "cp1252")
    assert decode_text(b"caf\xe9\x81") == ("caf\xe9\x81", "latin-1")
    assert decode_text(b"") == ("", "utf-8")
    assert decode_text("\ufeffx".encode(), "utf-8") == ("x", "utf-8")


@given(st.binary(max_size=300))
def test_any_bytes_are_some_text(content: bytes) -> None:
    text, encoding = decode_text(content)
    assert isinstance(text, str)
    if encoding in ("cp1252", "latin-1"):
        assert text.encode(encoding) == content


@given(
    st.binary(max_size=200),
    st.sampled_from([b"WEBVTT\n\n", b"1\n00:00:01,000 --> 00:00:02,000\n", ASS_HEAD.encode()]),
)
def test_any_subtitle_file_gives_segments(content: bytes, head: bytes) -> None:
    try:
        decoder = TextDecoder(head + content)
    except DecodeError:
        assert b"\0" in content  # which makes it look like UTF-16
        return
    assert all(s.start <= s.end and s.text for s in decoder)


# --- which file


def test_files_beside_the_video(tmp_path: Path, clip: Path) -> None:
    video = tmp_path / "film.v1.mp4"
    video.write_bytes(clip.read_bytes())

    def put(name: str) -> None:
        (tmp_path / name).write_text(srt([(0, 1, name)]))

    def found(**choice: Any) -> str:
        return TextDecoder(video, **choice)[0].text

    for name in ("film.srt", "film.v1.part2.srt", "film.v1en.srt", "film.v1.srt.txt"):
        put(name)
    with pytest.raises(DecodeError, match="no text stream"):
        TextDecoder(video)
    with pytest.raises(DecodeError, match=r"no subtitle file beside it \(\.srt, \.vtt"):
        TextDecoder(video, sidecar=True)
    put("film.v1.pt.forced.srt")
    assert found() == "film.v1.pt.forced.srt"
    put("film.v1.pt-BR.srt")
    assert found() == "film.v1.pt-BR.srt"
    put("film.v1.ENG.sdh.srt")
    put("film.v1.Klingon.srt")
    put("film.v1.SRT")
    assert found() == found(sidecar=True) == "film.v1.SRT"
    assert found(language="pt-BR") == found(language="pt") == "film.v1.pt-BR.srt"
    assert found(language="en") == "film.v1.ENG.sdh.srt"
    assert found(language="klingon") == "film.v1.Klingon.srt"
    with pytest.raises(DecodeError, match="no text stream"):
        TextDecoder(video, language="de")
    with pytest.raises(DecodeError, match="no subtitle file in the language 'de'"):
        TextDecoder(video, language="de", sidecar=True)
    with pytest.raises(DecodeError, match="no text stream"):
        TextDecoder(video, sidecar=False)
    m = TextDecoder(video, language="en").metadata
    assert (m.stream_index, m.language, m.forced, m.codec) == (None, "ENG", False, "subrip")
    assert m.path == str(tmp_path / "film.v1.ENG.sdh.srt")
    assert TextDecoder(tmp_path / "film.v1.pt.forced.srt").metadata.language == "pt"
    with pytest.raises(ValueError, match="no place"):
        TextDecoder(video.read_bytes(), sidecar=True)


def test_a_subtitle_file_as_source(tmp_path: Path) -> None:
    content = srt([(1, 2, "words")]).encode()
    path = tmp_path / "words.en.srt"
    path.write_bytes(content)
    tensor = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    with path.open("rb") as file:
        for source in (path, str(path), content, bytearray(content), tensor, io.BytesIO(content), file):
            assert list(TextDecoder(source)) == [TextSegment(1, 2, "words")]
    for name, value in (("language", "en"), ("stream_index", 1), ("sidecar", path), ("sidecar", True)):
        with pytest.raises(ValueError, match=f"{name}: .* is a subtitle file"):
            TextDecoder(path, **{name: value})
    assert texts(TextDecoder(path, stream_index=0, sidecar=False)) == ["words"]


@pytest.mark.parametrize("content", [b"Just some prose.\n", b"\xff\xd8\xff\xe0" * 50, bytes(range(256))])
def test_no_subtitle_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "words.srt"
    path.write_bytes(content)
    with pytest.raises(DecodeError, match="no subtitles of SRT, WebVTT or ASS"):
        TextDecoder(path)


def test_empty_files(tmp_path: Path, clip: Path) -> None:
    path = tmp_path / "silent.srt"
    path.write_bytes(b"\xef\xbb\xbf\r\n")
    assert list(TextDecoder(path)) == list(TextDecoder(clip, sidecar=path)) == []
    m = TextDecoder(path).metadata
    assert (m.num_segments, m.begin_stream_seconds, m.end_stream_seconds) == (0, None, None)
    path.write_bytes(b"")
    with pytest.raises(DecodeError, match="empty"):
        TextDecoder(path)
    with pytest.raises(DecodeError, match="no such file"):
        TextDecoder(clip, sidecar=tmp_path / "missing.srt")
    with pytest.raises(DecodeError, match="no such file"):
        TextDecoder(tmp_path / "missing.mp4", sidecar=path)


def test_words_outlive_the_pictures(tmp_path: Path) -> None:
    video = tmp_path / "film.mp4"
    video.write_bytes(b"no media at all" * 100)
    with pytest.raises(DecodeError, match="cannot be opened"):
        TextDecoder(video)
    (tmp_path / "film.srt").write_text(srt([(0, 1, "words")]))
    assert texts(TextDecoder(video)) == texts(TextDecoder(video, sidecar=True)) == ["words"]


def test_a_file_begins_with_its_video(tmp_path: Path) -> None:
    video = write_subtitled(tmp_path / "film.ts", [], first_frame=35)
    (tmp_path / "film.srt").write_text(srt([(0.4, 0.6, "ten")]))
    (segment,) = TextDecoder(video)
    with mmcore.VideoDecoder(video) as decoder:
        assert decoder.metadata.begin_stream_seconds == pytest.approx(1.4, abs=1e-4)
        assert number_of(decoder.get_frame_played_at(segment.start + 1e-6).data) == 10
