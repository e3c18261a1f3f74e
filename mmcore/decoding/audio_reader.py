"""Finding and decoding sound: from sample numbers to a seek, a run of packets and the decoder's samples.

Whatever is read, every sample comes out as it does when the stream is decoded from its start. How far back a
decoder must begin for that depends on what it remembers:

- nothing, or the last few packets (PCM, FLAC, ALAC, MP3 with its bit reservoir, Vorbis): these are decoded
  and dropped, and the samples are FFmpeg's of an uninterrupted decode, to the bit;
- everything, but what is long past does not matter to the ear (AAC and AC-3, whose noise comes from a random
  generator that runs on; Opus, whose filters ring out): the decoder is made anew at every 512th packet, after
  a lead-in, in a full decode as well as for a range. Up to there, samples are FFmpeg's to the bit; from there
  on the noise is another draw of the same, and Opus strays by less than 1e-6;
- unknown: decoded from the start of the stream.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from mmcore.errors import DecodeError, UnsupportedError

from .audio_blocks import WHOLE_RANGE, BlockPacker, Samples
from .audio_packets import READ_ON, AudioPackets, NumberedPacket
from .audio_table import (
    NO_TIME,
    AudioTable,
    Counter,
    PacketNotes,
    SampleClock,
    end_trim,
    samples_counter,
    skipped,
)
from .control import Control
from .source import Source

if TYPE_CHECKING:
    from av.audio.codeccontext import AudioCodecContext
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet

__all__ = ["NEAR_SECONDS", "AudioReader", "Gap"]

# Packets to decode before the first one wanted, for codecs of bounded memory. MP3's reservoir is in bytes.
_LEAD_IN = {"alac": 0, "flac": 0, "adpcm_ima_wav": 0, "adpcm_ms": 0, "vorbis": 2, "mp3": 3}
_RESERVOIR_BYTES = 511
_MP3_HEADER_BYTES = 38  # and side information and checksum, at most
# Lead-in of decoders that are made anew. Opus needs 80 ms to sound right; after 32 packets of 20 ms it
# strayed by 4e-7 at most, with and without SILK.
_RESTARTED = {"aac": 8, "aac_latm": 8, "ac3": 4, "eac3": 4, "mp1": 4, "mp2": 4, "dts": 8, "opus": 32}
_RESTART_EVERY = 512
# Containers of PCM whose demuxer computes places from times.
_ARITHMETIC = frozenset({"wav", "w64", "aiff", "au", "caf", "sds", "sox", "voc"})
_RAW_FORMATS = frozenset({"flac"})
# Seconds of pieces that are kept, for a read that goes on just before where another one ended.
_KEPT_SECONDS = 2
# Without a table, this far is decoded on rather than sought.
NEAR_SECONDS = 10


@dataclass(slots=True)
class _Piece:
    """What one packet gave: samples ``start`` to ``start + count`` of the stream.

    ``frames`` begin ``dropped`` samples earlier; without any, the samples are lost, ``error`` says why.
    """

    number: int
    start: int
    count: int
    dropped: int
    frames: list[AudioFrame]
    error: str | None


@dataclass(slots=True)
class Gap:
    """Samples ``start`` to ``stop`` are silent; ``error``: why they could not be decoded, if they exist."""

    start: int
    stop: int
    error: str | None


class _TableError(Exception):
    """A packet gave another number of samples than it said."""


class AudioReader:
    """Decodes chosen samples of one audio stream, keeping the decoder where the last read left it.

    Not safe for use by several threads at once; after a fork the child opens the source anew.

    Parameters
    ----------
    source : Source
        What to read.
    stream_index : int or None
        Number of the stream in the file; None for the one FFmpeg thinks best.
    notes : PacketNotes, optional
        Of all its packets, if they are known.

    Raises
    ------
    DecodeError, UnsupportedError, ValueError
        If the source has no such stream, or nothing of it can be decoded.
    """

    def __init__(self, source: Source, stream_index: int | None, notes: PacketNotes | None = None) -> None:
        self._table: AudioTable | None = None
        self._may_retry = False
        self._likely_stop = 0
        self._file = AudioPackets(source, stream_index)
        self._forget()
        _, stream = self._file.opened()
        codec = stream.codec_context
        self.stream_index = stream.index
        self.name = f"{source.name}: stream {stream.index}"
        self.codec_name: str = codec.codec.canonical_name
        self._decoder_name: str = codec.codec.name
        self.time_base: Fraction = stream.time_base or Fraction(1, codec.sample_rate or 1)
        self._learn()
        self._file.notes = notes

    @property
    def origin(self) -> Fraction:
        """When sample 0 is heard, in seconds."""
        return self.first_pts * self.time_base

    def _learn(self) -> None:
        """Decode up to the first samples, which alone tell the format for certain."""
        self.first_pts = self.first_packet = self.sample_rate = self._untrimmed = self._sample_bytes = 0
        reason = None
        opening = []
        self._decoder: AudioCodecContext | None = self._file.opened()[1].codec_context
        for step in self._file.numbered(0, None):
            frames, error = step.decoded = self._decode(step.packet)
            opening.append(step)
            reason = error or reason
            if not frames:
                continue
            packet, first = step.packet, frames[0]
            pts = first.pts if first.pts is not None or packet is None else packet.pts
            self.first_pts, self.first_packet = pts or 0, step.number
            self.sample_rate, self.num_channels = first.sample_rate, first.layout.nb_channels
            self.channel_layout, self.sample_format = first.layout.name, first.format.name
            count = sum(frame.samples for frame in frames)
            if packet is not None:
                self._untrimmed = count + sum(skipped(packet))
                self._sample_bytes = packet.size // count
                self._file.keep_opening(opening)
            self._arithmetic = (
                self.codec_name.startswith("pcm_")
                and self.time_base * self.sample_rate == 1
                and not _ARITHMETIC.isdisjoint(self._file.formats)
            )
            # A raw stream has no times that could leave any out.
            raw = not self._file.formats.isdisjoint(_RAW_FORMATS)
            self._gap_error = "what is in the file there could not be read" if raw else None
            told = self._file.opened()[1].duration or 0
            self._likely_end = round(told * self.time_base * self.sample_rate)
            return
        because = f": {reason}" if reason else ""
        raise DecodeError(f"{self.name}: none of its packets decodes to sound{because}")

    # --- opening and closing

    def _forget(self) -> None:
        self._decoder = None
        self._pieces: Iterator[_Piece] | None = None  # what comes next
        self._kept: deque[_Piece] = deque()  # the last pieces, the next one included
        self._pid = os.getpid()

    def opened(self) -> tuple[InputContainer, AudioStream]:
        """The open container and stream, opened now if need be."""
        if self._pid != os.getpid():
            self.close()
        return self._file.opened()

    def close(self) -> None:
        """Release the file and the decoder; a later read opens them again."""
        if self._pid != os.getpid():
            for held in (self._decoder, self._pieces, self._kept):  # the parent's
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))
        elif self._pieces is not None:
            self._pieces.close()  # type: ignore[attr-defined]
        self._forget()
        self._file.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_decoder"], state["_pieces"], state["_kept"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def twin(self) -> AudioReader:
        """Another decoder of the same stream; it opens the source at its first read."""
        other, file = AudioReader.__new__(AudioReader), AudioPackets.__new__(AudioPackets)
        file.__setstate__(self._file.__getstate__())
        other.__setstate__({**self.__getstate__(), "_file": file})
        return other

    # --- reading

    def num_samples(self, control: Control) -> int:
        """Samples of the whole stream; its packets are read for it once.

        Raises
        ------
        DecodeError
            As :meth:`blocks`.
        """
        if self._arithmetic:
            self._stop_pieces()
            self._file.control = control
            told = self.opened()[1].duration
            return self._last_arithmetic(max((told or 0) - 1, 0)) or self._last_arithmetic(0)
        return self.table(control).end

    def damage(self, control: Control) -> str | None:
        """Why the stream ends early, if it does and its container tells; read as ``num_samples`` is."""
        return None if self._arithmetic else self.table(control).damage

    def blocks(
        self, start: int, stop: int | None, control: Control, gaps: list[Gap], *, at_once: bool = False
    ) -> Generator[Samples, None, None]:
        """Samples ``start`` to ``stop``, or to the end of the stream.

        Parameters
        ----------
        start : int
            At least 0.
        stop : int or None
            None for the end.
        control : Control
            Asked before every packet.
        gaps : list of Gap
            Where to note what is silent for want of sound.
        at_once : bool
            Whether the caller will hold all blocks: then few large ones are made, one if possible.

        Yields
        ------
        ndarray
            (channels, samples) float32, one after the other, each its own memory.

        Raises
        ------
        DecodeError
            If the packets' times leap, or reading fails.
        DecodeTimeoutError, Cancelled
            By ``control``; the next read starts anew.
        """
        if self._pid != os.getpid():
            self.close()
        self._likely_stop = self._likely_end if at_once and stop is None else 0
        self._may_retry = stop is not None and stop - start <= WHOLE_RANGE
        try:
            try:
                yield from self._fill(start, stop, control, gaps)
            except _TableError:  # raised before the only block is given
                self._table = None
                gaps.clear()
                self._stop_pieces()
                self._decode_table()
                yield from self._fill(start, stop, control, gaps)
        except GeneratorExit:  # between two blocks, when all is in order
            raise
        except BaseException:
            self.close()
            raise

    def _fill(self, start: int, stop: int | None, control: Control, gaps: list[Gap]) -> Iterator[Samples]:
        packer = BlockPacker(self.num_channels, start, stop, self._likely_stop)
        if stop is not None and start >= stop:
            return
        for piece in self._pieces_from(start, control, keeps=stop is not None):
            end = piece.start + piece.count
            if (
                piece.start == packer.next
                and not piece.error
                and not piece.dropped
                and (stop is None or end <= stop)
            ):
                left = piece.count
                for frame in piece.frames:
                    yield from packer.put(frame, 0, min(left, frame.samples))
                    left -= frame.samples
                continue
            if end < packer.next or (end == packer.next and not piece.error):
                continue
            stop_here = end if stop is None else min(end, stop)
            until = min(piece.start, stop_here)
            if until > packer.next:
                gaps.append(
                    Gap(packer.next, until, (piece.error if piece.frames else None) or self._gap_error)
                )
                yield from packer.silence(until)
            elif piece.error and (piece.frames or not piece.count):
                gaps.append(Gap(packer.next, packer.next, piece.error))
            if piece.frames:
                at = piece.start - piece.dropped
                for frame in piece.frames:
                    first, last = packer.next - at, min(frame.samples, stop_here - at)
                    if first < last:
                        yield from packer.put(frame, first, last)
                    at += frame.samples
            elif stop_here > packer.next:
                gaps.append(Gap(packer.next, stop_here, piece.error))
                yield from packer.silence(stop_here)
            if stop is not None and packer.next >= stop:
                break
        yield from packer.rest()

    def table(self, control: Control) -> AudioTable:
        """The packets of the stream, read now if they are not known.

        Raises
        ------
        DecodeError, DecodeTimeoutError, Cancelled
        """
        if self._table is None:
            self._file.control = control
            self._stop_pieces()
            counter = self._counter()
            if counter is None:
                self._decode_table()
            else:
                self._table = self._file.table(
                    self.codec_name,
                    self._untrimmed,
                    self._sample_bytes if self.codec_name.startswith("pcm_") else 0,
                    self._clock(),
                    self.first_packet,
                    self.first_pts,
                    self.sample_rate,
                )
        assert self._table is not None
        return self._table

    def _counter(self) -> Counter | None:
        return samples_counter(self.codec_name, self._untrimmed, self._sample_bytes)

    def _decode_table(self) -> None:
        """Decode the whole stream, which notes its table."""
        for _ in self._run(0):
            pass

    def _clock(self) -> SampleClock:
        return SampleClock(self.sample_rate, self.time_base, self.first_pts, self.name)

    # --- pieces

    def _stop_pieces(self) -> None:
        if self._pieces is not None:
            self._pieces.close()  # type: ignore[attr-defined]
        self._pieces = None
        self._kept.clear()

    def _pieces_from(self, start: int, control: Control, keeps: bool) -> Iterator[_Piece]:
        """Pieces from the one that holds sample ``start`` on, or from an earlier one."""
        self._file.control = control
        if not self._goes_on_to(start):
            self._stop_pieces()
            if self._arithmetic:
                self._pieces = self._run_arithmetic(start)
            else:
                first = 0
                if start > NEAR_SECONDS * self.sample_rate or self._table is not None:
                    first = self.table(control).packet_of(start)
                self._pieces = self._run(first)
        pieces, kept = self._pieces, self._kept
        assert pieces is not None
        yield from list(kept)
        if not keeps:
            kept.clear()
            yield from pieces
        for piece in pieces:
            kept.append(piece)
            while piece.start - kept[0].start > _KEPT_SECONDS * self.sample_rate:
                kept.popleft()
            yield piece
        self._pieces = None
        kept.clear()

    def _goes_on_to(self, start: int) -> bool:
        """Whether ``start`` is kept, or reached sooner by decoding on than by a seek."""
        if self._pieces is None or not self._kept or self._kept[0].start > start:
            return False
        last = self._kept[-1]
        reached = last.start + last.count
        if start <= reached:
            return True
        if self._table is None or self._arithmetic:
            return start - reached < (1 if self._arithmetic else NEAR_SECONDS) * self.sample_rate
        return self._begin(self._table.packet_of(start))[0] <= last.number + READ_ON

    def _begin(self, first: int) -> tuple[int, int]:
        """Where the decoder must begin for packet ``first`` to be right, and where it is made anew, if so."""
        name, table = self.codec_name, self._table
        if name in _RESTARTED:
            anew = first - first % _RESTART_EVERY
            return max(0, anew - _RESTARTED[name]), anew
        lead = 0 if name.startswith("pcm_") else _LEAD_IN.get(name)
        if lead is None or table is None:
            return 0, 0
        if name == "mp3":
            held, number = 0, first
            while number > 0 and held < _RESERVOIR_BYTES:
                number -= 1
                held += max(table.size[number] - _MP3_HEADER_BYTES, 0)
            first = number
        return max(0, first - lead), 0

    def _run(self, first: int) -> Iterator[_Piece]:
        """Pieces of packet ``first`` and all that follow."""
        begin, anew = self._begin(first)
        table, clock = self._table, self._clock()
        notes = begin == first == 0 and not (table and table.decoded)
        noted = AudioTable(decoded=True)
        restarts = self.codec_name in _RESTARTED
        lead_in: deque[Packet[Any]] = deque(maxlen=_RESTARTED.get(self.codec_name, 0))
        before: str | None = None  # why packets since the last piece did not decode
        number = 0
        for step in self._file.numbered(begin, table):
            number, packet = step.number, step.packet
            if packet is None:
                pass
            elif number == begin:
                self._start_decoder(begin)
            elif restarts and number % _RESTART_EVERY == 0 and number != anew:
                self._decoder = self._new_decoder()
                for earlier in lead_in:
                    self._decode(earlier)
            frames, error = step.decoded or self._decode(packet)
            if packet is None:
                if not frames:
                    break
            elif restarts:
                lead_in.append(packet)
            if number < first:
                continue
            if number == first and table is not None and packet is not None:
                clock.next = max(clock.next, table.start[number])
            pts, count = self._placing(step, frames, error)
            start, dropped = clock.place(pts, count)
            count -= dropped
            if self._may_retry and table is not None and not table.decoded and not error:
                told = table.count[number] if packet is not None else 0
                if count != told:
                    raise _TableError
            if notes and packet is not None:
                noted.append(packet, start, count)
            if count:
                yield _Piece(number, start, count, dropped, frames, error or before)
                before = None
            else:
                before = error or before
        damage = self._file.damage
        if damage or before:
            yield _Piece(number, clock.next, 0, 0, [], damage or before)
        if notes:
            noted.end, noted.damage = clock.next, damage
            self._table = noted

    def _placing(self, step: NumberedPacket, frames: list[AudioFrame], error: str | None) -> tuple[int, int]:
        """The time by which a packet's samples are placed, and how many it gives, or would have given."""
        count = sum(frame.samples for frame in frames)
        packet, table = step.packet, self._table
        if packet is None:
            return NO_TIME, count
        if error and step.number >= self.first_packet:
            counter = self._counter()
            if counter is not None:
                count = max(0, counter(packet) - sum(skipped(packet)))
        if step.is_last:
            limit = end_trim(packet, self.sample_rate, "mp4" in self._file.formats)
            count = count if limit is None else min(count, limit)
        if step.number == self.first_packet:
            return self.first_pts, count
        if table is not None and step.number < len(table):
            return table.pts[step.number], count  # after a seek, the packet's own may be a guess
        return NO_TIME if packet.pts is None else packet.pts, count

    def _run_arithmetic(self, sample: int) -> Iterator[_Piece]:
        """Pieces from ``sample`` on, of a file whose times are places."""
        self._go_to_sample(sample)
        self._decoder = self._file.opened()[1].codec_context
        self._decoder.flush_buffers()
        end = 0
        while (packet := self._file.next()) is not None:
            start = end if packet.pts is None else packet.pts - self.first_pts
            frames, error = self._decode(packet)
            count = sum(frame.samples for frame in frames)
            if error:
                count = packet.size // max(self._sample_bytes, 1)
            end = start + count
            yield _Piece(0, start, count, 0, frames, error)
        if self._file.damage:
            yield _Piece(0, end, 0, 0, [], self._file.damage)

    def _go_to_sample(self, sample: int) -> None:
        if not self._file.seek(self.first_pts + sample):
            self._file.open()
            self._file.seek(self.first_pts)

    def _last_arithmetic(self, sample: int) -> int:
        """Where the packets from ``sample`` on end; 0 if there are none."""
        self._go_to_sample(sample)
        end = 0
        while (packet := self._file.next()) is not None:
            start = end if packet.pts is None else packet.pts - self.first_pts
            end = start + packet.size // max(self._sample_bytes, 1)
        return end

    # --- decoding

    def _start_decoder(self, begin: int) -> None:
        if begin and self.codec_name in _RESTARTED:
            self._decoder = self._new_decoder()
            return
        self._decoder = self._file.opened()[1].codec_context
        if begin:
            self._decoder.flush_buffers()

    def _new_decoder(self) -> AudioCodecContext:
        import av

        codec = self._file.opened()[1].codec_context
        decoder: Any = av.CodecContext.create(self._decoder_name, "r")
        if codec.extradata:
            decoder.extradata = codec.extradata
        decoder.sample_rate = codec.sample_rate
        decoder.thread_count = 1
        with contextlib.suppress(ValueError):
            decoder.layout = codec.layout.name
        return decoder  # type: ignore[no-any-return]

    def _decode(self, packet: Packet[Any] | None) -> tuple[list[AudioFrame], str | None]:
        """Frames of a packet, or of what is left for None; or none, and why."""
        import av

        assert self._decoder is not None
        try:
            frames = self._decoder.decode(packet)
        except av.FFmpegError as error:
            return [], error.strerror
        for frame in frames:
            if frame.is_corrupt:
                return [], "the decoder reports it damaged"
            if self.sample_rate and frame.sample_rate != self.sample_rate:
                raise UnsupportedError(
                    f"{self.name}: its sample rate changes from {self.sample_rate} to {frame.sample_rate} Hz"
                    f" at pts {frame.pts}; split the file there"
                )
        return frames, None
