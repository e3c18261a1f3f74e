"""Devices for frames: which can be used, why another cannot, and a call's streams on one."""

from __future__ import annotations

import contextlib

import torch

from mmcore.errors import UnsupportedError

__all__ = ["check_device"]

_CPU = torch.device("cpu")


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
    reason = _why_no_cuda(wanted.index)
    if reason is not None:
        raise UnsupportedError(f"device {str(device)!r}: {reason}; use device='cpu'")
    return wanted


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
