"""tensor_to_planes gives the oracle's samples in every format; frames_to_tensor takes them back."""

from __future__ import annotations

import doctest
import hashlib
import os
import subprocess
import sys
from itertools import product

import pytest
import torch
from torch import Tensor

import mmcore
from mmcore.backends.reference import plane_components
from mmcore.ops.pixel_formats import PIXEL_FORMATS
from mmcore.ops.tensor_to_planes import PlanesWriter

BACKENDS = ("reference", "cpu")
WRITABLE = [name for name in PIXEL_FORMATS if not name.startswith("yuva")]
SUBSAMPLED = ("yuv420p", "yuv422p", "nv12", "p010le")
ORDER = {"NCHW": (0, 1, 2, 3), "NHWC": (0, 2, 3, 1), "CNHW": (1, 0, 2, 3)}
NORMALISATION = {"mean": (0.4, 0.5, 0.6), "std": (0.5, 0.3, 0.7)}

SLACK = {8: 1e-4, 10: 1e-3, 12: 2e-3}
"""Of one sample: float32 values below 2**bits, some ten roundings of 2**-25 of that each."""


def random_frames(dtype: torch.dtype, height: int, width: int, seed: int = 0, count: int = 2) -> Tensor:
    """Frames (T, 3, H, W) a little beyond 0 to 1, so that some levels clamp."""
    frames = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 1.2 - 0.1
    return (frames.clamp(0, 1) * 255).round().to(dtype) if dtype == torch.uint8 else frames.to(dtype)


def check(planes: mmcore.Planes, writer: PlanesWriter, frames: Tensor) -> None:
    """Assert that each sample is the oracle's value, rounded to the nearest."""
    fmt = writer.format
    oracle = plane_components(frames, fmt, writer.color, writer.mul, writer.add)
    for c, expected in zip(fmt.components, oracle, strict=True):
        stored = planes.data[c.plane][:, :, c.offset :: c.step].to(torch.int32)
        assert stored.shape == expected.shape
        assert not (stored & (1 << fmt.shift) - 1).any()
        assert ((stored >> fmt.shift) - expected).abs().max() <= 0.5 + SLACK[fmt.bits]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", WRITABLE)
def test_samples_are_the_oracle_rounded(name: str, backend: str) -> None:
    dtypes = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
    sizes = ((1, 1), (2, 2), (5, 17), (37, 65), (66, 31), (9, 33))
    locations = ("left", "center", "topleft", "nearest")
    matrices = ("601", "709", "2020")
    for i, (dtype, (height, width)) in enumerate(product(dtypes, sizes)):
        layout = tuple(ORDER)[i % 3]
        frames = random_frames(dtype, height, width, i)
        given = frames.permute(ORDER[layout]).contiguous()
        kept = given.clone()
        normalisation = {} if dtype == torch.uint8 or i % 2 else NORMALISATION
        color = {
            "matrix": matrices[i % 3],
            "full_range": (None, True, False)[i % 3],
            "chroma_location": locations[i % 4],
        }
        with mmcore.backend(backend):
            planes = mmcore.tensor_to_planes(given, name, layout=layout, **color, **normalisation)
        writer = PlanesWriter.make(
            name, dtype, normalisation.get("mean"), normalisation.get("std"), None, *color.values()
        )
        check(planes, writer, frames)
        assert torch.equal(given, kept)
        assert (planes.format, planes.height, planes.width) == (name, height, width)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["rgb24", "bgr24", "rgba", "bgra", "gbrp"])
def test_rgb_bytes_pass_unchanged(name: str, backend: str) -> None:
    frames = random_frames(torch.uint8, 7, 19)
    with mmcore.backend(backend):
        planes = mmcore.tensor_to_planes(frames, name)
        assert torch.equal(mmcore.frames_to_tensor(planes), frames)
    if name in ("rgba", "bgra"):
        assert (planes.data[0][:, :, 3::4] == 255).all()


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", ["601", "709", "2020"])
@pytest.mark.parametrize("name", ["yuv444p", "yuv444p10le", "gbrp12le", "gray12le"])
def test_frames_to_tensor_takes_it_back(name: str, matrix: str, full_range: bool) -> None:
    """Without subsampling, what is lost is the rounding: to a quarter of that for each two bits more."""
    frames = random_frames(torch.float32, 24, 33)
    if name.startswith("gray"):
        frames = frames[:, :1].expand(-1, 3, -1, -1)
    inside = frames.clamp(0, 1)
    planes = mmcore.tensor_to_planes(
        (inside - 0.45) / 0.22, name, mean=0.45, std=0.22, matrix=matrix, full_range=full_range
    )
    back = mmcore.frames_to_tensor(planes, mmcore.FrameTransform(mean=0.45, std=0.22)) * 0.22 + 0.45
    # Half a sample in Y and in U or V; chroma weighs 1.88 at most; limited range is coarser by 255 / 219.
    bound = (0.5 + 0.5 * 1.88) * 255 / 219 / 2 ** (PIXEL_FORMATS[name].bits - 8)
    assert (back - inside).abs().max() * 255 <= bound + 0.01


@pytest.mark.parametrize("location", ["left", "center", "topleft"])
@pytest.mark.parametrize("name", SUBSAMPLED)
def test_chroma_lies_where_the_planes_say(name: str, location: str) -> None:
    """Colour that changes linearly comes back; a shift by a quarter pixel would cost whole levels."""
    ramp = torch.linspace(0.2, 0.8, 64)
    frames = torch.stack([ramp.expand(48, 64), torch.full((48, 64), 0.5), ramp.flip(0).expand(48, 64)])[None]
    if PIXEL_FORMATS[name].log2_chroma_h:
        frames = (
            frames + frames.new_tensor([0.2, 0, -0.2]).view(3, 1, 1) * torch.linspace(-1, 1, 48)[:, None]
        ) / 1.2
    planes = mmcore.tensor_to_planes(frames, name, chroma_location=location)
    assert planes.chroma_location == location
    back = mmcore.frames_to_tensor(planes, mmcore.FrameTransform())[:, :, 4:-4, 4:-4] * 255
    wanted = frames[:, :, 4:-4, 4:-4] * 255
    assert (back - wanted).abs().max() <= 2.2
    assert (back - wanted).mean((0, 2, 3)).abs().max() < 0.2  # no drift to one side


def test_single_channel_is_gray() -> None:
    gray = random_frames(torch.float32, 6, 10)[:, :1]
    planes = mmcore.tensor_to_planes(gray)
    expected = mmcore.tensor_to_planes(gray.expand(-1, 3, -1, -1).contiguous())
    assert all(torch.equal(a, b) for a, b in zip(planes.data, expected.data, strict=True))
    assert (planes.data[1] == 128).all()
    assert (planes.data[2] == 128).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32])
def test_strides_of_every_kind(dtype: torch.dtype) -> None:
    base = random_frames(dtype, 40, 90, count=5)
    views = {
        "crop": base[1:4, :, 3:33, 7:84],
        "every other pixel": base[:, :, :, ::2],
        "every third row and frame": base[::3, :, ::3],
        "transposed": base.transpose(2, 3),
        "one frame repeated": base[:1].expand(4, -1, -1, -1),
        "one row repeated": base[:, :, :1].expand(-1, -1, 20, -1),
        "one pixel repeated": base[:, :, :, :1].expand(-1, -1, -1, 20),
    }
    for name, view in views.items():
        for fmt in ("yuv420p", "nv12", "rgb24"):
            strided = mmcore.tensor_to_planes(view, fmt).data
            dense = mmcore.tensor_to_planes(view.contiguous(), fmt).data
            assert all(torch.equal(a, b) for a, b in zip(strided, dense, strict=True)), (name, fmt)


def test_number_of_threads_does_not_matter() -> None:
    frames = random_frames(torch.float32, 150, 70, count=3)
    before = mmcore.get_num_threads()
    try:
        results = []
        for threads in (1, 4):
            mmcore.set_num_threads(threads)
            results.append(mmcore.tensor_to_planes(frames, chroma_location="topleft").data)
    finally:
        mmcore.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def print_digests() -> None:
    """What another process prints of the same frames."""
    print(mmcore.build_info()["isa"])
    for name, dtype in product(("yuv420p", "p010le", "bgra"), (torch.float32, torch.bfloat16)):
        for plane in mmcore.tensor_to_planes(random_frames(dtype, 45, 67), name).data:
            print(hashlib.sha256(plane.numpy().tobytes()).hexdigest())


@pytest.mark.parametrize("isa", ["base", "avx2", "avx512", "neon"])
def test_every_isa_gives_the_same_bytes(isa: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In a process of its own, because an ISA is chosen once."""
    if isa not in mmcore.build_info()["isa_available"]:
        pytest.skip(f"this machine has no {isa}")
    print_digests()
    used, *expected = capsys.readouterr().out.split()
    if isa == used:
        pytest.skip("the one in use: the others are compared with it")
    done = subprocess.run(
        [sys.executable, __file__], env={**os.environ, "MMCORE_ISA": isa}, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split() == [isa, *expected]


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_that_are_not_finite(backend: str) -> None:
    frames = torch.full((1, 3, 4, 40), 0.4)
    frames[0, :, 0, 37] = torch.nan
    frames[0, :, 1, 2] = torch.inf
    frames[0, :, 2, 2] = -torch.inf
    with mmcore.backend(backend):
        y = mmcore.tensor_to_planes(frames).data[0][0]
    assert (y[0, 37], y[1, 2], y[2, 2], y[3, 3]) == (16, 235, 16, 104)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_frames_give_empty_planes(backend: str) -> None:
    with mmcore.backend(backend):
        planes = mmcore.tensor_to_planes(torch.zeros(0, 3, 5, 6), "p010le")
    assert [tuple(p.shape) for p in planes.data] == [(0, 5, 6), (0, 3, 6)]


@pytest.mark.parametrize("name", ["yuv420p", "p010le", "rgb24"])
def test_op_is_well_formed_and_compiles(name: str) -> None:
    frames = random_frames(torch.float32, 6, 10)
    arguments = (name, [255.0] * 3, [0.0] * 3, "709", False, "left")
    torch.library.opcheck(torch.ops.mmcore.tensor_to_planes.default, (frames, *arguments))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(x: Tensor) -> tuple[Tensor, ...]:
        return mmcore.tensor_to_planes(x * 2, name, mean=0.5, std=0.25, layout="NHWC").data

    given = frames.permute(0, 2, 3, 1)
    eager = mmcore.tensor_to_planes(given * 2, name, mean=0.5, std=0.25, layout="NHWC").data
    assert all(torch.equal(a, b) for a, b in zip(compiled(given), eager, strict=True))


def test_gradients_end_here() -> None:
    planes = mmcore.tensor_to_planes(torch.rand(1, 3, 4, 4, requires_grad=True))
    assert not any(p.requires_grad for p in planes.data)


FLOATS = torch.zeros(1, 3, 4, 4)


@pytest.mark.parametrize(
    ("frames", "arguments", "error", "words"),
    [
        ([1, 2], {}, TypeError, "frames: expected a tensor"),
        (FLOATS.double(), {}, TypeError, "float64"),
        (FLOATS.int(), {}, TypeError, "int32"),
        (FLOATS[0], {}, ValueError, r"got \(3, 4, 4\)"),
        (FLOATS, {"layout": "NHWC"}, ValueError, r"NHWC = \(T, H, W, 3\), got"),
        (FLOATS, {"layout": "HWC"}, ValueError, "layout"),
        (torch.zeros(1, 3, 0, 4), {}, ValueError, "pixels"),
        (torch.zeros(1, 3, 4, 4, device="meta"), {}, mmcore.UnsupportedError, "CPU"),
        (FLOATS, {"format": "yuv9000"}, mmcore.UnsupportedError, "yuv9000"),
        (FLOATS, {"format": "yuva420p"}, mmcore.UnsupportedError, "use 'yuv420p'"),
        (FLOATS, {"matrix": "240"}, ValueError, "matrix"),
        (FLOATS, {"full_range": 1}, TypeError, "full_range"),
        (FLOATS, {"chroma_location": "right"}, ValueError, "chroma_location"),
        (FLOATS, {"std": 0}, ValueError, "std"),
        (FLOATS, {"std": (1, 2)}, ValueError, "std"),
        (FLOATS, {"mean": float("nan")}, ValueError, "mean"),
        (FLOATS, {"scale": 0}, ValueError, "scale"),
        (FLOATS.byte(), {"mean": 0.5}, ValueError, "mean: needs frames of a floating dtype"),
    ],
)
def test_bad_input_is_refused(
    frames: Tensor, arguments: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        mmcore.tensor_to_planes(frames, **arguments)


def test_examples() -> None:
    failed, tried = doctest.testmod(sys.modules[PlanesWriter.__module__])
    assert tried
    assert not failed


if __name__ == "__main__":
    print_digests()
