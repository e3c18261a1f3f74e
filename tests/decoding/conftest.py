"""Fixtures of the decoder's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmcore import VideoDecoder


@pytest.fixture
def decoder(clip: Path) -> VideoDecoder:
    """Decoder of the 40 numbered frames of ``clip``."""
    return VideoDecoder(clip)
