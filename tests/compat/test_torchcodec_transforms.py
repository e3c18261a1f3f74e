"""mmcore.compat.torchcodec.transforms by themselves: what they give and which errors they raise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from media import write_video

from mmcore.compat.torchcodec.decoders import VideoDecoder
from mmcore.compat.torchcodec.transforms import CenterCrop, DecoderTransform, RandomCrop, Resize


def _resized(frames: torch.Tensor, *size: int) -> torch.Tensor:
    return torch.nn.functional.interpolate(frames, size, mode="bilinear", antialias=True)


def test_resize(decoder: VideoDecoder, clip: Path) -> None:
    small = VideoDecoder(clip, transforms=[Resize((48, 50))])
    assert torch.equal(small[3:6], _resized(decoder[3:6], 48, 50))
    assert small.get_frames_at([2, 1]).data.is_contiguous(memory_format=torch.channels_last)
    assert small[5:5].shape == (0, 3, 48, 50)
    assert (small.metadata.height, small.metadata.width) == (96, 128)


def test_crops(decoder: VideoDecoder, clip: Path) -> None:
    centre = VideoDecoder(clip, transforms=[CenterCrop((51, 64))])
    top, left = round((96 - 51) / 2), 32
    assert torch.equal(centre[3:6], decoder[3:6][:, :, top : top + 51, left : left + 64])
    assert centre[5:5].shape == (0, 3, 51, 64)
    torch.manual_seed(11)
    somewhere = VideoDecoder(clip, transforms=[RandomCrop((50, 60))])
    torch.manual_seed(11)
    top, left = torch.randint(0, 96 - 50 + 1, ()), torch.randint(0, 128 - 60 + 1, ())
    assert torch.equal(somewhere[7], decoder[7][:, top : top + 50, left : left + 60])
    assert torch.equal(somewhere[8], decoder[8][:, top : top + 50, left : left + 60])


def test_chains_of_transforms(decoder: VideoDecoder, clip: Path) -> None:
    frames = decoder[3:6]
    chain = VideoDecoder(clip, transforms=[Resize((60, 80)), CenterCrop((40, 40)), Resize((20, 30))])
    assert torch.equal(chain[3:6], _resized(_resized(frames, 60, 80)[:, :, 10:50, 20:60], 20, 30))
    crop_first = VideoDecoder(
        clip, transforms=[CenterCrop((48, 64)), Resize((24, 24))], dimension_order="NHWC"
    )
    assert torch.equal(crop_first[3:6].permute(0, 3, 1, 2), _resized(frames[:, :, 24:72, 32:96], 24, 24))
    assert crop_first[3:6].is_contiguous()
    assert crop_first[:0].shape == (0, 24, 24, 3)


def test_transforms_act_on_the_turned_picture(cached_media: Callable) -> None:
    path = cached_media("turned90.mp4", lambda p: write_video(p, rotation=90))
    plain = VideoDecoder(path)[2:4]
    assert torch.equal(
        VideoDecoder(path, transforms=[CenterCrop((100, 40))])[2:4], plain[:, :, 14:114, 28:68]
    )
    assert VideoDecoder(path, transforms=[Resize((100, 40))])[2:4].shape == (2, 3, 100, 40)


def test_transforms_of_ones_own(decoder: VideoDecoder, clip: Path) -> None:
    class Corner(DecoderTransform):
        def _make_transform_spec(self, input_dims: Any) -> str:
            assert input_dims == (96, 128)
            return "crop, 10, 20, 5, 3"

    assert torch.equal(VideoDecoder(clip, transforms=[Corner()])[4], decoder[4][:, 3:13, 5:25])


class _Spec(DecoderTransform):
    def __init__(self, spec: str) -> None:
        self.spec = spec

    def _make_transform_spec(self, input_dims: Any) -> str:
        return self.spec


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Resize((1, 2, 3)), ValueError, r"must have a \(height, width\) pair"),
        (lambda: CenterCrop((200, 100)), RuntimeError, r"height \(200\) is greater than input height \(96\)"),
        (lambda: CenterCrop((10, 129)), RuntimeError, r"width \(129\) is greater than input width \(128\)"),
        (lambda: RandomCrop((97, 100)), ValueError, "smaller than the crop size"),
        (lambda: Resize((0, 10)), RuntimeError, "must be a positive integer"),
        (lambda: Resize("ab"), RuntimeError, "cannot be converted to an int"),
        (lambda: _Spec("flip, 1, 2"), RuntimeError, "Invalid transform name"),
        (lambda: _Spec("resize, 1, 2, 3"), RuntimeError, "must have 3 elements"),
        (lambda: _Spec("crop, 10, 10, 120, 0"), RuntimeError, "x start position, 120, out of bounds"),
        (lambda: _Spec("crop, 10, 10, 0, -1"), RuntimeError, "y start position, -1, out of bounds"),
        (lambda: torch.nn.Identity(), ValueError, "Unsupported transform"),
    ],
)
def test_transforms_that_are_wrong(make: Callable, error: type[Exception], message: str, clip: Path) -> None:
    with pytest.raises(error, match=message):
        VideoDecoder(clip, transforms=[make()])
