"""The one torch.library namespace of the package: every op's schema is defined in it."""

from __future__ import annotations

import torch

__all__ = ["LIBRARY"]

LIBRARY = torch.library.Library("mmcore", "DEF")  # type: ignore[no-untyped-call]
