"""Devices for frames: which can be used, why another cannot, and a call's streams on one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmcore.errors import UnsupportedError

__all__ = ["DeviceQueue", "check_cuda_device", "check_device", "current_streams", "open_queue"]


def check_device(device: str | torch.device) -> torch.device:
    """Refuse a device that frames cannot be brought to; no CUDA context is made.

    Parameters
    ----------
    device : str or torch.device

    Returns
    -------
    torch.device
        Without a number if none was given: which one "cuda" means is torch's choice at the time of the call.

    Raises
    ------
    ValueError
        If it is not a device.
    UnsupportedError
        If it cannot be used here: torch has no CUDA, there is no driver or GPU, no GPU of this number, or the
        process was forked from one that uses CUDA.
    """
    try:
        # torch.device(0) is the first GPU, or whatever accelerator torch was built for
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"device: {device!r} is not a device: {why}") from None
    if wanted.type == "cpu":
        return wanted
    if wanted.type != "cuda":
        raise UnsupportedError(
            f"device {str(device)!r}: frames can be had on 'cpu' and 'cuda'; use device='cpu' and .to()"
        )
    _refuse_missing(wanted)
    return wanted


def check_cuda_device(device: str | torch.device) -> None:
    """Refuse a CUDA device that cannot be used, as :func:`check_device`; other kinds are torch's matter."""
    wanted = torch.device(device)
    if wanted.type == "cuda":
        _refuse_missing(wanted)


def _refuse_missing(device: torch.device) -> None:
    reason = _why_no_cuda(device.index)
    if reason is not None:
        raise UnsupportedError(f"device {str(device)!r}: {reason}; use device='cpu'")


def _why_no_cuda(index: int | None) -> str | None:
    """Why the GPU of this number cannot be used, None if it can."""
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        return (
            f"this torch ({torch.__version__}) is built without CUDA: install one from"
            " https://pytorch.org/get-started"
        )
    # torch has no public question for this.
    if getattr(torch.cuda, "_is_in_bad_fork", lambda: False)():
        return (
            "this process was forked from one that uses CUDA, and cannot use it: start the workers with"
            " multiprocessing_context='spawn', or decode on the CPU in them"
        )
    # Unlike is_available() this asks NVML, where it can: a process that did may still be forked.
    count = torch.cuda.device_count()
    if count == 0:
        found = "no CUDA device was found"
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except (RuntimeError, AssertionError) as error:
            with contextlib.suppress(IndexError):
                found = f"{found} ({str(error).splitlines()[0].rstrip('.')})"
        return found
    if index is not None and index >= count:
        numbers = "0" if count == 1 else f"0 to {count - 1}"
        return f"there is no GPU of this number, but {numbers}"
    return None


class DeviceQueue:
    """One call's work on a CUDA device: uploads on a stream of their own, the rest in the caller's order.

    ``uploads``, one stream per device and process, copies pinned memory to fresh device memory. ``stream``,
    the one that was torch's current stream where the queue was opened, runs what makes the result, after an
    event of the upload. So the result is ready for whatever the caller does next on ``stream``, and uploads
    go on while the GPU is busy with what the caller did before. Memory for results comes from ``stream``'s
    part of torch's caching allocator; memory for uploads comes from that of ``uploads``, and :meth:`keep`
    tells the allocator that ``stream`` reads it.

    Threads that decode have current streams of their own, so nothing here goes by the current one.

    Attributes
    ----------
    device : torch.device
        With its number.
    stream, uploads : torch.cuda.Stream
    decoders : torch.cuda.Stream
        CUDA's legacy default stream, on which FFmpeg's decoders of the device work.
    shared : dict
        What calls on this device leave for later ones.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.current_stream(device)
        self.decoders = torch.cuda.default_stream(device)
        self.uploads, self.shared = _uploads_of(device)

    def do(self, stream: Any, work: Callable[[], object]) -> None:
        """Call ``work``, which launches on the current stream, with ``stream`` as such."""
        with torch.cuda.stream(stream):
            work()

    def as_current(self) -> contextlib.AbstractContextManager[object]:
        """Context in which ``stream`` is this thread's current one, and the device its current one."""
        return torch.cuda.stream(self.stream)

    def record(self, stream: Any) -> Any:
        """An event after all that is on ``stream`` now; who waits for it leaves the CPU to others."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        return event

    def wait(self, stream: Any, event: Any) -> None:
        """Let what comes later on ``stream`` begin after ``event``; the host goes on."""
        stream.wait_event(event)

    def empty(self, shape: Sequence[int], dtype: torch.dtype, stream: Any) -> Tensor:
        """Device memory for work on ``stream``."""
        with torch.cuda.stream(stream):
            return torch.empty(tuple(shape), dtype=dtype, device=self.device)

    def empty_pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Page-locked memory, which torch takes back only after the copies that were made of it."""
        with torch.cuda.device(self.device):
            return torch.empty(tuple(shape), dtype=dtype, device="cpu", pin_memory=True)

    def keep(self, memory: Tensor, stream: Any) -> None:
        """``stream`` reads ``memory`` of another: once freed, it is reused after what is on both then."""
        memory.record_stream(stream)


def open_queue(device: str | torch.device) -> DeviceQueue | None:
    """Where a call's frames go; None for the CPU.

    Raises
    ------
    ValueError, UnsupportedError
        As :func:`check_device`, and while a CUDA graph is captured, which would keep one call's frames.
    """
    wanted = check_device(device)
    if wanted.type == "cpu":
        return None
    if str(wanted) == "cuda":
        wanted = torch.device("cuda", torch.cuda.current_device())
    if torch.cuda.is_current_stream_capturing():
        raise UnsupportedError(
            f"device {str(device)!r}: frames cannot be uploaded while a CUDA graph is captured; decode"
            " before, or capture the conversion of mmcore.Planes that lie on the device"
        )
    return DeviceQueue(wanted)


def current_streams(device: str | torch.device) -> Callable[[], contextlib.AbstractContextManager[object]]:
    """Makes contexts in which another thread has the stream that is this thread's current one now."""
    queue = open_queue(device)
    return contextlib.nullcontext if queue is None else queue.as_current


_opening = threading.Lock()
_uploads: dict[int, tuple[Any, dict[Any, Any]]] = {}


def _uploads_of(device: torch.device) -> tuple[Any, dict[Any, Any]]:
    with _opening:
        found = _uploads.get(device.index)
        if found is None:
            found = _uploads[device.index] = (
                torch.cuda.Stream(device),  # type: ignore[no-untyped-call]
                {},
            )
        return found
