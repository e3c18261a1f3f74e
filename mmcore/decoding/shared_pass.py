"""One pass over a file for its pictures that finds its words and its sound's packets as well.

Matroska files and transport streams are read from end to end for one stream as for three. (In MP4 a stream's
packets are found by the header, and read alone as cheaply.) What is found here must be what each stream would
give alone, but in Matroska an error in one stream's block may cost the others the rest of its cluster.
So where a pass met anything that is not plainly whole, it says so, and every stream is read alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmcore.errors import MMCoreError

from .audio_table import NO_TIME, PacketNotes, is_counted
from .source import Source, demux

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

__all__ = ["SharedPass"]

_FORMATS = frozenset({"matroska", "mpegts"})
# Packets of the pictures after which it is looked at whether they come evenly.
_LOOKED_AT = 64


class SharedPass:
    """What is to be found beside the pictures, and what was.

    Parameters
    ----------
    source : Source
        Of the file, which is opened by others.
    choose_text : callable, optional
        Gives the text stream of the open file, or raises as :class:`mmcore.TextDecoder` does.
    read_text : callable
        Makes something of the open file, that stream and its packets.
    audio : bool
        Note the packets of the sound.
    audio_stream : int or None
        Number of its stream; None for the one that FFmpeg thinks best.

    Attributes
    ----------
    kinds : set of str or None
        FFmpeg's names of the kinds of streams in the file, if known.
    best_audio : int or None
        The audio stream that FFmpeg thinks best, if it had a look at its content.
    text : object
        What ``read_text`` made, or the error of ``choose_text``; None: read it alone.
    notes : PacketNotes or None
        Of the sound; None: read it alone.
    """

    def __init__(
        self,
        source: Source,
        choose_text: Callable[[InputContainer], Any] | None,
        read_text: Callable[[InputContainer, Any, Sequence[Packet[Any]]], Any],
        audio: bool,
        audio_stream: int | None,
    ) -> None:
        self._source = source
        self._choose_text, self._read_text = choose_text, read_text
        self._wants_audio, self._requested_audio = audio, audio_stream
        self.kinds: set[str] | None = None
        self.best_audio: int | None = None
        self.text: Any = None
        self.notes: PacketNotes | None = None
        self._begun = self._broken = False
        self._text_stream: Any = None
        self._audio: Any = None
        self._cues: list[Packet[Any]] = []
        self._sound: PacketNotes | None = None

    # --- what the pass is over

    def _choose(self, container: InputContainer) -> list[Any]:
        """The streams to read beside the pictures."""
        formats = set(container.format.name.split(","))
        streams = container.streams
        self.kinds = {stream.type for stream in streams}
        is_mp4 = "mp4" in formats
        probed = not is_mp4 or len(streams.video) > 1
        if probed and (best := streams.best("audio")) is not None:
            self.best_audio = best.index
        if self._choose_text is not None:
            try:
                self._text_stream = self._choose_text(container)
            except MMCoreError as error:
                self.text = error
            except Exception:  # of arguments, which the text decoder refuses in its turn
                pass
        self._is_matroska = "matroska" in formats
        if formats.isdisjoint(_FORMATS) or (self._is_matroska and self._source.matroska_shortage()):
            self._text_stream = None
            return []
        if self._wants_audio:
            number = self.best_audio if self._requested_audio is None else self._requested_audio
            if number is not None and 0 <= number < len(streams) and streams[number].type == "audio":
                stream: Any = streams[number]
                codec = stream.codec_context
                if codec is not None and is_counted(codec.codec.canonical_name):
                    self._audio, self._sound = stream, PacketNotes(codec.codec.canonical_name)
        return [stream for stream in (self._text_stream, self._audio) if stream is not None]

    def demux(self, container: InputContainer, stream: VideoStream) -> Iterator[Packet[Any]]:
        """As :func:`demux`, for the pictures; the others' packets are kept."""
        from av.stream import Discard

        others = self._choose(container)
        if not others:
            yield from demux(container, stream)
            return
        self._begun = True
        for other in others:
            other.discard = Discard.default
        seen: array[int] | None = array("q") if self._is_matroska else None
        sound, cues, audio = self._sound, self._cues, self._audio
        try:
            for packet in container.demux([stream, *others]):
                its = packet.stream
                if its is stream:
                    if seen is not None and packet.size:
                        seen.append(NO_TIME if packet.pts is None else packet.pts)
                        if len(seen) == _LOOKED_AT:
                            if not (_is_even(seen) and (sound is None or _is_even(sound.pts))):
                                self._broken = True
                                return
                            seen = None
                    yield packet
                elif its is audio:
                    if packet.size and sound is not None:
                        sound.note(packet)
                elif packet.size:
                    cues.append(packet)
        except IndexError:  # as in demux()
            self._broken = True

    # --- what came of it

    def finish(
        self, container: InputContainer, stream: VideoStream, pts: array[int], key: int, damage: str | None
    ) -> bool:
        """Make use of what was found; False: nothing is, and the pictures are to be read again alone.

        Parameters
        ----------
        container, stream : InputContainer, VideoStream
            As given to :meth:`demux`.
        pts : array of int64
            Of the pictures' packets, NO_TIME where they have none.
        key : int
            Number of the last packet at which decoding can start, -1 if there is none.
        damage : str or None
            Why the pass ended before the file's end, if it did.
        """
        from av.stream import Discard

        if not self._begun:
            return True
        self._begun = False
        others: list[Any] = [other for other in (self._text_stream, self._audio) if other is not None]
        whole = damage is None and not self._broken and self._is_whole(container, stream, pts, key)
        for other in others:
            other.discard = Discard.all
        if whole and self._text_stream is not None:
            try:
                self.text = self._read_text(container, self._text_stream, self._cues)
            except Exception:  # whoever reads it alone will raise it
                self.text = None
        if whole and self._sound is not None:
            self.notes, self._sound.last = self._sound, None  # which would keep the file open
        self._text_stream = self._audio = self._sound = None
        self._cues = []
        return whole

    def _is_whole(self, container: InputContainer, stream: VideoStream, pts: array[int], key: int) -> bool:
        if not self._is_matroska:
            return True  # a transport stream's are in packets of their own
        # An error in one stream's block costs all that is left of its cluster.
        if key < 0 or not _is_even(pts) or (self._sound is not None and not _is_even(self._sound.pts)):
            return False
        return self._ends_alike(container, stream, pts, key)

    def _ends_alike(self, container: InputContainer, stream: VideoStream, pts: array[int], key: int) -> bool:
        """Whether every stream, read alone from the last key frame on, has the end that was found."""
        import av
        from av.stream import Discard

        sound = self._sound
        found: list[tuple[Any, Sequence[int | None]]] = [(stream, pts)]
        if sound is not None:
            found.append((self._audio, sound.pts))
        if self._text_stream is not None:
            found.append((self._text_stream, [_time(cue) for cue in self._cues]))
        alike = True
        for chosen, times in found:
            for other, _ in found:
                other.discard = Discard.default if other is chosen else Discard.all
            try:
                container.seek(pts[key], stream=stream)
                alone = [_time(packet) for packet in container.demux(chosen) if packet.size]
            except (av.FFmpegError, IndexError):
                return False
            if chosen is stream and not alone:
                return False
            alike = alike and (not alone or list(times[-len(alone) :]) == alone)
        stream.discard = Discard.default
        return alike


def _time(packet: Packet[Any]) -> int:
    return NO_TIME if packet.pts is None else packet.pts


def _is_even(pts: array[int]) -> bool:
    """Whether none is missing between two others, as far as their times tell."""
    times = np.sort(np.array(pts, np.int64))
    if not len(times) or times[0] == NO_TIME:
        return False
    steps = np.diff(times)
    return not len(steps) or bool(0 < steps.max() < 2 * steps.min())
