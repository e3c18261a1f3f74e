"""Fixtures for the compatibility modules: the libraries that they stand in for, where they are installed."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mmcore.compat.torchcodec.decoders import VideoDecoder


@pytest.fixture
def decoder(clip: Path) -> VideoDecoder:
    """Decoder of the 40 numbered frames of ``clip``, 25 a second."""
    from mmcore.compat.torchcodec.decoders import VideoDecoder  # needs PyAV, which may be absent

    return VideoDecoder(clip)


@pytest.fixture(scope="session")
def torchcodec() -> ModuleType:
    """The installed TorchCodec; without it, or the FFmpeg it needs, the test is skipped."""
    try:
        import torchcodec
    except (ImportError, OSError, RuntimeError) as error:  # a missing FFmpeg is a RuntimeError
        pytest.skip(f"no TorchCodec to compare with: {str(error).splitlines()[0]}")
    if not torchcodec.__version__.startswith("0.13."):
        pytest.skip(f"the interface is that of TorchCodec 0.13, installed is {torchcodec.__version__}")
    return torchcodec
