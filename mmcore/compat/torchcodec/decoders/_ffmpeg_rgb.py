"""FFmpeg's own conversion to RGB, for frames where mmcore's gives more than slightly different levels.

Of common 8-bit formats both replicate the chroma, and agree within 3 levels. FFmpeg filters the chroma of
other frames: of more than 8 bits, of sizes that are no multiple of the chroma's, of uncommon formats; and it
takes gray for full range.
"""

from __future__ import annotations

import threading
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import mmcore

if TYPE_CHECKING:
    import av
    from av.filter import Graph

__all__ = ["FFmpegRGB", "RGBDecoder"]


class RGBDecoder(mmcore.VideoDecoder):
    """Decoder of frames whose pixels are FFmpeg's, but for rounding."""

    def __init__(self, source: Any, **settings: Any) -> None:
        super().__init__(source, **settings)
        self._rgb = FFmpegRGB()

    # All frames pass through this method of mmcore's decoder on their way into a batch.
    def _put(self, builder: mmcore.FrameBatchBuilder, slot: int, target: int, frame: av.VideoFrame) -> None:
        super()._put(builder, slot, target, self._rgb(frame))


class FFmpegRGB:
    """Gives frames as they are if mmcore converts them as FFmpeg does, else FFmpeg's RGB of them.

    May be called by several threads.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def __reduce__(self) -> tuple[type[FFmpegRGB], tuple[()]]:
        return FFmpegRGB, ()  # graphs are not pickled, but made anew

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        if _converted_alike(frame):
            return frame
        kind = (frame.format.name, frame.width, frame.height, int(frame.colorspace), int(frame.color_range))
        if getattr(self._local, "kind", None) != kind:
            self._local.graph, self._local.kind = _graph(frame), kind
        graph: Graph = self._local.graph
        graph.push(frame)
        return graph.pull()  # type: ignore[return-value]


def _converted_alike(frame: av.VideoFrame) -> bool:
    fmt = mmcore.PIXEL_FORMATS.get(frame.format.name)
    if fmt is None or fmt.bits > 8 or fmt.family == "gray":
        return False
    return frame.width % (1 << fmt.log2_chroma_w) == 0 and frame.height % (1 << fmt.log2_chroma_h) == 0


def _graph(frame: av.VideoFrame) -> Graph:
    from av.filter import Graph

    graph = Graph()
    # The filter places chroma vertically, which VideoFrame.reformat leaves undone. It ignores the times.
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
    )
    target, sink = graph.add("format", "rgb24"), graph.add("buffersink")
    source.link_to(target)
    target.link_to(sink)
    graph.configure()
    return graph
