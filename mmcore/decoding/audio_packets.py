"""The packets of one audio stream: opened, numbered in file order, and found again by number."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import operator
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .audio_table import NO_TIME, NOT_HEARD, AudioTable, PacketNotes, SampleClock, end_trim
from .control import Control
from .mp4_boxes import plain_mp4_size
from .source import Source, choose_stream, demux

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet

__all__ = ["READ_ON", "AudioPackets", "NumberedPacket"]

# Up to this many packets are read on to rather than sought.
READ_ON = 64
# How many packets earlier a seek is tried that led too far.
_SEEK_BACK = (0, 16, 256)
# Packets that are read at both ends of an MP4 file whose header lists them all.
_READ_AT_ENDS = 16
# Codecs that have checksums which FFmpeg does not look at unless told so.
_CHECKED = frozenset({"flac"})


@dataclass(slots=True)
class NumberedPacket:
    """A packet and its number in the file; at the end comes the last number without a packet.

    ``decoded`` holds what came of it, frames or the reason for none, if it was decoded before.
    """

    number: int
    packet: Packet[Any] | None
    is_last: bool
    decoded: tuple[list[AudioFrame], str | None] | None = None


class AudioPackets:
    """Reads packets of one audio stream; after a fork the child opens the source anew.

    Parameters
    ----------
    source : Source
        What to read.
    stream_index : int or None
        Number of the stream in the file; None for the one FFmpeg thinks best.

    Raises
    ------
    DecodeError, UnsupportedError, ValueError
        If the source has no such stream.
    """

    def __init__(self, source: Source, stream_index: int | None) -> None:
        self.source = source
        self.control: Control | None = None
        self.notes: PacketNotes | None = None
        """Of all packets, if they were read together with another stream's."""
        self._requested_stream = stream_index
        self._forget()
        container, stream = self.open()
        self._requested_stream = stream.index
        self.formats = frozenset(container.format.name.split(","))

    def _forget(self) -> None:
        self._container: InputContainer | None = None
        self._stream: AudioStream | None = None
        self._packets: Iterator[Packet[AudioStream]] | None = None
        self._held: Packet[AudioStream] | None = None  # the next packet, if it is read already
        self._order = 0  # its number
        self.damage: str | None = None
        """Why there is no next packet, if it is not the file's proper end."""
        self.opening: list[NumberedPacket] = []
        """The first packets, as long as none were read but these: they are given once more."""
        self._at_opening = False
        self._pid = os.getpid()

    # --- opening and closing

    def open(self) -> tuple[InputContainer, AudioStream]:
        """Open the source anew, at its beginning."""
        import av

        self.close()
        container = self.source.open(probe=False)
        streams = container.streams.audio
        unclear = self._requested_stream is None and len(streams) > 1
        if unclear or any(s.codec_context and not s.codec_context.sample_rate for s in streams):
            container.close()
            container = self.source.open()
        try:
            stream = choose_stream(container, "audio", self._requested_stream, self.source.name)
        except BaseException:
            container.close()
            raise
        discard = getattr(av.stream, "Discard", None)
        for other in container.streams:
            if discard is not None and other.index != stream.index:
                with contextlib.suppress(AttributeError):
                    other.discard = discard.all  # the demuxer then need not read them
        stream.codec_context.thread_type = "NONE"  # a frame is decoded faster than handed over
        if stream.codec_context.name in _CHECKED:
            stream.codec_context.options = {"err_detect": "crccheck+explode"}
        self._container, self._stream = container, stream
        self._packets, self._at_opening = demux(container, stream), True
        return container, stream

    def opened(self) -> tuple[InputContainer, AudioStream]:
        """The open container and stream, opened now if need be."""
        if self._pid != os.getpid() or self._container is None or self._stream is None:
            return self.open()
        return self._container, self._stream

    def close(self) -> None:
        """Release the file; a later read opens it again."""
        if self._pid != os.getpid():
            # The parent still owns them, and may have been reading when the process forked: leak them.
            for held in (self._container, self._stream, self._packets, self.opening):
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))
        elif self._container is not None:
            self._container.close()
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_container", "_stream", "_packets", "_held", "control", "notes"):
            state[name] = None
        state["opening"] = []
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    # --- reading

    def next(self) -> Packet[Any] | None:
        """The next packet that has content; None at the end, or where the file breaks off."""
        import av

        if self._held is not None:
            packet, self._held = self._held, None
            return packet
        if self.control is not None:
            self.control.check()
        assert self._packets is not None
        try:
            for found in self._packets:
                if found.size:
                    return found
        except av.FFmpegError as error:
            self.damage = f"the file breaks off: {error.strerror}"
        return None

    def keep_opening(self, found: list[NumberedPacket]) -> None:
        """Give ``found``, the packets read since the source was opened, once more when they are asked for."""
        self.opening, self._at_opening = found, True

    def numbered(self, begin: int, table: AudioTable | None) -> Iterator[NumberedPacket]:
        """Packets from number ``begin`` on, which ``table`` has if it is not 0."""
        if begin and table is not None:
            self._go_to(begin, table)
            self._at_opening = False
        else:
            yield from self._opening_again()
        while (packet := self.next()) is not None:
            self._held = self.next()
            number, self._order = self._order, self._order + 1
            yield NumberedPacket(number, packet, self._held is None)
        self._note_shortage()
        yield NumberedPacket(max(self._order - 1, 0), None, True)

    def _opening_again(self) -> list[NumberedPacket]:
        """Go to the beginning; the packets that were read already are given up, to be given first."""
        if not self._at_opening or self._pid != os.getpid():
            self.open()
        self._at_opening = False
        opening, self.opening = self.opening, []
        return opening

    def table(
        self,
        codec: str,
        first_count: int,
        sample_bytes: int,
        clock: SampleClock,
        first_packet: int,
        first_pts: int,
        rate: int,
    ) -> AudioTable:
        """Tabulate which samples all packets give, without decoding: read them, unless they are known.

        Parameters
        ----------
        codec : str
            FFmpeg's canonical name.
        first_count, sample_bytes, clock, first_packet, first_pts
            As for :meth:`PacketNotes.table`.
        rate : int
            Samples per second.

        Raises
        ------
        DecodeError, DecodeTimeoutError, Cancelled
        """
        notes = self.notes or self._notes_by_header(codec, first_packet) or self._notes_by_reading(codec)
        self.notes = None
        is_mp4 = "mp4" in self.formats
        limit = None if notes.last is None else end_trim(notes.last, rate, is_mp4)
        table = notes.table(first_count, sample_bytes, clock, first_packet, first_pts, limit)
        table.damage = self.damage
        return table

    def _notes_by_reading(self, codec: str) -> PacketNotes:
        """Of all packets."""
        notes = PacketNotes(codec)
        for step in self._opening_again():
            if step.packet is not None:
                notes.note(step.packet)
        while (packet := self.next()) is not None:
            notes.note(packet)
        self._order = len(notes)
        self._note_shortage()
        return notes

    def _notes_by_header(self, codec: str, first_packet: int) -> PacketNotes | None:
        """Of all packets of an MP4 file, which its header lists; None where that may not be the whole truth.

        The first and the last packets are read, for what the header lacks: samples to skip, a length.
        """
        if "mp4" not in self.formats or not (codec == "aac" or codec.startswith("pcm_")):
            return None  # others are parsed, and may be split, or tell their samples in their content
        entries = self.opened()[1].index_entries
        count = len(entries)
        size = plain_mp4_size(self.source) if count > 4 * (first_packet + _READ_AT_ENDS) else None
        if size is None:
            return None
        notes = PacketNotes(codec)
        for number, entry in enumerate(entries):
            position, length = entry.pos, entry.size
            if length <= 0 or position <= 0 or position + length > size:
                return None
            notes.pts.append(entry.timestamp)
            notes.position.append(position)
            notes.size.append(length)
            if entry.is_discard:
                notes.trims[number] = NOT_HEARD
        if any(map(operator.ge, notes.pts, notes.pts[1:])):
            return None
        head = first_packet + _READ_AT_ENDS
        found = [step.packet for step in itertools.islice(self.numbered(0, None), head)]
        tail = count - _READ_AT_ENDS
        if notes.pts[head] <= 0 or not notes.check(0, found) or not self.seek(notes.pts[tail]):
            return None
        found = []
        while (packet := self.next()) is not None:
            found.append(packet)
        self._order = count
        if len(found) < _READ_AT_ENDS or not notes.check(count - len(found), found):
            return None
        return notes

    def seek(self, time: int) -> bool:
        """Go to a packet at or before ``time``, in the stream's units, whose number is not known."""
        import av

        container, stream = self.opened()
        try:
            container.seek(time, stream=stream)
        except av.FFmpegError:
            return False
        self._packets = demux(container, stream)
        self._held, self.damage, self.opening, self._at_opening = None, None, [], False
        return True

    def _go_to(self, number: int, table: AudioTable) -> None:
        """Make packet ``number`` the next one."""
        self.opened()
        near = 0 <= number - self._order <= READ_ON and not self._at_opening
        if near and self._read_to(number):
            return
        for back in _SEEK_BACK:
            time = table.pts[max(number - back, 0)]
            if time == NO_TIME or not self.seek(time):
                continue
            found = None
            while found is None and (packet := self.next()) is not None:
                found = table.number_of(packet)
                self._held = packet if found is not None else None
            if found is not None and found <= number:
                self._order = found
                if self._read_to(number):
                    return
        self.open()
        self._at_opening = False
        self._read_to(number)

    def _read_to(self, number: int) -> bool:
        while self._order < number:
            if self.next() is None:
                return False
            self._order += 1
        return True

    def _note_shortage(self) -> None:
        """Where the container tells, note that packets are missing at the end."""
        assert self._stream is not None
        if self.damage is None and "mp4" in self.formats:
            entries = len(self._stream.index_entries)
            if self._order < entries:
                self.damage = f"{entries - self._order} of {entries} packets lie beyond the file's end"
        elif self.damage is None and "matroska" in self.formats:
            missing = self.source.matroska_shortage()
            if missing:
                self.damage = f"{missing} bytes lie beyond the file's end"
