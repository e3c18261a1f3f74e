"""Rows of planes are copied as they are, wherever they lie, and nothing beside them is written."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from mmcore import _core

SIZES = (0, 1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1921)


@pytest.mark.parametrize("aligned", [True, False])  # to lines of a cache, which are then written around it
def test_rows_are_copied(aligned: bool) -> None:
    draw = random.Random(5)
    for size, rows, upside_down in itertools.product(SIZES, (0, 1, 3, 20), (False, True)):
        pitch, gap = size + draw.randrange(40), draw.randrange(64)
        source = np.random.default_rng(size).integers(0, 256, (rows, pitch), np.uint8)
        step = -(-size // 64) * 64 + 64 if aligned else size + gap + 1
        whole = np.full(step * rows + 192, 0xA5, np.uint8)
        start = -whole.ctypes.data % 64 + (0 if aligned else 1 + draw.randrange(63))
        expected = whole.copy()
        order = range(rows)[:: -1 if upside_down else 1]
        for y, from_row in enumerate(order):
            expected[start + y * step : start + y * step + size] = source[from_row, :size]
        first = source.ctypes.data + (pitch * (rows - 1) if upside_down and rows else 0)
        lines = -pitch if upside_down else pitch
        _core.copy_rows([(first, lines, whole.ctypes.data + start, step, size, rows)])
        assert np.array_equal(whole, expected), (size, rows, upside_down)


def test_blocks_are_copied_one_after_another() -> None:
    source, target = np.arange(64, dtype=np.uint8), np.zeros(64, np.uint8)
    _core.copy_rows([(source.ctypes.data + 8 * i, 4, target.ctypes.data + 4 * i, 8, 4, 1) for i in range(8)])
    expected = np.zeros(64, np.uint8)
    for i in range(8):
        expected[4 * i : 4 * i + 4] = source[8 * i : 8 * i + 4]
    assert np.array_equal(target, expected)


@pytest.mark.parametrize("block", [(0, 0, 0, 0, -1, 1), (0, 0, 0, 0, 1, -1)])
def test_extents_below_zero(block: tuple[int, int, int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="copy_rows: negative extent"):
        _core.copy_rows([block])
