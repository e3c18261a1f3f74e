"""Arrays of other libraries by what they say of themselves: DLPack and ``__cuda_array_interface__``.

Both are read without torch: given rows that are stored last to first it ends the process.
"""

from __future__ import annotations

import ctypes
import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcore.backends import load_backend
from mmcore.errors import UnsupportedError
from mmcore.ops.devices import check_device

__all__ = ["ForeignArray", "as_device", "as_int", "as_streams", "read_array"]


class ForeignArray(NamedTuple):
    """Where an array of 8-bit or 16-bit integers lies; strides in bytes.

    ``streams`` are those that fill it, none if it is ready for the stream that is torch's current one;
    ``owner`` keeps the memory.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int
    device: torch.device
    streams: tuple[int, ...]
    owner: object


def read_array(name: str, source: Any, device: str | torch.device | None) -> ForeignArray:
    """Ask an array for its memory; ``device`` is where one is that does not say so."""
    if isinstance(source, Tensor):
        return _read_tensor(name, source.detach())
    if hasattr(source, "__dlpack__"):
        return _read_dlpack(name, source)
    interface = getattr(source, "__cuda_array_interface__", None)
    if isinstance(interface, dict):
        return _read_cuda_interface(name, source, interface, device)
    raise TypeError(
        f"{name}: expected a tensor, or an object with __dlpack__ or __cuda_array_interface__,"
        f" got {type(source).__name__}"
    )


def as_int(name: str, value: object) -> int:
    """Check an address, a pitch or another whole number."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: expected ints, got {value!r}") from None


def as_device(device: str | torch.device) -> torch.device:
    """Check a device of planes, and give it its number."""
    on = check_device(device)
    if on.type == "cpu":
        return torch.device("cpu")
    return on if on.index is not None else torch.device("cuda", torch.cuda.current_device())


def as_streams(stream: object, device: torch.device) -> tuple[int, ...]:
    """Handle of a stream as an integer, if there is one: the legacy default stream, 0 or 1, is 0."""
    if stream is None:
        return ()
    if device.type != "cuda":
        raise ValueError(f"stream: planes on {device} have no CUDA stream, got {stream!r}")
    number = as_int("stream", getattr(stream, "cuda_stream", stream))  # torch.cuda.Stream has it
    if number < 0:
        raise ValueError(f"stream: expected a CUDA stream's handle of 0 or more, got {number}")
    return (0 if number == 1 else number,)


def _read_tensor(name: str, tensor: Tensor) -> ForeignArray:
    if tensor.layout != torch.strided or tensor.device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"{name}: expected a dense tensor on the CPU or a CUDA device, got a {tensor.layout} one on"
            f" {tensor.device}"
        )
    if tensor.dtype not in (torch.uint8, torch.uint16, torch.int16):
        raise TypeError(f"{name}: expected uint8, uint16 or int16, got {tensor.dtype}")
    size = tensor.element_size()
    strides = tuple(s * size for s in tensor.stride())
    return ForeignArray(tensor.data_ptr(), tuple(tensor.shape), strides, size, tensor.device, (), tensor)


# DLPack: https://dmlc.github.io/dlpack/latest/c_api.html


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _DLTensor),
    )


_CPU, _CUDA, _PINNED, _MANAGED = 1, 2, 3, 13
_TYPES = {0: "int", 1: "uint", 2: "float", 4: "bfloat"}
# Prototypes of our own: those of ctypes.pythonapi are everyone's.
_capsule_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _read_dlpack(name: str, source: Any) -> ForeignArray:
    kind, index = (int(n) for n in source.__dlpack_device__())
    if kind not in (_CPU, _CUDA, _PINNED, _MANAGED):
        raise ValueError(
            f"{name}: expected an array on the CPU or a CUDA device, got one of DLPack's device type {kind}"
        )
    device = torch.device("cpu")
    stream: dict[str, int] = {}
    if kind in (_CUDA, _MANAGED):
        device = as_device(torch.device("cuda", index))
        # the producer lets this stream wait for it; DLPack's number of the legacy default stream is 1
        stream["stream"] = torch.cuda.current_stream(device).cuda_stream or 1
    try:
        # A capsule that is not marked as used frees the array with itself.
        try:
            capsule = source.__dlpack__(**stream, max_version=(1, 0))
        except TypeError:  # from before DLPack 1.0
            capsule = source.__dlpack__(**stream)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(
            f"{name}: this {type(source).__name__} cannot be had by DLPack: {error};"
            " give its address to Planes.from_pointers"
        ) from error
    tensor = _tensor_of(name, capsule)
    dtype = f"{_TYPES.get(tensor.code, f'DLPack type {tensor.code} of bits ')}{tensor.bits}"
    if dtype not in ("uint8", "uint16", "int16") or tensor.lanes != 1:
        raise TypeError(f"{name}: expected uint8, uint16 or int16, got {dtype} x {tensor.lanes}")
    size = tensor.bits // 8
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = _dense(shape, size)
    if tensor.strides:
        strides = tuple(s * size for s in tensor.strides[: tensor.ndim])
    return ForeignArray((tensor.data or 0) + tensor.byte_offset, shape, strides, size, device, (), capsule)


def _tensor_of(name: str, capsule: object) -> _DLTensor:
    try:
        kind = _capsule_name(capsule)
    except ValueError:
        raise TypeError(f"{name}: __dlpack__() gave a {type(capsule).__name__}, not a capsule") from None
    if kind == b"dltensor_versioned":
        versioned = _Versioned.from_address(_capsule_pointer(capsule, kind))
        if versioned.major != 1:
            raise TypeError(f"{name}: expected DLPack 1, got version {versioned.major}.{versioned.minor}")
        tensor: _DLTensor = versioned.tensor
        return tensor
    if kind != b"dltensor":
        raise TypeError(f"{name}: expected a capsule named 'dltensor', got {kind!r}")
    return _DLTensor.from_address(_capsule_pointer(capsule, kind))


def _dense(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    strides = [itemsize]
    for extent in reversed(shape[1:]):
        strides.insert(0, strides[0] * extent)
    return tuple(strides[: len(shape)])


# https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html

_ITEMSIZES = {"|u1": 1, "<u1": 1, "<u2": 2, "|u2": 2, "<i2": 2}


def _read_cuda_interface(
    name: str, source: Any, interface: dict[str, Any], device: str | torch.device | None
) -> ForeignArray:
    size = _ITEMSIZES.get(str(interface["typestr"]))
    if size is None:
        raise TypeError(
            f"{name}: expected uint8, uint16 or int16, little-endian, got typestr {interface['typestr']!r}"
        )
    if interface.get("mask") is not None:
        raise ValueError(f"{name}: masked arrays are not pictures")
    shape = tuple(int(n) for n in interface["shape"])
    strides = interface.get("strides")
    strides = _dense(shape, size) if strides is None else tuple(int(s) for s in strides)
    address = int(interface["data"][0])
    on = _device_of(address) if device is None else as_device(device)
    # Not allowed, 0 is given all the same, where the default stream is meant.
    streams = as_streams(interface.get("stream"), on)
    return ForeignArray(address, shape, strides, size, on, streams, source)


def _device_of(address: int) -> torch.device:
    """Device that an address belongs to; the current one where that is not known."""
    try:
        index = load_backend("cuda").pointer_device(address)
    except UnsupportedError:
        index = -1
    return torch.device("cuda", index) if index >= 0 else as_device("cuda")
