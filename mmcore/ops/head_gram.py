"""Inner products of the heads' feature gradients, from which gradient balancing computes its coefficients.

K heads read the same features z (N, D). With a linear head y_i = z W_i^T + b_i and the gradient of its loss
dy_i = dL_i/dy_i (N, C_i), the chain rule gives the feature gradient, and then the product of two of them:

    G_i         = dL_i/dz = dy_i W_i                                                  (N, D)
    <G_i, G_j>  = tr(G_i^T G_j) = tr(W_i^T dy_i^T dy_j W_j) = tr(dy_i^T dy_j W_j W_i^T)
                = sum_{a,b} (dy_i^T dy_j)_{ab} (W_i W_j^T)_{ab} = <dy_i^T dy_j, W_i W_j^T>

With all heads side by side, Y = [dy_1 .. dy_K] (N, S), W = [W_1; ..; W_K] (S, D), S = sum C_i, all of them
are the block sums of (Y^T Y) * (W W^T): S^2 (N + D) multiplications and S^2 numbers of memory, where the
feature gradients themselves take N D (S + K^2) and N D K. The cheaper way is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mmcore.ops.losses import MAX_TASKS

__all__ = ["head_gram"]


def head_gram(
    output_gradients: Sequence[Tensor] | Mapping[str, Tensor] | None = None,
    head_weights: Sequence[Tensor] | Mapping[str, Tensor] | None = None,
    *,
    feature_gradients: Sequence[Tensor | Sequence[Tensor]] | Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Inner products ``<G_i, G_j>`` of the gradients that K heads' losses send into shared features.

    For linear heads ``y_i = z W_i^T + b_i`` they come from ``dy_i`` and ``W_i`` alone, without the feature
    gradients ``G_i = dy_i W_i`` where that is cheaper: ``<G_i, G_j> = <dy_i^T dy_j, W_i W_j^T>``.

    Parameters
    ----------
    output_gradients : sequence or mapping of Tensor
        dy_i of K = 1 to 32 heads, (..., C_i), the same number N of rows for all; a head with C_i = 1 may have
        its last dimension squeezed away. :func:`mmcore.multi_task_value_and_grad` gives them.
    head_weights : sequence or mapping of Tensor
        W_i, (C_i, D), as ``nn.Linear.weight``.
    feature_gradients : sequence or mapping of Tensor, instead of both
        G_i themselves, for heads of any kind, all of one shape; each may be a sequence of tensors, where the
        features are several.

    Returns
    -------
    Tensor
        (K, K) float64, symmetric, on the gradients' device. Products are made in float32 (float64 if an
        argument is) and summed up in float64. Nothing is recorded for autograd.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit each other; the message says what was expected and what came.

    Examples
    --------
    >>> import mmcore, torch
    >>> gradients = [torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0]])]
    >>> weights = [torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[3.0, 1.0]])]
    >>> mmcore.head_gram(gradients, weights)  # of (1, 2) and (6, 2)
    tensor([[ 5., 10.],
            [10., 40.]], dtype=torch.float64)
    """
    if (feature_gradients is None) == (output_gradients is None or head_weights is None):
        raise TypeError("head_gram: expected output_gradients and head_weights, or feature_gradients")
    with torch.no_grad():
        if feature_gradients is not None:
            if output_gradients is not None or head_weights is not None:
                raise TypeError("head_gram: expected output_gradients and head_weights, or feature_gradients")
            rows = _feature_rows(feature_gradients)
            with _no_autocast(rows[0][0].device):
                return _of_features(rows)
        ys, ws = _checked_heads(output_gradients, head_weights)
        with _no_autocast(ys[0].device):
            return _of_heads(ys, ws)


def _no_autocast(device: torch.device) -> AbstractContextManager[object]:
    if not torch.amp.is_autocast_available(device.type):  # as of "meta"
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _of_heads(ys: list[Tensor], ws: list[Tensor]) -> Tensor:
    count, (rows, depth) = len(ys), (ys[0].shape[0], ws[0].shape[1])
    widths = [y.shape[1] for y in ys]
    total = sum(widths)
    if total * total * (rows + depth) > rows * depth * (total + count * count):
        return _of_features([[y @ w] for y, w in zip(ys, ws, strict=True)])
    y, w = torch.cat(ys, 1), torch.cat(ws)
    products = (y.T @ y).double() * (w @ w.T).double()
    if total == count:  # every head has one column
        return _symmetric(products)
    sums = torch.stack([block.sum(1) for block in torch.split(products, widths, 1)], 1)  # (S, K)
    return _symmetric(torch.stack([block.sum(0) for block in torch.split(sums, widths)]))


def _of_features(gradients: list[list[Tensor]]) -> Tensor:
    gram = None
    for parts in zip(*gradients, strict=True):
        flat = torch.stack([part.reshape(-1) for part in parts])
        product = (flat @ flat.T).double()
        gram = product if gram is None else gram + product
    assert gram is not None
    return _symmetric(gram)


def _symmetric(gram: Tensor) -> Tensor:
    return (gram + gram.T) / 2


def _checked_heads(output_gradients: Any, head_weights: Any) -> tuple[list[Tensor], list[Tensor]]:
    """(N, C_i) and (C_i, D), of one floating dtype."""
    if isinstance(output_gradients, Mapping) and isinstance(head_weights, Mapping):
        if set(output_gradients) != set(head_weights):
            raise ValueError(
                f"head_weights: expected output_gradients' names, {', '.join(map(str, output_gradients))};"
                f" got {', '.join(map(str, head_weights)) or 'none'}"
            )
        head_weights = [head_weights[name] for name in output_gradients]
    ys = _tensors("output_gradients", output_gradients)
    ws = _tensors("head_weights", head_weights)
    if len(ys) != len(ws):
        raise ValueError(f"head_weights: expected {len(ys)}, one for each output gradient, got {len(ws)}")
    dtype = _common_dtype([*ys, *ws])
    flat: list[Tensor] = []
    for i, (y, w) in enumerate(zip(ys, ws, strict=True)):
        if w.dim() != 2 or w.shape[1] != ws[0].shape[-1]:
            depth = ws[0].shape[-1] if i and ws[0].dim() else "D"
            raise ValueError(f"head_weights[{i}]: expected shape (C, {depth}), got {tuple(w.shape)}")
        columns = w.shape[0]
        if columns != 1 and (y.dim() == 0 or y.shape[-1] != columns):
            raise ValueError(
                f"output_gradients[{i}]: expected shape (..., {columns}) for the rows of head_weights[{i}],"
                f" got {tuple(y.shape)}"
            )
        rows = y.reshape(-1, columns) if columns else y.reshape(y.shape[:-1].numel(), 0)
        if flat and rows.shape[0] != flat[0].shape[0]:
            raise ValueError(
                f"output_gradients[{i}]: expected {flat[0].shape[0]} rows as output_gradients[0] has,"
                f" got {rows.shape[0]}"
            )
        flat.append(rows.to(dtype))
    return flat, [w.to(dtype) for w in ws]


def _feature_rows(feature_gradients: Any) -> list[list[Tensor]]:
    """Of each head the parts of its feature gradient, of one floating dtype."""
    if isinstance(feature_gradients, Mapping):
        feature_gradients = list(feature_gradients.values())
    if isinstance(feature_gradients, Tensor):
        feature_gradients = feature_gradients.unbind()
    if isinstance(feature_gradients, str) or not isinstance(feature_gradients, Sequence):
        raise TypeError(
            f"feature_gradients: expected a sequence, one per head, got {type(feature_gradients).__name__}"
        )
    rows = []
    for i, parts in enumerate(feature_gradients):
        name = f"feature_gradients[{i}]"
        rows.append(_tensors(name, [parts] if isinstance(parts, Tensor) else parts, limit=None))
        shapes = [tuple(part.shape) for part in rows[i]]
        expected = [tuple(part.shape) for part in rows[0]]
        if shapes != expected:
            raise ValueError(
                f"{name}: expected {_shapes(expected)} as feature_gradients[0] has, got {_shapes(shapes)}"
            )
    if not 1 <= len(rows) <= MAX_TASKS:
        raise ValueError(f"feature_gradients: expected 1 to {MAX_TASKS}, got {len(rows)}")
    dtype = _common_dtype([part for parts in rows for part in parts])
    return [[part.to(dtype) for part in parts] for parts in rows]


def _shapes(shapes: list[tuple[int, ...]]) -> str:
    return f"shape{'s' if len(shapes) > 1 else ''} {', '.join(map(str, shapes))}"


def _tensors(what: str, values: Any, limit: int | None = MAX_TASKS) -> list[Tensor]:
    if isinstance(values, Mapping):
        values = list(values.values())
    if isinstance(values, (str, Tensor)) or not isinstance(values, Sequence):
        raise TypeError(f"{what}: expected a sequence of tensors, got {type(values).__name__}")
    if not values or (limit is not None and len(values) > limit):
        raise ValueError(f"{what}: expected 1 to {limit} tensors, got {len(values)}")
    for i, value in enumerate(values):
        if not isinstance(value, Tensor):
            raise TypeError(f"{what}[{i}]: expected a tensor, got {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{what}[{i}]: expected a floating-point tensor, got {value.dtype}")
    return list(values)


def _common_dtype(tensors: list[Tensor]) -> torch.dtype:
    """float32, or float64 if one of them is; all must be on one device."""
    device, dtype = tensors[0].device, torch.float32
    for t in tensors:
        if t.device != device:
            raise ValueError(f"head_gram: expected all tensors on {device}, got one on {t.device}")
        dtype = torch.promote_types(dtype, t.dtype)
    return dtype
