"""Which part of an input moves an output: integrated gradients, gradient times input, occlusion.

Each method gives a number for every pixel, mel bin and token: how much it raised (above 0) or lowered the
explained output, against a baseline that stands for "nothing there".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor, nn

from mmcore.errors import UnsupportedError

__all__ = ["METHODS", "Attributions", "Subject", "attribute"]

METHODS = ("integrated_gradients", "gradient_x_input", "occlusion")

Attributions = dict[str, Tensor]
"""By modality, one number for each pixel, mel bin or token of the sample."""


class Subject:
    """One sample, its baseline, and the output to explain, as a function of what lies between the two.

    Parameters
    ----------
    model : nn.Module
        ``forward(inputs, masks, available)`` gives a mapping of outputs; integer ids are looked up by an
        embedding in ``model.encoders[name]``.
    inputs : mapping of str to Tensor
        By modality, (1, ...), those that are there.
    masks, available
        As the model takes them, of one sample.
    baselines : mapping of str to Tensor
        What stands for nothing: of floating inputs, and shaped as they are. That of ids is a vector of zeros.
    score : callable
        Of the outputs, (B,): what is explained.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        available: Tensor | None,
        baselines: Mapping[str, Tensor],
        score: Callable[[Mapping[str, Tensor]], Tensor],
    ) -> None:
        self.model = model
        self.inputs = dict(inputs)
        self.masks = dict(masks)
        self.available = available
        self.baselines = dict(baselines)
        self._score = score
        self.embeddings = {
            name: _embedding(model, name) for name, x in inputs.items() if not x.is_floating_point()
        }

    def scores(self, inputs: Mapping[str, Tensor], keep: Mapping[str, Tensor] | None = None) -> Tensor:
        """The explained output (B,) of B variants of the sample.

        ``keep`` gives factors (B, L, 1) on the vectors of ids' embeddings.
        """
        count = len(next(iter(inputs.values())))
        repeated = {name: mask.expand(count, -1) for name, mask in self.masks.items()}
        available = None if self.available is None else self.available.expand(count, -1)
        with self._scaled(keep or {}):
            return self._score(self.model(dict(inputs), repeated, available))

    @contextmanager
    def _scaled(self, keep: Mapping[str, Tensor]) -> Iterator[None]:
        """While entered, the vectors of ids are multiplied by factors."""

        def hook(factor: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
            return lambda module, args, output: output * factor

        handles = [self.embeddings[name].register_forward_hook(hook(k)) for name, k in keep.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def between(self, share: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Points on the straight line from baseline (0) to sample (1), for shares (B,): (inputs, factors)."""
        inputs, keep = {}, {}
        for name, x in self.inputs.items():
            if name in self.embeddings:
                inputs[name] = x.expand(len(share), -1)
                keep[name] = share.view(-1, 1, 1).expand(-1, x.shape[1], 1)
            else:
                base = self.baselines[name]
                inputs[name] = base + share.view(-1, *(1,) * (x.dim() - 1)) * (x - base)
        return inputs, keep

    def ends(self) -> tuple[float, float]:
        """The explained output of the baseline and of the sample."""
        with torch.no_grad():
            at = self.scores(*self.between(torch.tensor([0.0, 1.0], device=self._device)))
        return float(at[0]), float(at[1])

    @property
    def _device(self) -> torch.device:
        return next(iter(self.inputs.values())).device


def attribute(
    subject: Subject, method: str, *, steps: int = 64, fields: int = 8, chunk: int = 8
) -> Attributions:
    """Attributions by one of :data:`METHODS`.

    Parameters
    ----------
    subject : Subject
    method : str
        With x the sample, x0 the baseline and f the explained output:

        "integrated_gradients"
            ``(x - x0) * mean of df/dx over the line from x0 to x`` (Sundararajan, Taly and Yan 2017), by the
            midpoint rule in the fourth root of the way, which is denser near x0. The sum over everything is
            ``f(x) - f(x0)``, up to the rule's error.
        "gradient_x_input"
            ``(x - x0) * df/dx`` at x: the same to first order (Shrikumar et al. 2016).
        "occlusion"
            How much f falls when a field becomes baseline (Zeiler and Fergus 2014): of pictures, ``fields`` x
            ``fields`` in each frame; of spectrograms, ``fields`` bands by 4 times as many stretches of time;
            each token. Spread evenly over the field.
    steps : int
        Points on the line.
    fields : int
    chunk : int
        Variants of the sample that are computed at once.

    Returns
    -------
    dict of str to Tensor
        "video" (T, H, W), summed over colours; "audio" (T, mels); ids (L,), summed over the vector.
    """
    if method == "occlusion":
        return _occlusion(subject, fields, chunk)
    if method == "gradient_x_input":
        return _gradients(subject, torch.ones(1), torch.ones(1), chunk)
    # What a layer makes of a picture whose colour it normalises turns within a hundredth of the way from one
    # colour: points evenly spread would step over it.
    root = (torch.arange(steps) + 0.5) / steps
    return _gradients(subject, root**4, root**3 / (root**3).sum(), chunk)


def _gradients(subject: Subject, shares: Tensor, weights: Tensor, chunk: int) -> Attributions:
    """``(x - x0) * weighted mean of df/dx`` at shares of the line from x0 to x."""
    totals: dict[str, Tensor] = {}
    parts = (torch.split(t.to(subject._device), chunk) for t in (shares, weights))
    for part, weight in zip(*parts, strict=True):
        inputs, keep = subject.between(part)
        leaves = {
            n: t.detach().requires_grad_() for n, t in {**inputs, **keep}.items() if t.is_floating_point()
        }
        # For ids the factor is the leaf: (x - x0) df/dx, summed over the vector, is df/dfactor.
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):  # cuDNN's RNNs only train
            scores = subject.scores(
                {n: leaves.get(n, x) if n not in keep else x for n, x in inputs.items()},
                {n: leaves[n] for n in keep},
            )
            gradients = torch.autograd.grad((weight * scores).sum(), list(leaves.values()), allow_unused=True)
        for name, leaf, gradient in zip(leaves, leaves.values(), gradients, strict=True):
            found = torch.zeros_like(leaf) if gradient is None else gradient
            totals[name] = totals.get(name, 0.0) + found.sum(0)
    result = {}
    for name, total in totals.items():
        if name in subject.embeddings:
            result[name] = _within(subject, name, total[:, 0])
        else:
            moved = (subject.inputs[name] - subject.baselines[name])[0]
            result[name] = _within(subject, name, _over_colours(moved * total))
    return result


def _occlusion(subject: Subject, fields: int, chunk: int) -> Attributions:
    _, whole = subject.ends()
    result = {}
    for name, x in subject.inputs.items():
        shape = x.shape[1:] if x.dim() < 5 else (x.shape[1], *x.shape[3:])
        places = list(_fields(shape, fields))
        attribution = torch.zeros(shape, device=x.device)
        for start in range(0, len(places), chunk):
            part = places[start : start + chunk]
            hidden = torch.zeros(len(part), *shape, dtype=torch.bool, device=x.device)
            for row, place in zip(hidden, part, strict=True):
                row[place] = True
            inputs, keep = subject.between(torch.ones(len(part), device=x.device))
            if name in subject.embeddings:
                keep[name] = (~hidden).float()[..., None]
            else:
                where = hidden if x.dim() < 5 else hidden[:, :, None]
                inputs[name] = torch.where(where, subject.baselines[name], inputs[name])
            with torch.no_grad():
                falls = whole - subject.scores(inputs, keep)
            for place, fall in zip(part, falls, strict=True):
                attribution[place] = fall / attribution[place].numel()
        result[name] = _within(subject, name, attribution)
    return result


def _fields(shape: tuple[int, ...], fields: int) -> Iterator[tuple[slice, ...]]:
    """Places of what is hidden at a time: (T, H, W) of pictures, (T, mels), (L,) of ids."""
    parts = {1: (shape[0],), 2: (4 * fields, fields), 3: (shape[0], fields, fields)}[len(shape)]
    cuts = []
    for size, count in zip(shape, parts, strict=True):
        edges = [size * i // min(size, count) for i in range(min(size, count) + 1)] if size else [0]
        cuts.append([slice(a, b) for a, b in pairwise(edges)])
    return product(*cuts)


def _over_colours(x: Tensor) -> Tensor:
    """Sum of (T, C, H, W) over C; others as they are."""
    return x.sum(1) if x.dim() == 4 else x


def _within(subject: Subject, name: str, attribution: Tensor) -> Tensor:
    """Attribution, 0 at the steps that the mask leaves out."""
    mask = subject.masks.get(name)
    if mask is None:
        return attribution
    return attribution.masked_fill(~mask[0].view(-1, *(1,) * (attribution.dim() - 1)), 0.0)


def _embedding(model: nn.Module, name: str) -> nn.Module:
    """The module that looks up ids, of the encoder of that name."""
    encoders: Any = getattr(model, "encoders", {})
    encoder: nn.Module = encoders[name] if name in encoders else model  # noqa: SIM401  # ModuleDict has no get
    for module in encoder.modules():
        # How models of transformers say it; others have one embedding, or the words' before the others.
        lookup = getattr(module, "get_input_embeddings", None)
        if callable(lookup):
            found: nn.Module = lookup()
            return found
        if isinstance(module, nn.Embedding):
            return module
    raise UnsupportedError(f"{name}: no nn.Embedding in {type(encoder).__name__} that looks up its ids")
