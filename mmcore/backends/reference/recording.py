"""Autograd inside an op of torch.library, where torch has switched it off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["recording"]

_AUTOGRAD_KEYS = [
    getattr(torch._C.DispatchKey, name)
    for name in (
        "AutogradCPU",
        "AutogradCUDA",
        "AutogradMPS",
        "AutogradXPU",
        "AutogradOther",
        "ADInplaceOrView",
    )
    if hasattr(torch._C.DispatchKey, name)
]


@contextmanager
def recording() -> Iterator[None]:
    """Record gradients inside the ``with`` block, wherever it is run."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in _AUTOGRAD_KEYS:
        excluded = excluded.remove(key)
    included = torch._C._dispatch_tls_local_include_set()
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        yield
