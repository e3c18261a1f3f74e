"""Where the bytes of a media file come from, and how they are opened: local files only, unless told so."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mmcore.errors import DecodeError, UnsupportedError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream

__all__ = ["Source", "choose_stream", "demux", "passing_interrupts"]

# Demuxers that open further files or connections named by the content of the first one.
_INDIRECT = frozenset({"applehttp", "concat", "dash", "hls", "image2", "imf", "rtp", "rtsp", "sap", "sdp"})
_INDIRECT |= {"vapoursynth", "avisynth", "webm_dash_manifest"}
_PLAYLIST_HEADS = (b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+:")
# Python objects are read through a callback that takes the GIL: few large reads cost less.
_OBJECT_BUFFER = 1 << 18
_HEAD = 4096


@cache
def _direct_formats() -> str:
    """Every format name but the indirect ones, as FFmpeg's ``format_whitelist`` wants it."""
    import av

    return ",".join(sorted(f for f in av.formats_available if _INDIRECT.isdisjoint(f.split(","))))


class Source:
    """A media source that can be opened repeatedly, in this process or, but for file objects, in another.

    Parameters
    ----------
    source : str, os.PathLike, bytes, bytearray, memoryview, Tensor or file-like object
        A path, the file's content (a Tensor must be 1-D uint8), or a binary file object with ``read``,
        ``seek`` and ``tell``.
    network : bool
        Allow URLs, FFmpeg's other protocols, and playlists that name further files.

    Raises
    ------
    TypeError
        For any other object, a text file object or one that cannot seek.
    ValueError
        For an empty name, or a URL while ``network`` is False.
    DecodeError
        If the path does not exist, is a directory, or if the content is empty.
    UnsupportedError
        If the path is a pipe or a device.
    """

    def __init__(self, source: Any, *, network: bool = False) -> None:
        self.network = network
        self._path: str | None = None
        self._object: Any = None
        if isinstance(source, (str, os.PathLike)):
            self._path = os.fsdecode(source)
            self.name = self._path
            self._check_path()
        elif isinstance(source, (bytes, bytearray, memoryview)):
            self._set_content(bytes(source))
        elif isinstance(source, Tensor):
            if source.dim() != 1 or source.element_size() != 1 or source.is_floating_point():
                raise TypeError(f"source: a Tensor must be 1-D uint8, got {source.dim()}-D {source.dtype}")
            self._set_content(source.cpu().numpy().tobytes())
        elif all(callable(getattr(source, method, None)) for method in ("read", "seek", "tell")):
            self.name = f"<file object {getattr(source, 'name', type(source).__name__)}>"
            self._object = source
            self._check_object()
        else:
            raise TypeError(
                "source: expected a path, bytes, a 1-D uint8 Tensor, or a binary file object with read, seek"
                f" and tell, got {type(source).__name__}"
            )

    def _set_content(self, content: bytes) -> None:
        self.name = f"<{len(content)} bytes>"
        if not content:
            raise DecodeError("source: the bytes are empty, expected the content of a media file")
        self._object = content

    def _check_object(self) -> None:
        source = self._object
        try:
            seekable = not hasattr(source, "seekable") or source.seekable()
            text = isinstance(source.read(0), str)
        except Exception as error:
            raise DecodeError(f"{self.name}: cannot be read: {type(error).__name__}: {error}") from error
        if not seekable:
            raise TypeError(f"source: {self.name} cannot seek; read it whole and pass the bytes instead")
        if text:
            raise TypeError(f"source: {self.name} gives text; open it in binary mode, open(path, 'rb')")

    def _check_path(self) -> None:
        path = self.name
        if not path:
            raise ValueError("source: expected the path of a media file, got an empty string")
        if os.path.isfile(path):
            if not os.path.getsize(path):
                raise DecodeError(f"{path}: the file is empty, expected a media file")
        elif os.path.isdir(path):
            raise DecodeError(f"{path}: is a directory, expected a media file")
        elif os.path.exists(path):
            raise UnsupportedError(f"{path}: is no regular file; read it whole and pass the bytes instead")
        elif _URL.match(path) and not re.match(r"[A-Za-z]:[\\/]", path):
            if not self.network:
                raise ValueError(
                    f"source: {path!r} is no local file; pass network=True to let FFmpeg open URLs and"
                    " playlists"
                )
        else:
            raise DecodeError(f"{path}: no such file")

    @property
    def local_path(self) -> str | None:
        """The path of a local file; None for anything else."""
        return None if self._path is None or not os.path.exists(self._path) else self._path

    @property
    def is_shareable(self) -> bool:
        """Whether several threads may read it at once, each from a container of its own."""
        return self._object is None or isinstance(self._object, bytes)

    def open(self, *, probe: bool = True) -> InputContainer:
        """Open the source from its beginning.

        Parameters
        ----------
        probe : bool
            Let FFmpeg decode a first frame of every stream, as it does by default. Without, an MP4 file,
            whose header describes its streams, opens up to 20 times as fast; what only a frame can tell, such
            as its pixel format, is not known then, nor is which of several streams is the best one. Other
            formats are probed in any case.

        Raises
        ------
        DecodeError
            If FFmpeg does not recognise or cannot read it.
        UnsupportedError
            For a playlist while ``network`` is False.
        """
        import av

        options = {}
        if not self.network:
            options = {"protocol_whitelist": "file", "format_whitelist": _direct_formats()}
        head = b"" if probe else self._head_and_size()[0]
        if head[8:12] == b"WAVE":
            # FFmpeg would search 5 MB of a WAV file for surround sound that poses as PCM: 30 ms.
            options |= {"probesize": "32768"}
        if head[4:8] == b"ftyp":
            # No codec has this name. The decoders that PyAV makes are not bound by it.
            options |= {"codec_whitelist": "none", "probesize": "4096"}
        # Metadata is often not the UTF-8 it should be; that is no reason to refuse a file.
        settings: dict[str, Any] = {"container_options": options, "metadata_errors": "replace"}
        if self._path is not None:
            is_url = self.network and not os.path.exists(self._path)
            file: Any = self._path if is_url else "file:" + self._path
        else:
            in_memory = isinstance(self._object, bytes)
            file = io.BytesIO(self._object) if in_memory else _FileObject(self._object, self.name)
            settings["buffer_size"] = _OBJECT_BUFFER
        container: InputContainer
        try:
            try:
                container = av.open(file, **settings)
            except av.ArgumentError:
                # FFmpeg prefers its reader of numbered files, which is not allowed, for this kind alone.
                if self._path is None or self.network or self._head_and_size()[0][:3] != b"\xff\xd8\xff":
                    raise
                container = av.open(file, format="jpeg_pipe", **settings)
        except av.FFmpegError as error:
            if not self.network and self._head_and_size()[0].lstrip().startswith(_PLAYLIST_HEADS):
                raise UnsupportedError(
                    f"{self.name}: is a playlist, which names further files: pass network=True to follow it"
                ) from error
            raise DecodeError(f"{self.name}: cannot be opened as a media file: {error.strerror}") from error
        return container

    def read(self, limit: int | None = None) -> bytes:
        """The first ``limit`` bytes, or all; a URL cannot be read this way.

        Raises
        ------
        DecodeError
        """
        if isinstance(self._object, bytes):
            return self._object[:limit]
        if self._path is None:
            reader = _FileObject(self._object, self.name)
            left = reader.seek(0, os.SEEK_END) if limit is None else limit
            reader.seek(0)
            parts = []
            while left > 0 and (part := reader.read(left)):
                parts.append(part)
                left -= len(part)
            return b"".join(parts)
        try:
            with open(self._path, "rb") as file:
                return file.read(-1 if limit is None else limit)
        except OSError as error:
            raise DecodeError(f"{self.name}: cannot be read: {error.strerror}") from error

    def matroska_shortage(self) -> int:
        """How many bytes a Matroska file lacks of the length that it says it has; 0 if it does not say.

        FFmpeg takes any end of such a file for its proper end.
        """
        head, size = self._head_and_size()
        segment = _skip_element(head, 0)
        if segment is None or head[segment : segment + 4] != b"\x18\x53\x80\x67":
            return 0
        end = _skip_element(head, segment)
        return 0 if end is None else max(0, end - size)

    def _head_and_size(self) -> tuple[bytes, int]:
        """The first bytes and the number of all; nothing if they cannot be had."""
        try:
            if self._path is not None:
                with open(self._path, "rb") as file:
                    return file.read(_HEAD), os.path.getsize(self._path)
            if isinstance(self._object, bytes):
                return self._object[:_HEAD], len(self._object)
            reader = _FileObject(self._object, self.name)
            return reader.read(_HEAD), reader.seek(0, os.SEEK_END)
        except (OSError, DecodeError):
            return b"", 0

    def __getstate__(self) -> dict[str, Any]:
        if self._object is not None and not isinstance(self._object, (bytes, io.BytesIO)):
            raise TypeError(
                f"{self.name}: a decoder of a file object cannot be pickled; give it the path or the bytes"
            )
        return self.__dict__.copy()


def choose_stream(container: InputContainer, kind: str, number: int | None, name: str) -> Any:
    """The "video" or "audio" stream of the file ``name`` with this number; the best one for None.

    Raises
    ------
    DecodeError
        If it holds none.
    UnsupportedError
        If there is no decoder for it.
    ValueError
        If the number is none of such a stream.
    """
    streams: Any = container.streams
    held = ", ".join(f"{s.index} ({s.type})" for s in streams) or "none"
    if number is None:
        stream = streams.best(kind)
        if stream is None:
            raise DecodeError(f"{name}: holds no {kind} stream; its streams: {held}")
    elif not 0 <= number < len(streams):
        raise ValueError(f"stream_index: {name} has no stream {number}; its streams: {held}")
    else:
        stream = streams[number]
        if stream.type != kind:
            raise ValueError(
                f"stream_index: stream {number} of {name} is no {kind} stream; its streams: {held}"
            )
    if stream.codec_context is None:
        raise UnsupportedError(f"{name}: stream {stream.index}: PyAV's FFmpeg has no decoder for its codec")
    return stream


def demux(container: InputContainer, stream: Stream) -> Iterator[Packet[Any]]:
    """Packets of a stream, then one without content, which brings its decoder to an end."""
    # That is the end as well: where another stream began on the way, PyAV may look for it in vain.
    with contextlib.suppress(IndexError):
        yield from container.demux(stream)


def _skip_element(content: bytes, start: int) -> int | None:
    """Where the EBML element at ``start`` ends; None if it does not say."""
    position, value, width = start, 0, 0
    for kept in (True, False):  # its id, whose length bits count as part of it, and its size, whose do not
        if position >= len(content) or not content[position]:
            return None
        width = 9 - content[position].bit_length()
        value = int.from_bytes(content[position : position + width])
        position += width
        if not kept:
            value &= (1 << 7 * width) - 1
    unknown = value == (1 << 7 * width) - 1
    return None if unknown or position > len(content) else position + value


class _InterruptedReadError(Exception):
    """Carries an interrupt through PyAV, which passes on nothing but an Exception from a file object."""


@contextlib.contextmanager
def passing_interrupts() -> Iterator[None]:
    """Raise an interrupt that came while a file object was read as what it was."""
    try:
        yield
    except _InterruptedReadError as carrier:
        raise carrier.__cause__ or KeyboardInterrupt from None


class _FileObject:
    """What FFmpeg needs of a file object, whose answers are checked: PyAV copies whatever ``read`` returns.

    Keeps its own position, so that the file may be read by others in between, and never closes it.
    """

    def __init__(self, file: Any, label: str) -> None:
        self.name = str(getattr(file, "name", ""))  # its ending helps FFmpeg to recognise the format
        self._file = file
        self._label = label
        self._position = 0
        self._failed = False

    def read(self, count: int) -> bytes:
        if self._failed:
            return b""  # FFmpeg tries on after an error; PyAV prints every one but the first
        try:
            self._file.seek(self._position)
            content = self._file.read(count)
            if not isinstance(content, bytes):
                content = bytes(memoryview(content))
            if len(content) > count:
                raise ValueError(f"read({count}) gave {len(content)} bytes")
        except BaseException as error:
            raise self._failure(error) from error
        self._position += len(content)
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == os.SEEK_CUR:
            offset += self._position
        elif whence == os.SEEK_END and not self._failed:
            try:
                self._file.seek(offset, os.SEEK_END)
                offset = int(self._file.tell())
            except BaseException as error:
                raise self._failure(error) from error
        self._position = offset
        return offset

    def tell(self) -> int:
        return self._position

    def _failure(self, error: BaseException) -> Exception:
        self._failed = True
        if not isinstance(error, Exception):
            return _InterruptedReadError()
        return DecodeError(f"{self._label}: reading failed: {type(error).__name__}: {error}")
