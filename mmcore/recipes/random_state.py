"""The state of all random number generators that a training draws from."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import numpy as np
import torch

__all__ = ["RandomState", "seed_all"]


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators, those of GPUs included."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class RandomState(NamedTuple):
    """State of Python's, NumPy's and torch's generators, in plain values and tensors."""

    python: Any
    numpy: Any
    torch_cpu: torch.Tensor
    torch_cuda: list[torch.Tensor]

    @staticmethod
    def capture(*, cuda: bool = True) -> RandomState:
        """Take the present state; without ``cuda`` leave GPUs' generators alone."""
        used = cuda and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        on_gpu = torch.cuda.get_rng_state_all() if used else []
        return RandomState(
            random.getstate(), np.random.get_state(legacy=True), torch.get_rng_state(), list(on_gpu)
        )

    def restore(self) -> None:
        """Go on from this state."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch_cpu)
        if self.torch_cuda and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(self.torch_cuda)

    def state(self) -> dict[str, Any]:
        """Give it as what a checkpoint may hold: plain values and tensors."""
        version, words, gauss = self.python
        name, keys, position, has_gauss, cached = self.numpy
        return {
            "python": (version, list(words), gauss),
            "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
            "torch_cpu": self.torch_cpu,
            "torch_cuda": self.torch_cuda,
        }

    @staticmethod
    def from_state(state: dict[str, Any]) -> RandomState:
        """Make it again from :meth:`state`."""
        version, words, gauss = state["python"]
        name, keys, position, has_gauss, cached = state["numpy"]
        return RandomState(
            (version, tuple(words), gauss),
            (name, keys.numpy().astype(np.uint32), position, has_gauss, cached),
            state["torch_cpu"],
            state["torch_cuda"],
        )
