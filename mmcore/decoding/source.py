"""Where the bytes of a media file come from, and how they are opened: local files only, unless told so."""

from __future__ import annotations

import io
import os
import re
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mmcore.errors import DecodeError, UnsupportedError

if TYPE_CHECKING:
    from av.container import InputContainer

__all__ = ["Source"]

# Demuxers that open further files or connections named by the content of the first one.
_INDIRECT = frozenset({"applehttp", "concat", "dash", "hls", "image2", "imf", "rtp", "rtsp", "sap", "sdp"})
_INDIRECT |= {"vapoursynth", "avisynth", "webm_dash_manifest"}
_PLAYLIST_HEADS = (b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+:")
# Python objects are read through a callback that takes the GIL: few large reads cost less.
_OBJECT_BUFFER = 1 << 18


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
            if hasattr(source, "seekable") and not source.seekable():
                raise TypeError(f"source: {self.name} cannot seek; read it whole and pass the bytes instead")
            if not isinstance(source.read(0), bytes):
                raise TypeError(f"source: {self.name} gives text; open it in binary mode, open(path, 'rb')")
            self._object = source
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

    def open(self) -> InputContainer:
        """Open the source from its beginning.

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
        # Metadata is often not the UTF-8 it should be; that is no reason to refuse a file.
        settings: dict[str, Any] = {"container_options": options, "metadata_errors": "replace"}
        container: InputContainer
        try:
            if self._path is not None:
                is_url = self.network and not os.path.exists(self._path)
                container = av.open(self._path if is_url else "file:" + self._path, **settings)
            elif isinstance(self._object, bytes):
                container = av.open(io.BytesIO(self._object), buffer_size=_OBJECT_BUFFER, **settings)
            else:
                self._object.seek(0)
                container = av.open(_Unclosed(self._object), buffer_size=_OBJECT_BUFFER, **settings)
        except av.FFmpegError as error:
            if not self.network and self._head().startswith(_PLAYLIST_HEADS):
                raise UnsupportedError(
                    f"{self.name}: is a playlist, which names further files: pass network=True to follow it"
                ) from error
            raise DecodeError(f"{self.name}: cannot be opened as a media file: {error.strerror}") from error
        return container

    def _head(self) -> bytes:
        """The first bytes, for a better error message; empty if they cannot be had."""
        try:
            if self._path is not None:
                with open(self._path, "rb") as file:
                    return file.read(64).lstrip()
            if isinstance(self._object, bytes):
                return self._object[:64].lstrip()
            self._object.seek(0)
            return bytes(self._object.read(64)).lstrip()
        except OSError:
            return b""

    def __getstate__(self) -> dict[str, Any]:
        if self._object is not None and not isinstance(self._object, (bytes, io.BytesIO)):
            raise TypeError(
                f"{self.name}: a decoder of a file object cannot be pickled; give it the path or the bytes"
            )
        return self.__dict__.copy()


class _Unclosed:
    """The part of a file object that reading needs: whoever opened the file closes it."""

    def __init__(self, file: Any) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell
        self.name = str(getattr(file, "name", ""))
