"""Strategies that weight the losses of several tasks, and the coefficients they compute from a Gram matrix.

Three kinds, by what they must see before the total is known:

- nothing (:class:`KnownWeighting`): fixed, uncertainty, DWA, RLW;
- the losses (:class:`LossWeighting`): UW-SO, geometric mean, IMTL-L, STCH, FAMO;
- the inner products of the tasks' gradients (:class:`GradientWeighting`): GradNorm, MGDA, PCGrad, CAGrad,
  IMTL-G, Aligned-MTL, UPGrad. Each of these directions is a combination ``sum_i alpha_i g_i`` whose alpha
  depends on the gradients through ``G_ij = <g_i, g_j>`` alone, so that a (K, K) matrix is all they read.

The functions of a Gram compute in float64 on the CPU, and give alpha on the Gram's device. A Gram that is not
finite gives NaN, as the gradients it was made of would. A task whose gradient is 0, as that of one without
labels in the batch, does not take part in balancing: its coefficient changes nothing for what is shared, and
is the one it would have without conflicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mmcore.ops.loss_task import Task

__all__ = [
    "DWA",
    "FAMO",
    "IMTLG",
    "IMTLL",
    "MGDA",
    "RLW",
    "STCH",
    "UWSO",
    "AlignedMTL",
    "CAGrad",
    "Fixed",
    "GeometricMean",
    "GradNorm",
    "GradientWeighting",
    "KnownWeighting",
    "LossWeighting",
    "PCGrad",
    "TaskWeighting",
    "UPGrad",
    "Uncertainty",
    "aligned_mtl_coefficients",
    "cagrad_coefficients",
    "imtl_g_coefficients",
    "make_weighting",
    "mgda_coefficients",
    "pcgrad_coefficients",
    "upgrad_coefficients",
]

Array = npt.NDArray[np.float64]


# ---- coefficients from a Gram


def mgda_coefficients(gram: Tensor) -> Tensor:
    """Coefficients of the shortest vector in the convex hull of the gradients: min-norm, MGDA.

    ``alpha = argmin |sum_i alpha_i g_i|^2`` with ``alpha >= 0`` and ``sum_i alpha_i = 1``, solved exactly (to
    rounding), not by Frank-Wolfe steps. Tasks whose gradient is 0 are left out: with them, the shortest
    vector would always be 0.

    Parameters
    ----------
    gram : Tensor
        (K, K): ``<g_i, g_j>``.

    Returns
    -------
    Tensor
        (K,) float64 on the Gram's device.

    Notes
    -----
    Sources: Désidéri 2012; Sener and Koltun 2018.

    Examples
    --------
    >>> import torch
    >>> from mmcore.nn import mgda_coefficients
    >>> mgda_coefficients(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
    tensor([0.8000, 0.2000], dtype=torch.float64)
    """
    return _balanced(gram, lambda g, count: _min_norm(g))


def cagrad_coefficients(gram: Tensor, c: float = 0.4) -> Tensor:
    """Coefficients of CAGrad: the direction near the mean gradient that helps the worst-off task most.

    ``d = argmax_d min_i <g_i, d>`` with ``|d - g_0| <= c |g_0|``, ``g_0 = mean_i g_i``. By duality
    ``d = g_0 + c |g_0| g_w / |g_w|`` where w in the simplex minimises ``<g_w, g_0> + c |g_0| |g_w|``, hence
    ``alpha = 1/K + (c |g_0| / |g_w|) w``. Where ``g_w = 0`` is best, d is ``g_0``.

    Parameters
    ----------
    gram : Tensor
        (K, K): ``<g_i, g_j>``.
    c : float
        0 (the mean gradient) or more; at 1 and above the method nears MGDA.

    Returns
    -------
    Tensor
        (K,) float64 on the Gram's device.

    Notes
    -----
    Source: Liu et al. 2021, "Conflict-Averse Gradient Descent", algorithm 1. For the w that is best, and
    ``s = |g_w| / (c |g_0|)``, the conditions of optimality are those of the shortest vector in the convex
    hull of ``g_i + s g_0``; s is the root of a function of one variable.
    """
    _number("c", c, 0)
    return _balanced(gram, lambda g, count: _cagrad(g, count, c))


def pcgrad_coefficients(gram: Tensor, orders: Tensor | None = None) -> Tensor:
    """Coefficients of PCGrad: each gradient without its conflicting parts along the others, summed.

    For each i, ``h_i = g_i``; then for the others j in order: if ``<h_i, g_j> < 0``,
    ``h_i -= <h_i, g_j> / |g_j|^2 g_j``. The direction is ``sum_i h_i``.

    Parameters
    ----------
    gram : Tensor
        (K, K): ``<g_i, g_j>``.
    orders : Tensor, optional
        (K, K) integers: row i is a permutation of 0 .. K-1, in which task i meets the others (itself is
        passed over). None: ascending.

    Returns
    -------
    Tensor
        (K,) float64 on the Gram's device.

    Notes
    -----
    Source: Yu et al. 2020, "Gradient Surgery for Multi-Task Learning", algorithm 1, where orders are random.
    """
    count = _check_gram(gram)
    if orders is None:
        orders = torch.arange(count).expand(count, count)
    if orders.shape != (count, count) or orders.is_floating_point():
        raise ValueError(f"orders: expected integers of shape {(count, count)}, got {tuple(orders.shape)}")
    met = orders.cpu().numpy()
    if not (np.sort(met, axis=1) == np.arange(count)).all():
        raise ValueError(
            f"orders: expected a permutation of 0 to {count - 1} in each row, got {orders.tolist()}"
        )

    def solve(g: Array) -> Array:
        alpha = np.zeros(count)
        for i in range(count):
            h = np.zeros(count)
            h[i] = 1.0
            for j in met[i]:
                inner = h @ g[:, j]
                if j != i and inner < 0 and g[j, j] > 0:
                    h[j] -= inner / g[j, j]
            alpha += h
        return alpha

    return _solved(gram, solve)


def imtl_g_coefficients(gram: Tensor) -> Tensor:
    """Coefficients of IMTL-G: the combined gradient has equal projections onto all tasks' gradients.

    ``<sum_j alpha_j g_j, g_i / |g_i|>`` is the same for all i, and ``sum_j alpha_j = 1``; alpha may be
    negative. The closed form of the paper, ``alpha ~ G^-1 n`` with ``n_i = |g_i|``, where G is regular; the
    shortest solution (for gradients of length 1) where it is not.

    Parameters
    ----------
    gram : Tensor
        (K, K): ``<g_i, g_j>``.

    Returns
    -------
    Tensor
        (K,) float64 on the Gram's device.

    Notes
    -----
    Source: Liu et al. 2021, "Towards Impartial Multi-Task Learning".
    """
    return _balanced(gram, lambda g, count: _imtl_g(g))


def aligned_mtl_coefficients(gram: Tensor, preference: Sequence[float] | Tensor | None = None) -> Tensor:
    """Coefficients of Aligned-MTL: the gradients' principal components all scaled to the smallest one.

    With ``G = V diag(l) V^T`` and l_r the smallest eigenvalue that is not 0,
    ``alpha = sqrt(l_r) V diag(l^-1/2) V^T w`` over the eigenvalues that are not 0.

    Parameters
    ----------
    gram : Tensor
        (K, K): ``<g_i, g_j>``.
    preference : sequence of float or Tensor, optional
        (K,): w. None: 1/K for all.

    Returns
    -------
    Tensor
        (K,) float64 on the Gram's device.

    Notes
    -----
    Source: Senushkin et al. 2023, "Independent Component Alignment for Multi-Task Learning", algorithm 1.
    """
    w = _preference(preference, _check_gram(gram))

    def solve(g: Array) -> Array:
        values, vectors = np.linalg.eigh(g)
        kept = values > values[-1] * len(g) * np.finfo(np.float64).eps
        if not kept.any():
            return w
        values, vectors = values[kept], vectors[:, kept]
        alpha: Array = math.sqrt(values[0]) * (vectors / np.sqrt(values)) @ (vectors.T @ w)
        return np.where(np.diag(g) > 0, alpha, w)

    return _solved(gram, solve)


def upgrad_coefficients(gram: Tensor, preference: Sequence[float] | Tensor | None = None) -> Tensor:
    """Coefficients of UPGrad: each gradient projected onto the cone that conflicts with no task, then summed.

    ``h_i`` is the vector nearest to ``w_i g_i`` among those with ``<h_i, g_j> >= 0`` for all j; the direction
    is ``sum_i h_i``. By duality ``h_i = sum_j a_j g_j`` where a minimises ``a^T G a`` with ``a >= w_i e_i``.

    Parameters
    ----------
    gram : Tensor
        (K, K): ``<g_i, g_j>``.
    preference : sequence of float or Tensor, optional
        (K,): w. None: 1/K for all, the mean of the projections as in the paper.

    Returns
    -------
    Tensor
        (K,) float64 on the Gram's device.

    Notes
    -----
    Source: Quinton and Rey 2024, "Jacobian Descent for Multi-Objective Optimization", proposition 1. The
    quadratic programs are solved exactly (to rounding), without a term that regularises the Gram.
    """
    w = _preference(preference, _check_gram(gram))

    def solve(g: Array) -> Array:
        alpha = w.copy()
        for i in range(len(g)):
            # a = w_i e_i + v with v >= 0: v^T G v / 2 + w_i G_i v is least.
            if w[i] > 0 and (g[i] < 0).any():
                alpha += _nonnegative_minimum(g, -w[i] * g[i])
        return alpha

    return _solved(gram, solve)


def _check_gram(gram: object) -> int:
    if not isinstance(gram, Tensor) or not gram.is_floating_point():
        got = f"a tensor of {gram.dtype}" if isinstance(gram, Tensor) else type(gram).__name__
        raise TypeError(f"gram: expected a floating-point tensor, got {got}")
    if gram.dim() != 2 or gram.shape[0] != gram.shape[1] or gram.shape[0] == 0:
        raise ValueError(f"gram: expected shape (K, K), got {tuple(gram.shape)}")
    return gram.shape[0]


def _solved(gram: Tensor, solve: Callable[[Array], Array]) -> Tensor:
    """``solve`` of the Gram's values; NaN if they are not finite."""
    count = _check_gram(gram)
    g = gram.detach().to("cpu", torch.float64).numpy()
    alpha = solve((g + g.T) / 2) if np.isfinite(g).all() else np.full(count, np.nan)
    return torch.from_numpy(alpha).to(gram.device)


def _balanced(gram: Tensor, solve: Callable[[Array, int], Array]) -> Tensor:
    """``solve(g, K)`` of the rows and columns that are not 0; 1/K for the others."""

    def solve_nonzero(g: Array) -> Array:
        count = len(g)
        alpha = np.full(count, 1 / count)
        there = np.flatnonzero(np.diag(g) > 0)
        if len(there):
            alpha[there] = solve(g[np.ix_(there, there)], count)
        return alpha

    return _solved(gram, solve_nonzero)


def _nonnegative_minimum(a: Array, b: Array) -> Array:
    """Minimise ``x^T a x / 2 - b^T x`` with ``x >= 0``, for a Gram a: Lawson and Hanson's active sets, 1974.

    b must be a combination of a's columns, as it is for a problem of least squares; then the minimum exists.
    """
    lengths = np.sqrt(np.maximum(np.diag(a), 0))
    x = np.zeros(len(b))
    there = np.flatnonzero(lengths > 0)
    # Variables in units in which a's diagonal is 1: gradients may differ by many orders of magnitude.
    lengths = lengths[there]
    a = a[np.ix_(there, there)] / np.outer(lengths, lengths)
    b = b[there] / lengths
    y = np.zeros(len(b))
    free = np.zeros(len(b), dtype=bool)
    barred = np.zeros(len(b), dtype=bool)
    tolerance = 1e-13 * max(1.0, len(b)) * np.abs(b).max(initial=0.0)
    for _ in range(10 * len(b)):
        slope = np.where(free | barred, -np.inf, b - a @ y)
        enters = int(np.argmax(slope))
        if not slope[enters] > tolerance:
            break
        free[enters] = True
        while True:
            best = np.zeros(len(b))
            index = np.flatnonzero(free)
            best[index] = _regular_solution(a[np.ix_(index, index)], b[index])
            if free[enters] and y[enters] == 0 and best[enters] <= 0:
                # Depends on the others to rounding: it cannot lower the minimum.
                free[enters], barred[enters] = False, True
                break
            negative = free & (best <= 0)
            if not negative.any():
                y = best
                barred[:] = False
                break
            # As far towards the best point as all stay positive; those at 0 are no longer free.
            step = np.where(negative, y / np.where(negative, y - best, 1.0), np.inf)
            y = y + step.min() * (best - y)
            free &= ~(negative & (step <= step.min()))
            y[~free] = 0.0
    x[there] = y / lengths
    return x


def _regular_solution(a: Array, b: Array) -> Array:
    x: Array
    try:
        x = np.linalg.solve(a, b).astype(np.float64, copy=False)
        if np.abs(a @ x - b).max() <= 1e-9 * np.abs(b).max():
            return x
    except np.linalg.LinAlgError:
        pass
    x = np.linalg.lstsq(a, b, rcond=1e-12)[0].astype(np.float64, copy=False)
    return x


def _min_norm(g: Array) -> Array:
    """Minimise ``alpha^T g alpha`` over the simplex.

    It is x / sum(x) for the x >= 0 that minimises ``x^T (g + 1 1^T) x / 2 - 1^T x``: where x_i > 0, both make
    (g alpha)_i equal to one number, and not below it elsewhere.
    """
    diagonal = np.diag(g)
    shortest = int(np.argmin(diagonal))
    if len(g) == 1 or diagonal[shortest] <= 1e-24 * diagonal.max():
        corner: Array = np.eye(len(g))[shortest]  # it is 0, to rounding
        return corner
    # In units of the shortest: 1 1^T would drown it otherwise.
    ones = np.ones(len(g))
    x = _nonnegative_minimum(g / diagonal[shortest] + 1.0, ones)
    alpha: Array = x / x.sum()
    return alpha


def _cagrad(g: Array, count: int, c: float) -> Array:
    mean = np.full(len(g), 1 / count)
    b = g @ mean
    square = mean @ b
    radius = c * math.sqrt(max(square, 0.0))
    longest = float(np.sqrt(np.diag(g)).max())
    if radius <= 1e-12 * longest:
        return mean

    def point(s: float) -> tuple[Array, float]:
        w = _min_norm(g + s * (b[:, None] + b) + s * s * square)
        return w, math.sqrt(max(float(w @ g @ w), 0.0))

    def root(w: Array) -> float:
        """Give s if no other tasks than those of w count: it then solves a quadratic equation."""
        index = np.flatnonzero(w > 0)
        ones, part = np.ones(len(index)), b[index]
        solved = _regular_solution(g[np.ix_(index, index)], np.stack([ones, part], 1))
        p, q, r = ones @ solved[:, 0], ones @ solved[:, 1], part @ solved[:, 1]
        under = q * q - p * (r - radius * radius)
        return 1 / math.sqrt(under) if under > 0 else 0.0

    # The excess s radius - |g_w| is negative left of the best s, positive right of it. Once w has the tasks
    # of the best one, ``root`` is exact; halving makes sure that this comes.
    low, high = 0.0, longest / radius
    vanishing = 1e-7 * high  # a length below what a Gram resolves
    s = high
    w, length = point(s)
    for step in range(100):
        if high - low <= 1e-14 * high or high <= vanishing:
            break
        exact = root(w)
        s = exact if low < exact < high and step % 3 != 2 else (low + high) / 2
        w, length = point(s)
        if abs(s * radius - length) <= 1e-12 * length:
            break
        if s * radius > length:
            high = s
        else:
            low = s
    if s <= vanishing or length <= 1e-7 * longest:
        return mean
    alpha: Array = mean + radius / length * w
    return alpha


def _imtl_g(g: Array) -> Array:
    count = len(g)
    lengths = np.sqrt(np.diag(g))
    shares = lengths.min() / lengths
    # For gradients of length 1: all projections equal to p, and the coefficients' sum.
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = g / np.outer(lengths, lengths)
    system[:count, count] = -1.0
    system[count, :count] = shares
    right = np.zeros(count + 1)
    right[count] = 1.0
    alpha = np.linalg.lstsq(system, right, rcond=1e-12)[0][:count] * shares
    total = alpha.sum()
    return alpha / total if abs(total) > 1e-12 else np.full(count, 1 / count)


def _preference(preference: object, count: int) -> Array:
    if preference is None:
        return np.full(count, 1 / count)
    w = np.asarray(preference.tolist() if isinstance(preference, Tensor) else preference, dtype=np.float64)
    if w.shape != (count,) or not (np.isfinite(w).all() and (w >= 0).all()):
        raise ValueError(f"preference: expected {count} numbers of 0 or more, got {preference!r}")
    return w


# ---- the strategies


class TaskWeighting(nn.Module):
    """How the losses of K tasks become one; the base of all strategies of :class:`MultiTaskLoss`.

    A strategy belongs to one ``MultiTaskLoss``, which calls ``setup`` once. It sees ``lambda_i loss_i``
    with the weights lambda of ``MultiTaskLoss``. A loss of exactly 0, as that of a task without labels in the
    batch, is left out. State moves only in training mode with gradients enabled. It is part of the
    ``state_dict``, so that training resumes as if it had not been interrupted, and keeps its dtype where a
    module is converted.
    """

    count: int
    """K; 0 before ``setup``."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def setup(self, tasks: Sequence[Task]) -> None:
        """Make what has one number for each task. Called once, by ``MultiTaskLoss``."""
        if self.count:
            raise ValueError(
                f"weighting: this {type(self).__name__} already belongs to another MultiTaskLoss"
            )
        self.count = len(tasks)

    def update(self, losses: Tensor) -> None:
        """Take the losses (K,) of the same batch after the optimiser's step; FAMO learns from them."""

    def end_epoch(self) -> None:
        """Be told that an epoch is over; DWA and STCH learn from its mean losses."""

    @property
    def learning(self) -> bool:
        """Whether state moves: in training mode, with gradients enabled."""
        return self.training and torch.is_grad_enabled()

    def _state(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in before.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != value.dtype:
                self._buffers[name] = value.to(moved.device)
        return self


class KnownWeighting(TaskWeighting):
    """Weights that are known before the losses are: losses, total and gradients come in one pass."""

    log_vars: nn.Parameter | None
    """(K,): learned log variances, or None."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("log_vars", None)

    def weights(self) -> Tensor | None:
        """(K,), or None for ones."""
        return None

    def observe(self, losses: Tensor) -> None:
        """See the losses (K,) of a training step, detached."""


class LossWeighting(TaskWeighting):
    """The total is a function of the losses."""

    def total(self, losses: Tensor) -> Tensor:
        """Differentiable total of the losses (K,)."""
        raise NotImplementedError


class GradientWeighting(TaskWeighting):
    """Coefficients from the inner products of the gradients that the tasks send into shared features.

    Parameters
    ----------
    head_gradients : {"own", "weighted"}
        What the heads' own parameters receive: the gradient of their own loss, as in most of the papers,
        which balance what is shared only; or that times the task's coefficient.
    """

    resting = "mean"
    """Coefficients where there is nothing to balance: "mean", 1/K, or "sum", 1."""

    def __init__(self, head_gradients: str = "own") -> None:
        super().__init__()
        if head_gradients not in ("own", "weighted"):
            raise ValueError(f"head_gradients: expected own or weighted, got {head_gradients!r}")
        self.head_gradients = head_gradients

    def coefficients(self, gram: Tensor, losses: Tensor) -> Tensor:
        """(K,): alpha, of the Gram (K, K) float64 and the losses (K,), detached."""
        raise NotImplementedError

    def resting_coefficients(self, losses: Tensor) -> Tensor:
        """(K,): alpha where no gradient is wanted, as in evaluation."""
        return torch.full_like(losses, 1 / self.count if self.resting == "mean" else 1.0)

    def extra_repr(self) -> str:
        """Name what the heads receive."""
        return f"head_gradients={self.head_gradients!r}"


class Fixed(KnownWeighting):
    """``sum_i lambda_i loss_i``."""


class Uncertainty(KnownWeighting):
    """Learned log variances s: ``sum_i lambda_i (c_i exp(-s_i) loss_i + s_i / 2)``.

    c is each task's ``uncertainty_scale``; s starts at 0. Source: Kendall, Gal and Cipolla 2018, "Multi-Task
    Learning Using Uncertainty to Weigh Losses".
    """

    def setup(self, tasks: Sequence[Task]) -> None:
        """Make the log variances."""
        super().setup(tasks)
        self.log_vars = nn.Parameter(torch.zeros(self.count))


class DWA(KnownWeighting):
    """Dynamic weight average: more weight to tasks whose loss falls slowly.

    ``K softmax_i(r_i / T)`` with ``r_i = mean loss_i of the last epoch / of the one before``; 1 for the first
    two epochs. :meth:`MultiTaskLoss.end_epoch` ends an epoch. Source: Liu, Johns and Davison 2019,
    "End-to-End Multi-Task Learning with Attention".

    Parameters
    ----------
    temperature : float
        T: large values make all weights equal.
    """

    history: Tensor
    epoch_sum: Tensor
    epoch_count: Tensor
    current: Tensor

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        self.temperature = _number("temperature", temperature, 0, above=True)

    def setup(self, tasks: Sequence[Task]) -> None:
        """Make the history."""
        super().setup(tasks)
        self._state("history", torch.full((2, self.count), math.nan, dtype=torch.float64))
        self._state("epoch_sum", torch.zeros(self.count, dtype=torch.float64))
        self._state("epoch_count", torch.zeros(self.count, dtype=torch.float64))
        self._state("current", torch.ones(self.count, dtype=torch.float64))

    def weights(self) -> Tensor:
        """Of this epoch."""
        return self.current

    def observe(self, losses: Tensor) -> None:
        """Add up the losses of the epoch."""
        _add_epoch(self.epoch_sum, self.epoch_count, losses)

    def end_epoch(self) -> None:
        """Make the weights of the next epoch."""
        with torch.no_grad():
            mean = _epoch_mean(self.epoch_sum, self.epoch_count)
            # A task that did not occur keeps its history.
            shifted = torch.stack([self.history[1], mean])
            self.history.copy_(torch.where(mean.isnan(), self.history, shifted))
            ratio = self.history[1] / self.history[0]
            ratio = torch.where(ratio.isfinite(), ratio, 1.0)
            self.current.copy_(self.count * torch.softmax(ratio / self.temperature, 0))

    def extra_repr(self) -> str:
        """Name the temperature."""
        return f"temperature={self.temperature}"


class _Random(TaskWeighting):
    """A strategy that draws random numbers: a generator of its own, part of the state_dict."""

    def __init__(self, *args: Any, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed: expected an int, got {seed!r}")
        self.generator = torch.Generator().manual_seed(seed)

    def get_extra_state(self) -> Tensor:
        """Give the generator's state."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Set the generator's state."""
        self.generator.set_state(state.cpu())


class RLW(_Random, KnownWeighting):
    """Random loss weighting: ``softmax(n)``, n drawn anew for each training step from a normal distribution.

    1/K in evaluation. The generator is the strategy's own, on the CPU; with one seed, all processes of a
    distributed training draw the same. Source: Lin et al. 2022, "Reasonable Effectiveness of Random
    Weighting".

    Parameters
    ----------
    seed : int
        Of the generator.
    """

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__(seed=seed)

    def weights(self) -> Tensor:
        """Draw weights; 1/K where nothing is learned."""
        if not self.learning:
            return torch.full((self.count,), 1 / self.count, dtype=torch.float64)
        return torch.softmax(torch.randn(self.count, generator=self.generator, dtype=torch.float64), 0)


class UWSO(LossWeighting):
    """Soft optimal uncertainty weighting: ``sum_i w_i loss_i`` with ``w = softmax((1 / loss) / T)``.

    w is a constant for the backward. Source: Kirchdorfer et al. 2024, "Analytical Uncertainty-Based Loss
    Weighting in Multi-Task Learning".

    Parameters
    ----------
    temperature : float
        T: large values make all weights equal.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = _number("temperature", temperature, 0, above=True)

    def total(self, losses: Tensor) -> Tensor:
        """Weight the losses."""
        values = losses.detach()
        present = values != 0
        inverse = (1 / torch.where(present, values, 1.0)).clamp(max=1e30) / self.temperature
        weights = torch.softmax(inverse.masked_fill(~present, -math.inf), 0)
        # Without any loss the softmax is 0 / 0.
        return (torch.where(present, weights, 0.0) * losses).sum()

    def extra_repr(self) -> str:
        """Name the temperature."""
        return f"temperature={self.temperature}"


class GeometricMean(LossWeighting):
    """``(product_i loss_i)^(1/K)``: as sensitive to each task, whatever its scale. Losses must be positive.

    Source: Chennupati et al. 2019, "MultiNet++" (geometric loss strategy).
    """

    def total(self, losses: Tensor) -> Tensor:
        """Give the geometric mean."""
        present, logs = _logs(losses)
        count = present.sum()
        return torch.where(count > 0, torch.exp(logs.sum() / count.clamp(min=1)), 0.0)


class IMTLL(LossWeighting):
    """IMTL-L: learned scales s that bring all losses to 1, ``sum_i exp(s_i) loss_i - s_i``.

    s starts at 0. Source: Liu et al. 2021, "Towards Impartial Multi-Task Learning".
    """

    scales: nn.Parameter

    def setup(self, tasks: Sequence[Task]) -> None:
        """Make the scales."""
        super().setup(tasks)
        self.scales = nn.Parameter(torch.zeros(self.count))

    def total(self, losses: Tensor) -> Tensor:
        """Scale the losses."""
        s = self.scales.to(losses.dtype)
        return torch.where(losses.detach() != 0, torch.exp(s) * losses - s, 0.0).sum()


class STCH(LossWeighting):
    """Smooth Tchebycheff: near to minimising the worst of the losses, each compared with its reference.

    ``mu logsumexp_i(w_i log(loss_i / r_i) / mu)``. While there is no reference r, the total is
    ``mean_i w_i log loss_i``; the first :meth:`MultiTaskLoss.end_epoch` makes the epoch's mean losses the
    reference. Losses must be positive. Source: Lin et al. 2024, "Smooth Tchebycheff Scalarization for
    Multi-Objective Optimization", with logarithms of losses relative to a nadir point for the objectives, as
    its multi-task experiments have them.

    Parameters
    ----------
    mu : float
        How smooth: towards 0 the total becomes the maximum.
    preference : sequence of float, optional
        w. None: ones.
    reference : sequence of float, optional
        r, positive.
    """

    weight: Tensor
    reference: Tensor
    epoch_sum: Tensor
    epoch_count: Tensor

    def __init__(
        self,
        mu: float = 1.0,
        *,
        preference: Sequence[float] | None = None,
        reference: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.mu = _number("mu", mu, 0, above=True)
        self._given = preference, reference

    def setup(self, tasks: Sequence[Task]) -> None:
        """Make preference and reference."""
        super().setup(tasks)
        preference, reference = self._given
        self._state("weight", _numbers("preference", preference, self.count, 1.0))
        self._state("reference", _numbers("reference", reference, self.count, math.nan))
        self._state("epoch_sum", torch.zeros(self.count, dtype=torch.float64))
        self._state("epoch_count", torch.zeros(self.count, dtype=torch.float64))

    def total(self, losses: Tensor) -> Tensor:
        """Give the smooth maximum."""
        if self.learning:
            _add_epoch(self.epoch_sum, self.epoch_count, losses.detach())
        present, logs = _logs(losses)
        weight = self.weight.to(losses.dtype)
        known = self.reference.isfinite()
        there = present & known
        relative = logs - torch.where(known, self.reference, 1.0).log().to(losses.dtype)
        terms = (weight * relative / self.mu).masked_fill(~there, -math.inf)
        # Where nothing is there, logsumexp of numbers that are, so that its gradient is one too.
        terms = torch.where(there.any(), terms, 0.0)
        mean = torch.where(present, weight * logs, 0.0).sum() / present.sum().clamp(min=1)
        return torch.where(there.any(), self.mu * torch.logsumexp(terms, 0), mean)

    def end_epoch(self) -> None:
        """Take the reference from the first epoch."""
        with torch.no_grad():
            mean = _epoch_mean(self.epoch_sum, self.epoch_count)
            self.reference.copy_(torch.where(self.reference.isnan(), mean, self.reference))

    def extra_repr(self) -> str:
        """Name mu."""
        return f"mu={self.mu}"


class FAMO(LossWeighting):
    """Fast adaptive multitask optimisation: all losses fall at the same relative rate.

    ``total = c sum_i z_i log loss_i`` with ``z = softmax(xi)`` and ``c = 1 / sum_i (z_i / loss_i)``, z and c
    constants. After the optimiser's step, with the losses of the same batch computed again,
    :meth:`MultiTaskLoss.update` moves ``xi -= rate (d + decay xi)``, where d is the gradient of
    ``sum_i z_i (log loss_i before - log loss_i after)`` in xi. Losses must be positive. Source: Liu et al.
    2023, "FAMO: Fast Adaptive Multitask Optimization", algorithm 1.

    Parameters
    ----------
    learning_rate : float
        Of xi, by plain gradient steps as in the algorithm.
    decay : float
        gamma: pulls xi back to 0, and the weights to equality.
    """

    logits: Tensor
    previous: Tensor

    def __init__(self, learning_rate: float = 0.025, decay: float = 0.001) -> None:
        super().__init__()
        self.learning_rate = _number("learning_rate", learning_rate, 0)
        self.decay = _number("decay", decay, 0)

    def setup(self, tasks: Sequence[Task]) -> None:
        """Make xi."""
        super().setup(tasks)
        self._state("logits", torch.zeros(self.count, dtype=torch.float64))
        self._state("previous", torch.zeros(self.count, dtype=torch.float64))

    def total(self, losses: Tensor) -> Tensor:
        """Weight the logarithms of the losses."""
        if self.learning:
            self.previous.copy_(losses.detach())
        present, logs = _logs(losses)
        z = torch.softmax(self.logits.to(losses.dtype), 0)
        values = torch.where(present, losses.detach(), 1.0)
        inverse = torch.where(present, z / values, 0.0).sum()
        return (z * logs).sum() / torch.where(present.any(), inverse, 1.0)

    def update(self, losses: Tensor) -> None:
        """Move xi by how much each loss fell."""
        with torch.no_grad():
            after = losses.to(self.previous)
            both = (self.previous != 0) & (after != 0)
            before, after = (torch.where(both, v, 1.0) for v in (self.previous, after))
            fall = before.log() - after.log()
            z = torch.softmax(self.logits, 0)
            gradient = z * (fall - (z * fall).sum())
            moved = self.logits - self.learning_rate * (gradient + self.decay * self.logits)
            # One step whose loss was not finite must not end the balance for good.
            self.logits.copy_(torch.where(moved.isfinite().all(), moved, self.logits))

    def extra_repr(self) -> str:
        """Name the rates."""
        return f"learning_rate={self.learning_rate}, decay={self.decay}"


class GradNorm(GradientWeighting):
    """Learned weights w that bring the tasks' gradients to norms which say how fast each should learn.

    ``n_i = |w_i g_i|`` should be ``mean(n) r_i^alpha`` with ``r_i = (loss_i / first loss_i) / mean_j(...)``;
    each training step moves w by a gradient step on ``sum_i |n_i - target_i|``, the targets constants, and
    scales it to ``sum_i w_i = K``. The step itself takes w as it was. Gradients are those in the shared
    features. Source: Chen et al. 2018, "GradNorm", algorithm 1.

    Parameters
    ----------
    alpha : float
        How strongly slow tasks are pulled up; 0: all norms equal.
    learning_rate : float
        Of w, by plain gradient steps.
    head_gradients : {"weighted", "own"}
        As the paper has it: the weighted loss, for heads too.

    Notes
    -----
    w stays at 1e-3 or above: a step too large would turn a loss around otherwise.
    """

    resting = "sum"
    weight: Tensor
    first: Tensor

    def __init__(
        self, alpha: float = 1.5, learning_rate: float = 0.025, *, head_gradients: str = "weighted"
    ) -> None:
        super().__init__(head_gradients)
        self.alpha = _number("alpha", alpha, 0)
        self.learning_rate = _number("learning_rate", learning_rate, 0)

    def setup(self, tasks: Sequence[Task]) -> None:
        """Make w."""
        super().setup(tasks)
        self._state("weight", torch.ones(self.count, dtype=torch.float64))
        self._state("first", torch.full((self.count,), math.nan, dtype=torch.float64))

    def coefficients(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Give w, and move it."""
        weight = self.weight.clone()
        values = losses.double()
        present = values != 0
        self.first.copy_(torch.where(self.first.isnan() & present, values, self.first))
        norms = gram.diagonal().clamp(min=0).sqrt()
        present = present & (norms != 0)
        count = present.sum().clamp(min=1)
        scaled = torch.where(present, weight * norms, 0.0)
        rates = torch.where(present, values / self.first, 0.0)
        rates = rates / (rates.sum() / count)
        target = scaled.sum() / count * rates**self.alpha
        step = torch.where(present, torch.sign(scaled - target) * norms, 0.0)
        moved = (weight - self.learning_rate * step).clamp(min=1e-3)
        moved = moved * (self.count / moved.sum())
        self.weight.copy_(torch.where(moved.isfinite().all(), moved, weight))
        return weight

    def resting_coefficients(self, losses: Tensor) -> Tensor:
        """Give w as it is."""
        return self.weight.to(losses)

    def extra_repr(self) -> str:
        """Name the settings."""
        return f"alpha={self.alpha}, learning_rate={self.learning_rate}, {super().extra_repr()}"


class MGDA(GradientWeighting):
    """The shortest vector in the convex hull of the gradients; see :func:`mgda_coefficients`.

    With the features' gradients for those of all shared parameters it is MGDA-UB of Sener and Koltun 2018.

    Parameters
    ----------
    normalize : {"none", "l2", "loss", "loss+"}
        By what gradients are divided before the coefficients are computed: nothing, their norm, their loss,
        or the product of both. The coefficients then apply to the gradients as they were.
    head_gradients : {"own", "weighted"}
        See :class:`GradientWeighting`.
    """

    def __init__(self, normalize: str = "none", *, head_gradients: str = "own") -> None:
        super().__init__(head_gradients)
        if normalize not in ("none", "l2", "loss", "loss+"):
            raise ValueError(f"normalize: expected one of none, l2, loss, loss+, got {normalize!r}")
        self.normalize = normalize

    def coefficients(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Of the normalised gradients."""
        by = torch.ones_like(gram.diagonal())
        if self.normalize in ("l2", "loss+"):
            by = by * gram.diagonal().clamp(min=0).sqrt()
        if self.normalize in ("loss", "loss+"):
            by = by * losses.to(by)
        by = torch.where(by == 0, 1.0, by)
        return mgda_coefficients(gram / by / by[:, None])

    def extra_repr(self) -> str:
        """Name the normalisation."""
        return f"normalize={self.normalize!r}, {super().extra_repr()}"


class PCGrad(_Random, GradientWeighting):
    """Gradients without their conflicting parts, summed; see :func:`pcgrad_coefficients`.

    Parameters
    ----------
    seed : int
        Of the random orders in which gradients are projected; the generator is the strategy's own.
    head_gradients : {"own", "weighted"}
        See :class:`GradientWeighting`.
    """

    resting = "sum"

    def __init__(self, *, seed: int = 0, head_gradients: str = "own") -> None:
        super().__init__(head_gradients, seed=seed)

    def coefficients(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Draw orders, and project in them."""
        draw = torch.rand(self.count, self.count, generator=self.generator, dtype=torch.float64)
        return pcgrad_coefficients(gram, draw.argsort(1))


class CAGrad(GradientWeighting):
    """Near the mean gradient, best for the worst-off task; see :func:`cagrad_coefficients`.

    Parameters
    ----------
    c : float
        How far from the mean, in its length.
    head_gradients : {"own", "weighted"}
        See :class:`GradientWeighting`.
    """

    def __init__(self, c: float = 0.4, *, head_gradients: str = "own") -> None:
        super().__init__(head_gradients)
        self.c = _number("c", c, 0)

    def coefficients(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Of this step."""
        return cagrad_coefficients(gram, self.c)

    def extra_repr(self) -> str:
        """Name c."""
        return f"c={self.c}, {super().extra_repr()}"


class IMTLG(GradientWeighting):
    """Equal projections onto all tasks' gradients; see :func:`imtl_g_coefficients`."""

    def coefficients(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Of this step."""
        return imtl_g_coefficients(gram)


class _Preferring(GradientWeighting):
    def __init__(self, preference: Sequence[float] | None = None, *, head_gradients: str = "own") -> None:
        super().__init__(head_gradients)
        self.preference = None if preference is None else tuple(float(w) for w in preference)

    def setup(self, tasks: Sequence[Task]) -> None:
        """Check the preference."""
        super().setup(tasks)
        _preference(self.preference, self.count)


class AlignedMTL(_Preferring):
    """Principal components of the gradients scaled to the smallest; see :func:`aligned_mtl_coefficients`.

    Parameters
    ----------
    preference : sequence of float, optional
        One for each task. None: 1/K.
    head_gradients : {"own", "weighted"}
        See :class:`GradientWeighting`.
    """

    def coefficients(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Of this step."""
        return aligned_mtl_coefficients(gram, self.preference)


class UPGrad(_Preferring):
    """Gradients projected onto the cone without conflicts; see :func:`upgrad_coefficients`.

    Parameters
    ----------
    preference : sequence of float, optional
        One for each task. None: 1/K.
    head_gradients : {"own", "weighted"}
        See :class:`GradientWeighting`.
    """

    def coefficients(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Of this step."""
        return upgrad_coefficients(gram, self.preference)


_BY_NAME: Mapping[str, Callable[[], TaskWeighting]] = {
    "fixed": Fixed,
    "uncertainty": Uncertainty,
    "dwa": DWA,
    "rlw": RLW,
    "uw_so": UWSO,
    "geometric_mean": GeometricMean,
    "imtl_l": IMTLL,
    "stch": STCH,
    "famo": FAMO,
    "gradnorm": GradNorm,
    "mgda": MGDA,
    "pcgrad": PCGrad,
    "cagrad": CAGrad,
    "imtl_g": IMTLG,
    "aligned_mtl": AlignedMTL,
    "upgrad": UPGrad,
}


def make_weighting(weighting: str | TaskWeighting) -> TaskWeighting:
    """Give the strategy of a name, with its default settings, or the strategy itself."""
    if isinstance(weighting, TaskWeighting):
        return weighting
    if not isinstance(weighting, str):
        raise TypeError(f"weighting: expected a name or a TaskWeighting, got {type(weighting).__name__}")
    if weighting not in _BY_NAME:
        raise ValueError(f"weighting: expected one of {', '.join(_BY_NAME)}, or an object, got {weighting!r}")
    return _BY_NAME[weighting]()


# ---- parts of the strategies


def _logs(losses: Tensor) -> tuple[Tensor, Tensor]:
    """Which losses are there, and their logarithms: 0, without a gradient, for those that are not."""
    present = losses.detach() != 0
    return present, torch.where(present, losses, 1.0).log()


def _add_epoch(total: Tensor, count: Tensor, losses: Tensor) -> None:
    total.add_(losses.to(total))
    count.add_((losses != 0).to(count))


def _epoch_mean(total: Tensor, count: Tensor) -> Tensor:
    """Give the mean, NaN for tasks that did not occur, and start over."""
    mean = torch.where(count > 0, total / count.clamp(min=1), math.nan)
    total.zero_()
    count.zero_()
    return mean


def _number(name: str, value: object, least: float, *, above: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not (least < value if above else least <= value) or math.isinf(value):
        raise ValueError(
            f"{name}: expected a number {'above' if above else 'of at least'} {least}, got {value!r}"
        )
    return float(value)


def _numbers(name: str, values: object, count: int, default: float) -> Tensor:
    if values is None:
        return torch.full((count,), default, dtype=torch.float64)
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(f"{name}: expected a sequence of numbers, got {values!r}")
    made = [_number(f"{name}[{i}]", value, 0, above=True) for i, value in enumerate(values)]
    if len(made) != count:
        raise ValueError(f"{name}: expected {count}, one for each task, got {len(made)}")
    return torch.tensor(made, dtype=torch.float64)
