"""What frames_to_tensor promises beside its numbers: out=, memory, threads, tags, refusals, compiling."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import av
import pytest
import torch
from cases import FRAME_CASES, make_case, make_planes
from frames_harness import video_frame
from torch import Tensor

import mmcore
from mmcore.ops.frame_batch_builder import FrameBatchBuilder
from mmcore.ops.output_pool import empty_output
from mmcore.ops.pixel_formats import PIXEL_FORMATS
from mmcore.ops.planes import ColorSpec, Planes, color_spec

H, W = 18, 26


def frame(name: str = "yuv420p", h: int = H, w: int = W, seed: int = 0) -> av.VideoFrame:
    planes = make_planes(PIXEL_FORMATS[name], 1, h, w, seed=seed)
    return video_frame(name, [p[0] for p in planes], h, w)


def planes(frames: int = 2, name: str = "yuv420p", h: int = H, w: int = W, **tags: Any) -> Planes:
    return Planes(make_planes(PIXEL_FORMATS[name], frames, h, w), name, h, w, **tags)


# out=


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "CNHW", mmcore.patches(2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bfloat16])
def test_out_is_filled_and_returned(layout: Any, dtype: torch.dtype, backend: str) -> None:
    transform = mmcore.FrameTransform(resize=(8, 12), layout=layout, dtype=dtype)
    with mmcore.backend(backend):
        expected = mmcore.frames_to_tensor(planes(), transform)
        out = torch.full(transform.output_shape(2, H, W), 3, dtype=dtype)
        assert mmcore.frames_to_tensor(planes(), transform, out=out) is out
        assert torch.equal(out, expected)
        # part of a larger batch: contiguous, so allowed
        batch = torch.full((2, *out.shape), 3, dtype=dtype)
        mmcore.frames_to_tensor(planes(), transform, out=batch[1])
    assert torch.equal(batch[1], expected)
    assert (batch[0] == 3).all()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(
    "out",
    [
        torch.zeros(2, 3, H, W + 1),
        torch.zeros(1, 3, H, W),
        torch.zeros(6, H, W),
        torch.zeros(0),
        torch.zeros(2, 3, H, W, dtype=torch.float64),
        torch.zeros(2, 3, H, W, dtype=torch.uint8),
        torch.zeros(2, H, W, 3).permute(0, 3, 1, 2),
        torch.zeros(2, 3, H, 2 * W)[..., ::2],
        torch.zeros(1, 3, H, W).expand(2, -1, -1, -1),
        torch.zeros(2, 3, H, W, device="meta"),
        torch.zeros(2, 3, H, W).numpy(),
        "NCHW",
    ],
    ids=[
        "wide", "few", "flat", "empty", "float64", "uint8", "permuted", "strided", "overlapping", "meta",
        "numpy", "str",
    ],
)  # fmt: skip
def test_a_wrong_out_is_refused_before_anything_is_written(out: Any, backend: str) -> None:
    before = out.clone() if isinstance(out, Tensor) else None
    with mmcore.backend(backend), pytest.raises((ValueError, TypeError), match=r"^out: "):
        mmcore.frames_to_tensor(planes(), mmcore.FrameTransform(), out=out)
    if before is not None and not out.is_meta:
        assert torch.equal(out, before)


# memory


def test_outputs_are_recycled() -> None:
    transform = mmcore.FrameTransform(resize=(224, 224))
    a = mmcore.frames_to_tensor(planes(), transform)
    address = a.data_ptr()
    del a
    b = mmcore.frames_to_tensor(planes(), transform)
    assert b.data_ptr() == address


def test_live_outputs_never_share_and_views_keep_memory() -> None:
    shape = (2, 3, 224, 224)
    live = [empty_output(shape, torch.float32).fill_(i) for i in range(6)]
    view = live[3][1, 2, 100:, ::2]
    kept = {t.data_ptr() for t in live}
    assert len(kept) == 6
    del live
    others = [empty_output(shape, torch.float32).fill_(99) for _ in range(8)]
    assert (view == 3).all()
    assert all(o.data_ptr() + o.nbytes <= view.data_ptr() or view.data_ptr() < o.data_ptr() for o in others)


def test_recycled_outputs_are_ordinary_tensors() -> None:
    for dtype in (torch.uint8, torch.float16, torch.bfloat16, torch.float32):
        t = empty_output((3, 5), dtype)
        assert (t.shape, t.dtype, t.is_contiguous(), t.device.type) == ((3, 5), dtype, True, "cpu")
        t.zero_()
        assert torch.equal(t.clone(), torch.zeros(3, 5, dtype=dtype))
    t = empty_output((4, 6), torch.float32).fill_(1).requires_grad_()
    (t * 2).sum().backward()
    assert torch.equal(t.grad, torch.full((4, 6), 2.0))
    assert empty_output((0, 3, 4, 4), torch.float32).shape == (0, 3, 4, 4)
    assert empty_output((2, 2), torch.uint8).numpy().shape == (2, 2)


def test_results_outlive_their_source() -> None:
    f = frame()
    result = mmcore.frames_to_tensor(f)
    copy = result.clone()
    del f
    for seed in range(4):
        frame(seed=seed)  # reuses what memory the frame had
    assert torch.equal(result, copy)


# threads


def test_many_threads_at_once() -> None:
    cases = [c for c in FRAME_CASES if c.format in ("yuv420p", "p010le", "nv12", "rgb24")][:48]
    work = [(Planes(c.data(), **c.planes_kwargs()), c.call_transform()) for c in cases]
    expected = [mmcore.frames_to_tensor(*w) for w in work]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            results = list(pool.map(lambda w: mmcore.frames_to_tensor(*w), work))
            assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_a_batch_can_be_built_from_threads_in_any_order() -> None:
    transform = mmcore.FrameTransform(resize=(9, 14), layout=mmcore.patches(1, 1, 1))
    frames = [frame(seed=i) for i in range(12)]
    expected = mmcore.frames_to_tensor(frames, transform)
    builder = FrameBatchBuilder(12, transform)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: builder.put(i, frames[i]), [7, 3, 11, 0, 1, 2, 10, 9, 8, 4, 6, 5]))
    assert torch.equal(builder.finish(), expected)


# the batch builder


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "CNHW", mmcore.patches(2, 2, 1)])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_batch_copies_frames_it_has(layout: Any, backend: str) -> None:
    transform = mmcore.FrameTransform(resize=(8, 12), layout=layout)
    a, b = frame(seed=1), frame(seed=2)
    with mmcore.backend(backend):
        expected = mmcore.frames_to_tensor([a, b, a, b, b], transform)
        builder = FrameBatchBuilder(5, transform)
        builder.put(4, b)
        builder.put(0, a)
        builder.copy(0, 2)
        builder.copy(4, 3)
        builder.copy(3, 1)
        assert torch.equal(builder.finish(), expected)


def test_a_batch_with_a_hole_is_refused() -> None:
    builder = FrameBatchBuilder(3, mmcore.FrameTransform())
    builder.put(0, frame())
    builder.put(2, frame())
    with pytest.raises((mmcore.MMCoreError, ValueError, RuntimeError), match="1"):
        builder.finish()


@pytest.mark.parametrize("index", [-1, 3, 100])
def test_a_batch_has_no_other_places(index: int) -> None:
    builder = FrameBatchBuilder(3, mmcore.FrameTransform())
    with pytest.raises(IndexError):
        builder.put(index, frame())


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("accuracy", ["fused", "rgb8"])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_a_rotation_acts_before_resize_and_crop(rotation: int, accuracy: str, backend: str) -> None:
    """Against frames whose chroma was brought to the luma grid first (exact in 12 bits) and then rotated."""
    from mmcore.backends.reference.frames import _upsample

    source = make_planes(PIXEL_FORMATS["yuv420p"], 1, 17, 31)
    upsampled = [_upsample(p[0].double(), 17, 31, "left") * 16 for p in source]
    turned = [torch.rot90(p.to(torch.int32), -(rotation // 90)).contiguous() for p in upsampled]
    h, w = turned[0].shape
    rotated = Planes(tuple(p[None].to(torch.uint16) for p in turned), "yuv444p12le", h, w)
    for options in ({"resize": (11, 14)}, {"resize": 12, "crop": (9, 11)}, {"crop": (1, 2, 10, 12)}, {}):
        transform = mmcore.FrameTransform(accuracy=accuracy, scale=1.0, **options)
        with mmcore.backend(backend):
            expected = mmcore.frames_to_tensor(rotated, transform)
            builder = FrameBatchBuilder(1, transform, rotation=rotation)
            builder.put(0, video_frame("yuv420p", [p[0] for p in source], 17, 31))
            result = builder.finish()
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-3 if accuracy == "fused" else 0)


# what the stream says


@pytest.mark.parametrize(
    ("name", "tags", "options", "codec", "expected"),
    [
        ("yuv420p", (2, 0), {}, None, ("601", False, "left")),
        ("yuv420p", (1, 1), {}, "h264", ("709", False, "left")),
        ("yuv420p", (1, 2), {}, "h264", ("709", True, "left")),
        ("yuv420p10le", (9, 1), {}, "hevc", ("2020", False, "left")),
        ("yuv420p10le", (10, 2), {}, "vp9", ("2020", True, "left")),
        ("yuv420p", (5, 0), {}, None, ("601", False, "left")),
        ("yuv420p", (6, 0), {}, None, ("601", False, "left")),
        ("yuv420p", (4, 0), {}, None, ("601", False, "left")),
        ("yuvj420p", (2, 0), {}, None, ("601", True, "left")),
        ("yuvj420p", (5, 2), {}, "mjpeg", ("601", True, "center")),
        ("yuv420p", (5, 2), {}, "mjpeg", ("601", True, "center")),
        ("yuvj420p", (5, 2), {"chroma": "left"}, "mjpeg", ("601", True, "left")),
        ("yuv420p", (1, 1), {"matrix": "601", "full_range": True}, "h264", ("601", True, "left")),
        ("yuv420p", (2, 0), {"chroma": "topleft"}, None, ("601", False, "topleft")),
        ("yuv420p", (2, 0), {"chroma": "nearest"}, "mjpeg", ("601", False, "nearest")),
        ("gray", (2, 0), {}, None, ("601", False, "left")),
        ("gray", (2, 2), {}, None, ("601", True, "left")),
    ],
)
def test_colours_are_read_from_the_frame(
    name: str, tags: tuple[int, int], options: dict[str, Any], codec: str | None, expected: tuple[Any, ...]
) -> None:
    f = frame(name)
    f.colorspace, f.color_range = tags
    transform = mmcore.FrameTransform(**options)
    assert color_spec(f, transform, codec) == ColorSpec(*expected)
    matrix, full_range, location = expected
    said = transform.replace(matrix=matrix, full_range=full_range, chroma=location)
    result = FrameBatchBuilder(1, transform, codec_name=codec)
    result.put(0, f)
    assert torch.equal(result.finish(), mmcore.frames_to_tensor(f, said))


def test_the_transform_wins_over_the_planes() -> None:
    a = planes(matrix="709", full_range=True, chroma_location="center")
    b = planes(matrix="2020", full_range=False, chroma_location="left")
    transform = mmcore.FrameTransform(matrix="2020", full_range=False, chroma="left")
    expected = mmcore.frames_to_tensor(b, mmcore.FrameTransform())
    assert torch.equal(mmcore.frames_to_tensor(a, transform), expected)
    assert not torch.equal(mmcore.frames_to_tensor(a, mmcore.FrameTransform()), expected)


def test_planes_may_be_strided_and_larger_than_the_frame() -> None:
    data = good_planes()
    expected = mmcore.frames_to_tensor(Planes(tuple(data), "yuv420p", H, W), mmcore.FrameTransform())
    apart = [p.repeat_interleave(2, 2)[:, :, ::2] for p in data]
    padded = [torch.nn.functional.pad(p, (0, 3, 0, 2), value=99) for p in data]
    transposed = [p.permute(1, 0, 2).contiguous().permute(1, 0, 2) for p in data]
    repeated = [p[1:].expand(2, -1, -1) for p in data]
    for changed in (apart, padded, transposed):
        result = mmcore.frames_to_tensor(Planes(tuple(changed), "yuv420p", H, W), mmcore.FrameTransform())
        assert torch.equal(result, expected)
    result = mmcore.frames_to_tensor(Planes(tuple(repeated), "yuv420p", H, W), mmcore.FrameTransform())
    assert torch.equal(result, expected[1:].expand_as(result))


# refusals


def good_planes() -> list[Tensor]:
    return list(make_planes(PIXEL_FORMATS["yuv420p"], 2, H, W))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d[:2], "3"),
        (lambda d: [d[0][:, :-1], *d[1:]], "18"),
        (lambda d: [d[0], d[1][:, :, :-1], d[2]], "13"),
        (lambda d: [d[0][:1], *d[1:]], "frames"),
        (lambda d: [d[0][0], *d[1:]], "dim|shape"),
        (lambda d: [d[0].to(torch.uint16), *d[1:]], "uint8"),
        (lambda d: [d[0].float(), *d[1:]], "uint8"),
        (lambda d: [d[0].numpy(), *d[1:]], "[Tt]ensor"),
        (lambda d: [d[0].to("meta"), *d[1:]], "meta"),
    ],
    ids=[
        "two-planes", "short", "narrow-chroma", "unequal-frames", "two-dims", "uint16", "float", "numpy",
        "meta",
    ],
)  # fmt: skip
def test_wrong_planes_are_refused(change: Any, message: str, backend: str) -> None:
    with mmcore.backend(backend), pytest.raises((ValueError, TypeError), match=message):
        mmcore.frames_to_tensor(Planes(tuple(change(good_planes())), "yuv420p", H, W))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"format": "yuv999p"}, "yuv999p"),
        ({"height": 0}, "height"),
        ({"width": -2}, "width"),
        ({"height": 1.5}, "height"),
        ({"matrix": "bt709"}, "matrix"),
        ({"chroma_location": "right"}, "chroma_location"),
        ({"full_range": "yes"}, "full_range"),
    ],
)
def test_wrong_facts_about_planes_are_refused(kwargs: dict[str, Any], message: str) -> None:
    facts = {"format": "yuv420p", "height": H, "width": W, **kwargs}
    with pytest.raises((ValueError, TypeError, mmcore.UnsupportedError), match=message):
        mmcore.frames_to_tensor(Planes(tuple(good_planes()), **facts))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mmcore.frames_to_tensor([]), "frames"),
        (lambda: mmcore.frames_to_tensor(None), "frames"),
        (lambda: mmcore.frames_to_tensor("clip.mp4"), "frames"),
        (lambda: mmcore.frames_to_tensor([frame(), 3]), "frames"),
        (lambda: mmcore.frames_to_tensor([frame(), frame(h=20)]), "20x26|26x20"),
        (lambda: mmcore.frames_to_tensor(frame(), {"resize": 3}), "transform"),
        (lambda: mmcore.frames_to_tensor(frame(), mmcore.FrameTransform(crop=19)), "crop"),
        (lambda: mmcore.frames_to_tensor(frame(), device="tpu"), "device"),
        (
            lambda: mmcore.frames_to_tensor(frame(), mmcore.FrameTransform(layout=mmcore.patches(14))),
            "layout",
        ),
        (lambda: FrameBatchBuilder(-1), "num_frames"),
        (lambda: FrameBatchBuilder(1, rotation=45), "rotation"),
    ],
)
def test_wrong_calls_are_refused(call: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError, mmcore.MMCoreError), match=message):
        call()


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="backend"), mmcore.backend("gpu"):
        pass


def test_other_pixel_formats_are_reformatted_and_say_so_once() -> None:
    f = frame("yuv444p").reformat(format="yuv411p")
    with pytest.warns(UserWarning, match="yuv411p") as caught:
        result = mmcore.frames_to_tensor(f)
    assert len(caught) == 1
    expected = torch.from_numpy(f.to_ndarray(format="rgb24")).permute(2, 0, 1)[None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = mmcore.frames_to_tensor(f)
    assert torch.equal(result, again)
    assert (result.int() - expected.int()).abs().float().mean() < 12  # not torn, shifted or in false colours


# torch.compile


@pytest.mark.parametrize("accuracy", ["fused", "rgb8"])
def test_compiles_as_one_graph(accuracy: str) -> None:
    transform = mmcore.FrameTransform(resize=(8, 12), accuracy=accuracy, layout=mmcore.patches(2))

    def f(y: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return mmcore.frames_to_tensor(Planes((y, u, v), "yuv420p", H, W), transform) * 2

    data = good_planes()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*data), f(*data))


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_the_op_is_registered_as_torch_wants_it(dtype: torch.dtype) -> None:
    transform = mmcore.FrameTransform(resize=(8, 12), dtype=dtype)
    args = (good_planes(), "yuv420p", H, W, "709", None, None, transform.spec)
    torch.library.opcheck(torch.ops.mmcore.frames_to_tensor.default, args)


def test_a_refused_out_inside_the_planes_memory_leaves_them_alone() -> None:
    data = good_planes()
    before = data[0].clone()
    memory = data[0].flatten()
    out = memory[: 2 * 3 * 4 * 5].view(2, 3, 4, 5)
    transform = mmcore.FrameTransform(resize=(4, 5), dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"^out: "):
        mmcore.frames_to_tensor(Planes(tuple(data), "yuv420p", H, W), transform, out=out)
    assert torch.equal(data[0], before)


def test_case_ids_are_unique_and_the_table_has_every_pixel_format() -> None:
    assert len({c.id for c in FRAME_CASES}) == len(FRAME_CASES)
    assert {c.format for c in FRAME_CASES} == set(PIXEL_FORMATS)
    assert make_case().id == "yuv420p-17x31-bilinear-fused-float32"
