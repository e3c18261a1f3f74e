"""Weighted fusion as a module: learned weights or gates, projections, modality dropout, contributions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from mmcore.errors import MMCoreError, UnsupportedError
from mmcore.ops.fusion import ALIGNMENTS, MAX_MODALITIES, MODES, NORMS, weighted_fusion

__all__ = ["FusionContributions", "WeightedFusion"]

WEIGHTINGS = ("uniform", "scalar", "gate", "step_gate", "channel_gate")


class FusionContributions(NamedTuple):
    """What each modality did in one call of :class:`WeightedFusion`; see its ``contributions``."""

    names: tuple[str, ...]
    """Of the modalities: the columns of ``feature`` and ``loss``."""
    feature: Tensor
    """(B, M): ``<w_m a_m, F> / <F, F>`` over steps and channels; sums to 1 over M, and is 0 where F is 0."""
    loss: Tensor | None
    """(B, M): ``sum_{t,d} w_m a_m dL/dF``; None before backward."""


class _ZeroLinear(nn.Linear):
    """Starts at zero, so that the first weights are equal for all modalities."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class WeightedFusion(nn.Module):
    """Fuse the features of M modalities with learned weights: :func:`mmcore.weighted_fusion` as a module.

    ``F[b, t] = sum_m w_m[b, t] * (A_m norm_m(P_m x_m[b]))[t]``

    P_m are optional linear projections to one width; ``weighting`` says what the weights are made of and
    ``mode`` how they are scaled. Every weighting starts with equal weights.

    Parameters
    ----------
    modalities : int, sequence of int, or mapping of str to int
        How many modalities there are, all of width ``dim``; or the width of each; or their names and widths.
        With names, ``forward`` also takes a dict. 1 to 16.
    dim : int, optional
        D, the width of the result. None: the width that all modalities have; ``WeightedFusion(13)``, which
        does not say it, takes any, as long as nothing that is learned depends on it.
    weighting : {"scalar", "uniform", "gate", "step_gate", "channel_gate"}
        "uniform": nothing learned. "scalar": one parameter per modality. Gates come from a network over the
        features of all modalities side by side, as they are before P_m, with zeros for what is missing:
        "gate" reads their means over those of the T steps that are there and gives (B, M), one weight for
        each sample; "step_gate" gives (B, T, M); "channel_gate" gives (B, T, M, D), as the gated multimodal
        unit does.
    mode : {"softmax", "normalized", "sum"}
        With l_m the learned scalar or the network's result: "softmax" of l over the modalities that are
        there; "normalized", ``sigmoid(l_m)`` over the sum of those; "sum", ``sigmoid(l_m)`` for gates and l_m
        itself for scalars. For "uniform": the sum, or in the other modes the mean.
    norm : {None, "layer_norm", "rms_norm", "l2"}
        Of each modality over its D channels, after the projection.
    affine : bool
        Learned scale, and for "layer_norm" shift, per modality and channel after the norm; "l2" has none.
    eps : float
        Of the norm.
    align : str, sequence of (str or None), or mapping of str to str, optional
        How a stream of T_m steps is brought to T: "nearest", "linear" or "mean"; for all, for each, or by
        name (those not named must have T).
    project : bool, optional
        ``nn.Linear`` to D for every modality (True) or none (False). None: for those whose width is not D.
    activation : callable, optional
        Elementwise, after the projections: ``torch.tanh`` for the gated multimodal unit.
    gate_hidden : int, optional
        Width of a hidden layer (with ReLU) in the gate network. None: the network is one linear layer.
    scale : bool
        A learned factor on the result, as ELMo's gamma.
    modality_dropout : float
        In training, each modality of each sample is missing with this probability, but never all that are
        there: one, drawn at random, always stays. Nothing is rescaled.
    device, dtype
        Of the parameters.

    Attributes
    ----------
    weight : nn.Parameter or None
        (M,), of "scalar".
    gate : nn.Sequential or None
        The gate network; the last layer has M or, for "channel_gate", M * D outputs, channels fastest.
    norm_weight, norm_bias : nn.Parameter or None
        (M, D).
    scale : nn.Parameter or None
        (1,).
    projections : nn.ModuleList or None
        ``nn.Linear`` or ``nn.Identity`` for each modality.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit; the message says what was expected and what came.

    Notes
    -----
    What the mask says is missing never enters the result or any gradient, NaN included: it is replaced before
    projections and gates read it. Projections and gates take dtypes, and follow autocast, as ``nn.Linear``
    does; "gate" casts its means to the network's dtype.

    Sources: gated multimodal unit, Arevalo et al. 2017, whose z and 1 - z for two modalities are mode
    "softmax" with z = sigmoid(l_1 - l_2), and whose form for more is mode "sum"; scalar mix with a factor,
    Peters et al. 2018 (ELMo); modality dropout, Neverova et al. 2015 (ModDrop).

    Examples
    --------
    >>> import torch
    >>> from mmcore.nn import WeightedFusion
    >>> fusion = WeightedFusion({"image": 8, "audio": 4}, dim=8, align={"audio": "mean"})
    >>> features = {"image": torch.ones(2, 3, 8), "audio": torch.ones(2, 50, 4)}
    >>> fusion(features).shape
    torch.Size([2, 3, 8])
    """

    weight: nn.Parameter | None
    norm_weight: nn.Parameter | None
    norm_bias: nn.Parameter | None
    scale: nn.Parameter | None
    gate: nn.Sequential | None
    projections: nn.ModuleList | None

    def __init__(
        self,
        modalities: int | Sequence[int] | Mapping[str, int],
        dim: int | None = None,
        *,
        weighting: str = "scalar",
        mode: str = "softmax",
        norm: str | None = None,
        affine: bool = True,
        eps: float = 1e-5,
        align: str | Sequence[str | None] | Mapping[str, str | None] | None = None,
        project: bool | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
        gate_hidden: int | None = None,
        scale: bool = False,
        modality_dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.names, self.in_dims, self.dim = _check_modalities(modalities, dim)
        count = len(self.in_dims)
        _check_choice("weighting", weighting, WEIGHTINGS)
        _check_choice("mode", mode, MODES)
        if norm is not None:
            _check_choice("norm", norm, NORMS)
        if activation is not None and not callable(activation):
            raise TypeError(f"activation: expected a callable or None, got {activation!r}")
        if gate_hidden is not None and not weighting.endswith("gate"):
            raise ValueError(f"gate_hidden: weighting {weighting!r} has no gate network")
        if not _is_number(modality_dropout) or not 0 <= modality_dropout <= 1:
            raise ValueError(f"modality_dropout: expected a number from 0 to 1, got {modality_dropout!r}")
        if not _is_number(eps) or not 0 <= eps < float("inf"):
            raise ValueError(f"eps: expected a number of 0 or more, got {eps!r}")
        self.weighting = weighting
        self.mode = mode
        self.norm = norm
        self.eps = float(eps)
        self.align = _check_align(align, count, self.names)
        self.activation = activation
        self.modality_dropout = float(modality_dropout)

        to: dict[str, Any] = {"device": device, "dtype": dtype}
        projected = [project if project is not None else width != self.dim for width in self.in_dims]
        for m, width in enumerate(self.in_dims):
            if not projected[m] and width != self.dim:
                raise ValueError(f"project: False needs all widths to be {self.dim}, got {width} at {m}")
        self.projections = None
        if any(projected):
            self.projections = nn.ModuleList(
                nn.Linear(width, self._width("project=True"), **to) if needed else nn.Identity()
                for width, needed in zip(self._in_widths("project=True"), projected, strict=True)
            )
        self.gate = None
        if weighting.endswith("gate"):
            read = sum(self._in_widths(f"weighting={weighting!r}"))
            made = count * self._width(f"weighting={weighting!r}") if weighting == "channel_gate" else count
            layers: list[nn.Module] = []
            if gate_hidden is not None:
                layers += [nn.Linear(read, _check_positive("gate_hidden", gate_hidden), **to), nn.ReLU()]
            self.gate = nn.Sequential(*layers, _ZeroLinear(gate_hidden or read, made, **to))
        weights = nn.Parameter(torch.empty(count, **to)) if weighting == "scalar" else None
        self.register_parameter("weight", weights)
        for name, norms in (("norm_weight", ("layer_norm", "rms_norm")), ("norm_bias", ("layer_norm",))):
            values = None
            if affine and norm in norms:
                width = self._width(f"norm={norm!r} with affine=True")
                values = nn.Parameter(torch.empty(count, width, **to))
            self.register_parameter(name, values)
        self.register_parameter("scale", nn.Parameter(torch.empty(1, **to)) if scale else None)

        self._tracking = False
        self._compiled = False
        self._record: tuple[Tensor, Tensor] | None = None  # shares of the feature, probe
        self._reset_own_parameters()

    def reset_parameters(self) -> None:
        """Set all parameters, those of gate and projections too, to new initial values."""
        self._reset_own_parameters()
        for child in self.modules():
            reset = None if child is self else getattr(child, "reset_parameters", None)
            if callable(reset):
                reset()

    def _reset_own_parameters(self) -> None:
        if self.weight is not None:
            nn.init.constant_(self.weight, 1 / len(self.in_dims) if self.mode == "sum" else 0.0)
        if self.norm_weight is not None:
            nn.init.ones_(self.norm_weight)
        if self.norm_bias is not None:
            nn.init.zeros_(self.norm_bias)
        if self.scale is not None:
            nn.init.ones_(self.scale)

    def forward(
        self,
        features: Sequence[Tensor] | Mapping[str, Tensor],
        mask: Tensor | None = None,
        *,
        length: int | None = None,
    ) -> Tensor:
        """Fuse.

        Parameters
        ----------
        features : sequence or mapping of Tensor
            For each modality (B, T_m, width) or, for all, (B, width).
        mask : Tensor, optional
            bool, True where the modality is there: (B, M), or (B, T, M) in steps of the result.
        length : int, optional
            T. None: the mask's steps if it has them, else those of the first modality.

        Returns
        -------
        Tensor
            (B, T, D) or (B, D), of the dtype that the projected features have.
        """
        xs = self._in_order(features)
        batch, flat = xs[0].shape[0], xs[0].dim() == 2
        steps = 1
        if not flat:
            if length is not None:
                steps = length
            else:
                steps = mask.shape[1] if isinstance(mask, Tensor) and mask.dim() == 3 else xs[0].shape[1]
            for m, x in enumerate(xs):
                if self.align[m] is None and x.shape[1] != steps:
                    raise ValueError(
                        f"{self._label(m)}: has {x.shape[1]} steps where the result has {steps};"
                        f" align= ({', '.join(ALIGNMENTS)}) brings it there"
                    )
            length = steps
        if mask is not None:
            _check_mask(mask, batch, steps, len(xs), flat)
        if self.training and self.modality_dropout > 0:
            mask = self._without_dropped(mask, batch, xs[0].device)

        weights, mode = self._weights(xs, mask, length)
        if self.projections is not None or self.activation is not None:
            xs = [self._projected(m, x, mask) for m, x in enumerate(xs)]
        options: dict[str, Any] = {
            "mode": mode,
            "mask": mask,
            "norm": self.norm,
            "norm_weight": self.norm_weight,
            "norm_bias": self.norm_bias,
            "align": self.align,
            "eps": self.eps,
            "length": length,
        }
        if self._tracking:
            self._compiled = torch.compiler.is_compiling()
            if self._compiled:
                self._record = None  # a compiled graph can make no leaf that receives a gradient
            else:
                options["probe"] = self._start_record(xs, weights, options)
        fused = weighted_fusion(xs, weights, **options)
        # Cast, since a float32 factor would make half-precision features float32.
        return fused if self.scale is None else fused * self.scale.to(fused.dtype)

    def track_contributions(self, enabled: bool = True) -> Self:
        """Switch the record of contributions on or off (as after construction), and forget the last one.

        While it is on, the module holds two (B, M) tensors, each call costs about one more forward and one
        more backward of the op, and its result requires grad wherever grad mode is on. Returns ``self``.
        """
        self._tracking = bool(enabled)
        self._compiled = False
        self._record = None
        return self

    def contributions(self) -> FusionContributions:
        """What each modality did in the last call, for each sample.

        Returns
        -------
        FusionContributions
            ``feature``, the shares of the fused feature, right after the call; ``loss``, each modality's part
            in the loss to first order, once backward has run.

        Raises
        ------
        MMCoreError
            If ``track_contributions`` was not switched on, or nothing was fused since.
        UnsupportedError
            If the last call ran under ``torch.compile``.

        Notes
        -----
        ``loss[b, m]`` is the derivative of what backward was called on with respect to a factor on modality m
        of sample b, at factor 1. It is thus about how much the loss would fall if the modality contributed
        nothing and all weights stayed as they are. Parts may be negative, do not sum to the loss, and add up
        over several backwards, as gradients do; a mean over the batch or a gradient scaler is in them.

        Examples
        --------
        >>> import torch
        >>> from mmcore.nn import WeightedFusion
        >>> fusion = WeightedFusion({"image": 2, "audio": 2}).track_contributions()
        >>> fusion([torch.ones(1, 2), torch.zeros(1, 2)]).sum().backward()
        >>> fusion.contributions()
        FusionContributions(names=('image', 'audio'), feature=tensor([[1., 0.]]), loss=tensor([[1., 0.]]))
        """
        if not self._tracking:
            raise MMCoreError("contributions: not tracked; call track_contributions() before the forward")
        if self._compiled:
            raise UnsupportedError(
                "contributions: the last call ran under torch.compile, which records none; call the module"
                " without it, as under torch.compiler.set_stance('force_eager')"
            )
        if self._record is None:
            raise MMCoreError("contributions: nothing was fused since tracking was switched on")
        shares, probe = self._record
        names = self.names or tuple(map(str, range(len(self.in_dims))))
        return FusionContributions(names, shares, None if probe.grad is None else probe.grad.detach())

    def extra_repr(self) -> str:
        """Modalities and settings, without those that are off."""
        widths = ["?" if width is None else str(width) for width in self.in_dims]
        if self.names is not None:
            widths = [f"{name}: {width}" for name, width in zip(self.names, widths, strict=True)]
        shown = [f"({', '.join(widths)}) -> {'?' if self.dim is None else self.dim}"]
        shown += [f"weighting={self.weighting!r}", f"mode={self.mode!r}"]
        if self.norm is not None:
            affine = "" if self.norm == "l2" else f", affine={self.norm_weight is not None}"
            shown.append(f"norm={self.norm!r}{affine}, eps={self.eps}")
        if any(self.align):
            shown.append(f"align={self.align}")
        if self.activation is not None and not isinstance(self.activation, nn.Module):
            shown.append(f"activation={getattr(self.activation, '__name__', self.activation)}")
        if self.scale is not None:
            shown.append("scale=True")
        if self.modality_dropout > 0:
            shown.append(f"modality_dropout={self.modality_dropout}")
        return ", ".join(shown)

    def __getstate__(self) -> dict[str, Any]:
        # A copy has not fused anything yet.
        return {**self.__dict__, "_record": None}

    # parts of forward

    def _in_order(self, features: Sequence[Tensor] | Mapping[str, Tensor]) -> list[Tensor]:
        """The features as a list, after the checks that projections and gates rely on."""
        if isinstance(features, Mapping):
            if self.names is None:
                raise TypeError(
                    "features: expected a sequence of tensors, got a mapping; the constructor gives names:"
                    " WeightedFusion({'image': 768, 'audio': 128})"
                )
            if set(features) != set(self.names):
                raise ValueError(
                    f"features: expected the modalities {', '.join(self.names)},"
                    f" got {', '.join(map(str, features)) or 'none'}"
                )
            xs = [features[name] for name in self.names]
        elif isinstance(features, Sequence):
            xs = list(features)
        else:
            raise TypeError(
                "features: expected a sequence or mapping of tensors, one per modality, got"
                f" {type(features).__name__}"
            )
        if len(xs) != len(self.in_dims):
            raise ValueError(f"features: expected {len(self.in_dims)} modalities, got {len(xs)}")
        for m, x in enumerate(xs):
            if not isinstance(x, Tensor):
                raise TypeError(f"{self._label(m)}: expected a tensor, got {type(x).__name__}")
            if not x.is_floating_point():
                raise TypeError(f"{self._label(m)}: expected a floating tensor, got {x.dtype}")
            dims, width = xs[0].dim(), self.in_dims[m]
            if width is None and dims > 0:
                width = xs[0].shape[-1]  # any, but the same for all
            fits = dims in (2, 3) and x.dim() == dims and x.shape[0] == xs[0].shape[0]
            if not fits or x.shape[-1] != width:
                expected = f"(B, T, {width}) or (B, {width})"
                if m > 0:
                    expected = f"({xs[0].shape[0]}, {'T, ' if dims == 3 else ''}{width})"
                raise ValueError(f"{self._label(m)}: expected shape {expected}, got {tuple(x.shape)}")
        return xs

    def _without_dropped(self, mask: Tensor | None, batch: int, device: torch.device) -> Tensor:
        """The mask after modality dropout: draws below the probability go, the highest one always stays."""
        draw = torch.rand(batch, len(self.in_dims), device=device)
        candidates = draw
        if mask is not None:
            candidates = draw.masked_fill(~(mask if mask.dim() == 2 else mask.any(1)), -1.0)
        kept = (draw >= self.modality_dropout) | (draw == candidates.amax(1, keepdim=True))
        if mask is None:
            return kept
        return mask & (kept if mask.dim() == 2 else kept[:, None])

    def _projected(self, m: int, x: Tensor, mask: Tensor | None) -> Tensor:
        layer = None if self.projections is None else self.projections[m]
        if self.activation is None and (layer is None or isinstance(layer, nn.Identity)):
            return x
        if mask is not None:
            # A gradient of 0 times NaN would still be NaN in the layer's gradient.
            there = mask[..., m]
            if mask.dim() == 3:
                there = _steps_read(there, self.align[m], x.shape[1])
            x = x.masked_fill(~there.reshape(*there.shape, *(1,) * (x.dim() - there.dim())), 0.0)
        if layer is not None:
            x = layer(x)
        return x if self.activation is None else self.activation(x)

    def _weights(
        self, xs: list[Tensor], mask: Tensor | None, length: int | None
    ) -> tuple[Tensor | None, str]:
        """The op's weights and mode."""
        if self.weighting == "uniform":
            return None, "sum" if self.mode == "sum" else "normalized"
        if self.weight is not None:
            logits: Tensor = self.weight
            if self.mode == "sum":
                return logits, "sum"
        else:
            assert self.gate is not None
            read = (
                self._pooled(xs, mask, length) if self.weighting == "gate" else self._joined(xs, mask, length)
            )
            logits = self.gate(read)
            if self.weighting == "channel_gate":
                logits = logits.view(*logits.shape[:-1], len(xs), self._width(self.weighting))
        if self.mode == "sum":
            return torch.sigmoid(logits), "sum"
        # sigmoid(l) over the sum of all is the softmax of log(sigmoid(l)), and cannot become 0 / 0 like that.
        return (nn.functional.logsigmoid(logits) if self.mode == "normalized" else logits), "softmax"

    def _pooled(self, xs: list[Tensor], mask: Tensor | None, length: int | None) -> Tensor:
        """(B, sum of widths): of each modality the mean over its steps that are there, 0 if none is."""
        pooled = []
        by_step = mask is not None and mask.dim() == 3
        for m, mean in enumerate(xs):
            if mean.dim() == 3:
                x = self._at_steps(m, mean, mask, length) if by_step or self.align[m] is not None else mean
                # Sums in float32 at least, as half-precision ones overflow.
                mean = x.sum(1, dtype=torch.promote_types(x.dtype, torch.float32))
                if mask is not None and by_step:
                    mean = mean / mask[:, :, m].sum(1, keepdim=True).clamp(min=1)
                else:
                    mean = mean / max(x.shape[1], 1)
            if mask is not None and not by_step:
                mean = mean.masked_fill(~mask[:, m, None], 0.0)
            pooled.append(mean)
        assert self.gate is not None
        read = torch.cat(pooled, -1)
        return read.to(self.gate[0].weight.dtype)  # type: ignore[arg-type]

    def _joined(self, xs: list[Tensor], mask: Tensor | None, length: int | None) -> Tensor:
        """(B, T, sum of widths) or (B, sum of widths): the features at the result's steps, 0 if missing."""
        return torch.cat([self._at_steps(m, x, mask, length) for m, x in enumerate(xs)], -1)

    def _at_steps(self, m: int, x: Tensor, mask: Tensor | None, length: int | None) -> Tensor:
        """One modality aligned to the result's steps, 0 where it is missing."""
        if mask is None and self.align[m] is None:
            return x
        there = None if mask is None else mask[..., m : m + 1]
        return weighted_fusion([x], mask=there, align=[self.align[m]], length=length)

    def _start_record(self, xs: list[Tensor], weights: Tensor | None, options: dict[str, Any]) -> Tensor:
        """Keep the shares of the fused feature and the probe whose gradient will be the parts in the loss."""
        dtype = torch.float32
        for x in xs if weights is None else (*xs, weights):
            dtype = torch.promote_types(dtype, x.dtype)
        with torch.inference_mode(False), torch.enable_grad():
            probe = torch.zeros(xs[0].shape[0], len(xs), dtype=dtype, device=xs[0].device, requires_grad=True)
            # <w_m a_m, F> is the probe's gradient for an upstream gradient of F.
            constants: dict[str, Any] = {name: _constant(value) for name, value in options.items()}
            fused = weighted_fusion([_constant(x) for x in xs], _constant(weights), **constants, probe=probe)
            (parts,) = torch.autograd.grad(fused, probe, fused.detach())
        # The parts' sum is <F, F>, but for F's rounding to a half-precision dtype.
        square = parts.sum(1, keepdim=True)
        shares = torch.where(square > 0, parts / torch.where(square > 0, square, 1.0), 0.0)
        self._record = shares, probe
        return probe

    # texts and widths for errors

    def _label(self, m: int) -> str:
        return f"features[{m}]" if self.names is None else f"features[{self.names[m]!r}]"

    def _width(self, reason: str) -> int:
        if self.dim is None:
            raise ValueError(f"dim: {reason} needs it, got None")
        return self.dim

    def _in_widths(self, reason: str) -> list[int]:
        return [self._width(reason) if width is None else width for width in self.in_dims]


def _constant(value: Any) -> Any:
    """What autograd takes as a constant, if it is a tensor; those of inference mode can only be copied."""
    if not isinstance(value, Tensor):
        return value
    return value.clone() if value.is_inference() else value.detach()


def _steps_read(there: Tensor, align: str | None, source: int) -> Tensor:
    """(B, T_m) bool: the stream's steps that are read for the result's steps which are there, (B, T)."""
    if align is None:
        return there
    length = there.shape[1]
    t = torch.arange(length, device=there.device)
    # Step t of the result reads the steps first to last of the source.
    if align == "nearest":
        first = last = (2 * t + 1) * source // (2 * length)
    elif align == "linear":
        position = ((2 * t + 1) * source - length).clamp(min=0)  # of the sample's centre, times 2 * length
        first, last = position // (2 * length), -(-position // (2 * length))
    else:
        first, last = t * source // length, -(-(t + 1) * source // length) - 1
    first, last = first.clamp(max=source - 1), last.clamp(max=source - 1)
    # How many read a step: +1 where a reader's range begins, -1 after its end, summed up.
    change = there.new_zeros((there.shape[0], source + 1), dtype=torch.int32)
    change = change.index_add(1, first, there.int()).index_add(1, last + 1, -there.int())
    return change.cumsum(1)[:, :source] > 0


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def _check_positive(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected 1 or more, got {value}")
    return value


def _check_modalities(
    modalities: int | Sequence[int] | Mapping[str, int], dim: int | None
) -> tuple[tuple[str, ...] | None, tuple[int | None, ...], int | None]:
    """Names, widths, and the width of the result."""
    if dim is not None:
        _check_positive("dim", dim)
    names = None
    widths: tuple[int | None, ...]
    if isinstance(modalities, Mapping):
        for name in modalities:
            if not isinstance(name, str):
                raise TypeError(f"modalities: expected names that are str, got {name!r}")
        names = tuple(modalities)
        widths = tuple(_check_positive(f"modalities[{name!r}]", modalities[name]) for name in names)
    elif isinstance(modalities, Sequence):
        widths = tuple(_check_positive(f"modalities[{m}]", width) for m, width in enumerate(modalities))
    elif isinstance(modalities, int) and not isinstance(modalities, bool):
        widths = (dim,) * modalities
    else:
        raise TypeError(
            "modalities: expected an int, a sequence of widths or a mapping of names to widths,"
            f" got {modalities!r}"
        )
    count = modalities if isinstance(modalities, int) else len(widths)
    if not 1 <= count <= MAX_MODALITIES:
        raise ValueError(f"modalities: expected 1 to {MAX_MODALITIES}, got {count}")
    if dim is None:
        if len(set(widths)) > 1:
            raise ValueError(f"dim: modalities of widths {', '.join(map(str, widths))} need it, got None")
        dim = widths[0]
    return names, widths, dim


def _check_align(
    align: str | Sequence[str | None] | Mapping[str, str | None] | None,
    count: int,
    names: tuple[str, ...] | None,
) -> tuple[str | None, ...]:
    """One kind for each modality."""
    kinds: tuple[str | None, ...]
    if isinstance(align, Mapping):
        unknown = [str(name) for name in align if name not in (names or ())]
        if unknown:
            raise ValueError(
                f"align: expected names of modalities ({', '.join(names or ('there are none',))}),"
                f" got {', '.join(unknown)}"
            )
        kinds = tuple(align.get(name) for name in names or ())
    elif align is None or isinstance(align, str):
        kinds = (align,) * count
    elif isinstance(align, Sequence):
        kinds = tuple(align)
        if len(kinds) != count:
            raise ValueError(
                f"align: expected one for all or one for each of {count} modalities, got {len(kinds)}"
            )
    else:
        raise TypeError(f"align: expected a str, a sequence or a mapping of them, or None, got {align!r}")
    for kind in kinds:
        if kind is not None:
            _check_choice("align", kind, ALIGNMENTS)
    return kinds


def _check_mask(mask: object, batch: int, steps: int, count: int, flat: bool) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask: expected a tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: expected a bool tensor, True where a modality is there, got {mask.dtype}")
    if mask.shape != (batch, count) and (flat or mask.shape != (batch, steps, count)):
        kinds = f"{(batch, count)}" if flat else f"{(batch, count)} or {(batch, steps, count)}"
        raise ValueError(f"mask: {count} modalities need shape {kinds}, got {tuple(mask.shape)}")
