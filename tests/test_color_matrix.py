"""Colour matrix and flip of the frames op: against a float64 oracle written from the definition."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest
import torch
from cases import Case, make_case, make_planes
from frames_harness import check_case, video_frame
from tolerances import assert_frames_close
from torch import Tensor

import mmcore
from mmcore import FrameTransform
from mmcore.backends.reference import apply_layout, convert
from mmcore.ops.frame_batch_builder import FrameBatchBuilder
from mmcore.ops.pixel_formats import PIXEL_FORMATS
from mmcore.ops.planes import Planes

JITTER = mmcore.color_matrix(brightness=1.1, contrast=0.8, saturation=1.3, hue=0.07)
WILD = ((0.5, -2.0, 1.0, 40.0), (0.0, 0.0, 0.0, 0.0), (0.0, 3.0, -0.5, -60.0))
# The plain conversion clamps: this brings levels inside 0-255 first, to be taken out again afterwards.
INSIDE = ((0.125, 0.0, 0.0, 112.0), (0.0, 0.125, 0.0, 112.0), (0.0, 0.0, 0.125, 112.0))
SIZES = [(4, w) for w in (1, 2, 7, 15, 16, 17, 31, 33, 65)] + [(37, 61), (120, 161)]


def cases() -> list[Case]:
    found = []
    formats = ("yuv420p", "nv12", "yuv444p10le", "gray", "rgb24", "yuv422p")
    dtypes = (torch.float32, torch.uint8, torch.float16, torch.bfloat16)
    geometries = ("full", "down", "up", "short-crop", "box", "columns")
    layouts = ("NCHW", "NHWC", "CNHW", mmcore.patches(4))
    filters = (("bilinear", True), ("bicubic", True), ("area", True), ("nearest", True), ("bilinear", False))
    for i, size in enumerate(SIZES * 3):
        found.append(
            make_case(
                formats[i % 6], size, geometries[i * 5 % 6 if i % 7 else 0], filters[i % 5], "fused",
                dtypes[i * 3 % 4], layouts[i % 4], "imagenet" if i % 2 else "unit", content="noise",
                matrix=("601", "709", "2020")[i % 3],
            )
        )  # fmt: skip
    return found


def oracle(case: Case, data: Any, transform: FrameTransform) -> Tensor:
    """Levels without a clamp from the plain conversion, then matrix, clamp, affine and flip by definition."""
    plain = transform.replace(
        color_matrix=INSIDE, horizontal_flip=False, dtype=torch.float32, mean=None, std=None, scale=1.0
    )
    fmt = PIXEL_FORMATS[case.format]
    levels = convert(data, fmt, case.height, case.width, case.color, plain, as_compute=True)
    levels = (levels - 112) * 8
    if transform.color_matrix is not None:
        m = torch.tensor(transform.color_matrix, dtype=torch.float64)
        levels = torch.einsum("ck,tkhw->tchw", m[:, :3], levels) + m[:, 3, None, None]
    mul, add = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in transform.affine)
    values = levels.clamp(0, 255) * mul + add
    return values.flip(3) if transform.horizontal_flip else values


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("matrix", [JITTER, None], ids=["jitter", "plain"])
@pytest.mark.parametrize("case", cases(), ids=lambda c: c.id)
def test_matrix_and_flip_equal_the_definition(case: Case, matrix: Any, flip: bool, backend: str) -> None:
    data = case.data()
    transform = case.call_transform().replace(color_matrix=matrix, horizontal_flip=flip)
    with mmcore.backend(backend):
        result = mmcore.frames_to_tensor(Planes(data, **case.planes_kwargs()), transform)
    assert_frames_close(result, oracle(case, data, transform), transform)


@pytest.mark.parametrize("case", cases(), ids=lambda c: c.id)
def test_cpu_equals_the_reference(case: Case) -> None:
    """Bit for bit where bytes are promised."""
    for matrix, flip in ((WILD, False), (JITTER, True)):
        transform = case.transform.replace(color_matrix=matrix, horizontal_flip=flip)
        changed = dataclasses.replace(case, transform=transform)
        if matrix is WILD and transform.dtype != torch.uint8:
            continue  # float sums grow with the matrix; its bytes must still be right
        g = transform.geometry(case.height, case.width)
        if matrix is WILD and (g.resize_h, g.resize_w) != (case.height, case.width):
            continue
        check_case(changed, case.data())


@pytest.mark.parametrize("filter", [("bilinear", True), ("bicubic", True), ("area", True), ("nearest", True)])
@pytest.mark.parametrize("size", SIZES)
def test_flip_of_rgb8_is_the_flipped_picture_bit_for_bit(
    size: tuple[int, int], filter: tuple[str, bool]
) -> None:
    for geometry in ("full", "down", "up", "box"):
        case = make_case(
            size=size, geometry=geometry, filter=filter, accuracy="rgb8", dtype=torch.uint8, content="noise"
        )
        planes = Planes(case.data(), **case.planes_kwargs())
        transform = case.call_transform()
        plain = mmcore.frames_to_tensor(planes, transform)
        flipped = mmcore.frames_to_tensor(planes, transform.replace(horizontal_flip=True))
        assert torch.equal(flipped, plain.flip(3))


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("change", [{}, {"interpolation": "nearest"}, {"accuracy": "rgb8"}])
def test_turned_pictures(rotation: int, change: dict[str, Any]) -> None:
    planes = make_planes(PIXEL_FORMATS["yuv420p"], 1, 24, 36, content="smooth")
    frame = video_frame("yuv420p", [p[0] for p in planes], 24, 36)
    matrix = None if "accuracy" in change else JITTER
    plain = FrameTransform(resize=(20, 22), crop=(3, 2, 11, 13), color_matrix=matrix, **change)
    results = []
    for transform in (plain, plain.replace(horizontal_flip=True)):
        builder = FrameBatchBuilder(1, transform, rotation=rotation)
        builder.put(0, frame)
        results.append(builder.finish().clone())
    torch.testing.assert_close(results[1], results[0].flip(3), rtol=0, atol=1e-5)
    if matrix is not None:
        builder = FrameBatchBuilder(1, plain.replace(color_matrix=INSIDE), rotation=rotation)
        builder.put(0, frame)
        m = torch.tensor(matrix)
        unmixed = (builder.finish() * 255 - 112) * 8
        levels = torch.einsum("ck,tkhw->tchw", m[:, :3], unmixed) + m[:, 3, None, None]
        torch.testing.assert_close(results[0], levels.clamp(0, 255) / 255, rtol=0, atol=1e-5)


def test_library_op_takes_the_matrix() -> None:
    case = make_case(size=(18, 26))
    transform = FrameTransform(resize=(8, 12), color_matrix=JITTER, horizontal_flip=True)
    planes = Planes(case.data(), **case.planes_kwargs())
    tags = (planes.matrix, planes.full_range, planes.chroma_location)
    result = torch.ops.mmcore.frames_to_tensor(list(planes.data), "yuv420p", 18, 26, *tags, transform.spec)
    assert torch.equal(result, mmcore.frames_to_tensor(planes, transform))
    for copy in (
        FrameTransform.from_spec(transform.spec), pickle.loads(pickle.dumps(transform)), eval(repr(transform))
    ):  # fmt: skip
        assert copy == transform
        assert hash(copy) == hash(transform)
        assert copy.spec == transform.spec
    assert transform != transform.replace(color_matrix=None)
    assert transform.replace(color_matrix=torch.tensor([r[:3] for r in JITTER])).color_matrix is not None


def test_identity_matrix_changes_nothing() -> None:
    case = make_case(size=(33, 47), dtype=torch.uint8, content="extremes")
    planes = Planes(case.data(), **case.planes_kwargs())
    plain = FrameTransform(dtype=torch.uint8)
    same = plain.replace(color_matrix=mmcore.color_matrix())
    assert torch.equal(mmcore.frames_to_tensor(planes, same), mmcore.frames_to_tensor(planes, plain))
    assert apply_layout(mmcore.frames_to_tensor(planes, same), "NCHW").float().std() > 10


def _mixed(picture: Tensor, **factors: float) -> Tensor:
    m = torch.tensor(mmcore.color_matrix(**factors), dtype=torch.float64)
    return picture @ m[:, :3].T + m[:, 3]


def test_color_matrix_means_what_its_names_say() -> None:
    colors = torch.rand(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 255
    torch.testing.assert_close(_mixed(colors), colors)
    torch.testing.assert_close(_mixed(colors, brightness=0.4), colors * 0.4)
    torch.testing.assert_close(_mixed(colors, contrast=0.3), 127.5 + (colors - 127.5) * 0.3)
    luma = colors @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    torch.testing.assert_close(_mixed(colors, saturation=0), luma[:, None].expand(-1, 3))
    # torchvision's adjust_saturation, before its clamp
    torch.testing.assert_close(_mixed(colors, saturation=1.5), 1.5 * colors - 0.5 * luma[:, None])
    turned = _mixed(colors, hue=0.2)
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    torch.testing.assert_close(turned @ weights, luma, rtol=0, atol=0.1)  # the published matrix has 4 digits
    torch.testing.assert_close(_mixed(turned, hue=-0.2), colors)
    red = torch.tensor([[200.0, 0.0, 0.0]], dtype=torch.float64)
    assert _mixed(red, hue=1 / 3)[0].argmax() == 1  # as in HSV: red, green, blue
    assert _mixed(red, hue=-1 / 3)[0].argmax() == 2
    both = _mixed(_mixed(colors, brightness=1.2, contrast=0.7), saturation=0.5, hue=0.1)
    torch.testing.assert_close(_mixed(colors, brightness=1.2, contrast=0.7, saturation=0.5, hue=0.1), both)


@pytest.mark.parametrize(
    ("factors", "error"),
    [
        ({"brightness": -1}, ValueError), ({"contrast": float("nan")}, ValueError),
        ({"saturation": 1e9}, ValueError), ({"hue": 0.6}, ValueError), ({"hue": "red"}, TypeError),
    ],
)  # fmt: skip
def test_color_matrix_refuses(factors: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(factors))):
        mmcore.color_matrix(**factors)


@pytest.mark.parametrize(
    "value",
    [1.0, "abc", [[1, 0, 0]], [[1, 0], [0, 1], [0, 0]], [[1, 0, 0, float("inf")]] * 3, [[1e9, 0, 0]] * 3,
     [["a", 0, 0]] * 3],
)  # fmt: skip
def test_transform_refuses_what_is_no_matrix(value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="color_matrix"):
        FrameTransform(color_matrix=value)


def test_transform_refuses_a_matrix_after_rgb8() -> None:
    with pytest.raises(ValueError, match=r"color_matrix: needs accuracy='fused'"):
        FrameTransform(color_matrix=JITTER, accuracy="rgb8")
    with pytest.raises(TypeError, match="horizontal_flip"):
        FrameTransform(horizontal_flip=1)  # type: ignore[arg-type]
