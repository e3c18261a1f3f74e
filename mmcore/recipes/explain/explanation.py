"""Why a network said what it said of one clip: shares of the modalities over time, and saliency in each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmcore.recipes.explain.attribution import METHODS, Subject, attribute

if TYPE_CHECKING:
    from mmcore.clips import Clip

__all__ = ["Explanation", "clip_times", "explain"]

_CLASSES = ("cross_entropy", "bce_with_logits", "kl_distillation")


@dataclass(frozen=True, eq=False)
class Explanation:
    """What :func:`explain` finds of one sample.

    Attributes
    ----------
    task : str
        Whose output is explained.
    target : int or None
        Which of the output's numbers: a class, or a coordinate. None if there is one only.
    output : Tensor
        (C,): all numbers of the task's output; of a sequence their means over time.
    probabilities : Tensor or None
        (C,): what they stand for, where the output is over classes.
    score : float
        The explained one.
    baseline_score : float
        The same for the baseline: no picture but one colour, no sound, no words.
    method : str
        Of ``attributions``: one of :data:`mmcore.recipes.explain.METHODS`.
    inputs : dict of str to Tensor
        By modality that was there, what the network got, without the batch.
    attributions : dict of str to Tensor
        By the same modalities, how much each part raised the score: "video" (T, H, W), "audio" (T, mels),
        "text" (L,).
    times : dict of str to Tensor
        By the same modalities, (T, 2) float64: seconds in which each step begins and ends.
    modalities : tuple of str
        The last dimension of the contributions.
    contributions : Tensor or None
        (M,): each modality's share of the fused features, see docs/fusion.md; sums to 1. None if the
        model has no ``contributions()``.
    contribution_steps : Tensor or None
        (S, M): the same over time.
    contribution_seconds : Tensor or None
        (S, 2) float64: from when to when each of them is.
    windowed : bool
        Whether ``contribution_steps`` come from sliding windows, as the model fuses whole clips.
    """

    task: str
    target: int | None
    output: Tensor
    probabilities: Tensor | None
    score: float
    baseline_score: float
    method: str
    inputs: dict[str, Tensor]
    attributions: dict[str, Tensor]
    times: dict[str, Tensor]
    modalities: tuple[str, ...] = ()
    contributions: Tensor | None = None
    contribution_steps: Tensor | None = None
    contribution_seconds: Tensor | None = None
    windowed: bool = False

    @property
    def by_modality(self) -> dict[str, float]:
        """Sum of each modality's attributions: its part in ``score - baseline_score``."""
        return {name: float(values.double().sum()) for name, values in self.attributions.items()}

    @property
    def residual(self) -> float:
        """What ``score - baseline_score`` has beyond all attributions: integrated gradients' error."""
        return self.score - self.baseline_score - sum(self.by_modality.values())


def explain(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    masks: Mapping[str, Tensor] | None = None,
    available: Tensor | None = None,
    *,
    task: str | None = None,
    target: int | None = None,
    method: str = "integrated_gradients",
    steps: int = 64,
    baselines: Mapping[str, Tensor] | None = None,
    times: Mapping[str, Tensor] | None = None,
    windows: int = 24,
    window_share: float = 0.25,
) -> Explanation:
    """Explain one output of a network for one sample.

    Parameters
    ----------
    model : nn.Module
        A :class:`mmcore.models.MultiTaskNet`, or what is called like one. It is explained in evaluation mode.
    inputs, masks, available
        As the model takes them, of one sample.
    task : str, optional
        Which output; None: the first over classes, else the first.
    target : int, optional
        Which of its numbers; None: the largest, of outputs over classes.
    method : {"integrated_gradients", "gradient_x_input", "occlusion"}
        How attributions are found, see :func:`mmcore.recipes.explain.attribute`. The score is the output
        itself, a logit: no softmax is applied.
    steps : int
        Evaluations of integrated gradients.
    baselines : mapping of str to Tensor, optional
        What stands for nothing, of the inputs' shapes; None: for video one colour, the clip's mean; for sound
        the spectrogram's lowest value, which is silence. Of ids it is a vector of zeros.
    times : mapping of str to Tensor, optional
        By modality, (T, 2): seconds of each step, as :func:`clip_times` gives them. None: all modalities
        cover one second, evenly.
    windows : int
        Where the model fuses whole clips, contributions over time are those of so many windows.
    window_share : float
        Their length, as part of the sample's.

    Returns
    -------
    Explanation

    Raises
    ------
    ValueError, TypeError
        If arguments do not fit; the message says what was expected.
    UnsupportedError
        If no embedding is found that looks up the ids of an integer input.

    Notes
    -----
    Attributions tell what moved the output, not whether that was right; they depend on the baseline. Shares
    of fused features (``contributions``) tell what entered the fusion, whatever the output made of it.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    for name, value in (("steps", steps), ("windows", windows)):
        if value < 1:
            raise ValueError(f"{name}: expected 1 or more, got {value}")
    if not 0 < window_share <= 1:
        raise ValueError(f"window_share: expected more than 0, up to 1, got {window_share}")
    given = _one_sample(inputs)
    there = _names_there(model, given, available)
    given = {name: x if name in there else torch.zeros_like(x) for name, x in given.items()}
    lengths = {name: x.shape[1] for name, x in given.items()}
    found_times = {name: _times(name, lengths[name], times) for name in given}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            outputs = model(given, masks, available)
        task, target = _chosen(model, outputs, task, target)
        subject = Subject(
            model,
            given,
            masks or {},
            available,
            _baselines(given, baselines),
            lambda o: _score(o[task], target),
        )
        before, score = subject.ends()
        attributions = attribute(subject, method, steps=steps)
        shares = _contributions(model, subject, found_times, windows, window_share)
    finally:
        model.train(was_training)
    return Explanation(
        task=task,
        target=target,
        output=(output := _numbers(outputs[task])[0].cpu()),
        probabilities=_probabilities(output, _kinds(model).get(task)),
        score=score,
        baseline_score=before,
        method=method,
        inputs={name: given[name][0].cpu() for name in there},
        attributions={name: attributions[name].cpu() for name in there},
        times={name: found_times[name] for name in there},
        **shares,
    )


def clip_times(clip: Clip) -> dict[str, Tensor]:
    """When each frame, spectrogram frame and token of a clip is there: by modality (T, 2) float64."""
    found = {}
    if clip.video is not None:
        begin = clip.video.pts_seconds
        found["video"] = torch.stack([begin, begin + clip.video.duration_seconds], 1)
    if clip.spectrogram is not None:
        s = clip.spectrogram
        middle = s.pts_seconds + s.step_seconds * torch.arange(len(s), dtype=torch.float64)
        found["audio"] = torch.stack([middle - s.step_seconds / 2, middle + s.step_seconds / 2], 1)
    if clip.tokens is not None:
        found["text"] = torch.stack([clip.tokens.start_seconds, clip.tokens.end_seconds], 1)
    return found


# --- the sample


def _one_sample(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not inputs:
        raise ValueError("inputs: expected one modality or more, got none")
    for name, x in inputs.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"inputs[{name!r}]: expected a tensor, got {type(x).__name__}")
        if x.dim() < 2 or x.shape[0] != 1:
            raise ValueError(f"inputs[{name!r}]: expected one sample, (1, T, ...), got {tuple(x.shape)}")
        if (
            x.dim() != 5
            and not (x.is_floating_point() and x.dim() == 3)
            and not (not x.is_floating_point() and x.dim() == 2)
        ):
            raise ValueError(
                f"inputs[{name!r}]: expected video (1, T, C, H, W), frames of sound (1, T, mels) or ids"
                f" (1, L), got {x.dtype} {tuple(x.shape)}"
            )
    return dict(inputs)


def _names_there(model: nn.Module, inputs: Mapping[str, Tensor], available: Tensor | None) -> list[str]:
    """Modalities of the inputs that the sample has."""
    names: tuple[str, ...] = getattr(model, "modalities", tuple(inputs))
    absent = (
        set()
        if available is None
        else {n for n, a in zip(names, available[0].tolist(), strict=True) if not a}
    )
    return [name for name, x in inputs.items() if name not in absent and x.shape[1]]


def _times(name: str, length: int, times: Mapping[str, Tensor] | None) -> Tensor:
    if times is None or name not in times:
        edges = torch.linspace(0, 1, length + 1, dtype=torch.float64)
        return torch.stack([edges[:-1], edges[1:]], 1)
    found = times[name].double()
    if found.dim() != 2 or found.shape[1] != 2 or len(found) < length:
        raise ValueError(f"times[{name!r}]: expected shape ({length}, 2), got {tuple(found.shape)}")
    return found[:length]  # a recipe may cut its input


def _baselines(inputs: Mapping[str, Tensor], given: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    found = {}
    for name, x in inputs.items():
        if not x.is_floating_point():
            continue
        if given is not None and name in given:
            base = given[name].to(x)
            if base.shape != x.shape:
                raise ValueError(
                    f"baselines[{name!r}]: expected shape {tuple(x.shape)}, got {tuple(base.shape)}"
                )
        elif not x.numel():
            base = x
        elif x.dim() == 5:
            base = x.mean((1, 3, 4), keepdim=True).expand_as(x)
        else:
            base = x.amin().expand_as(x)
        found[name] = base
    return found


# --- the output


def _numbers(output: Tensor) -> Tensor:
    """(B, C): an output as it is, of (B,) as (B, 1), of (B, T, C) its mean over time."""
    if output.dim() == 1:
        return output[:, None]
    return output if output.dim() == 2 else output.flatten(1, -2).mean(1)


def _score(output: Tensor, target: int | None) -> Tensor:
    return _numbers(output)[:, target or 0]


def _kinds(model: nn.Module) -> dict[str, str]:
    """By output, the kind of its loss, as far as the model says it."""
    tasks: Any = getattr(getattr(model, "criterion", None), "tasks", None)
    return {name: one.kind for name, one in tasks.items()} if isinstance(tasks, dict) else {}


def _probabilities(output: Tensor, kind: str | None) -> Tensor | None:
    if kind == "bce_with_logits":
        return output.sigmoid()
    return output.softmax(0) if kind in _CLASSES else None


def _chosen(
    model: nn.Module, outputs: Mapping[str, Tensor], task: str | None, target: int | None
) -> tuple[str, int | None]:
    kinds = _kinds(model)
    named = [name for name in outputs if name in kinds] or list(outputs)
    if task is None:
        task = next((name for name in named if kinds.get(name) in _CLASSES), named[0])
    if task not in outputs:
        raise ValueError(f"task: expected one of {', '.join(named)}, got {task!r}")
    numbers = _numbers(outputs[task])
    width = numbers.shape[1]
    if target is None:
        if width == 1:
            return task, None
        if kinds.get(task, "cross_entropy") not in _CLASSES:
            raise ValueError(
                f"target: expected which of the {width} numbers of {task!r} to explain, got None"
            )
        return task, int(numbers[0].argmax())
    if not 0 <= target < width:
        raise ValueError(f"target: expected 0 to {width - 1}, got {target}")
    return task, target


# --- contributions


def _contributions(
    model: nn.Module, subject: Subject, times: Mapping[str, Tensor], windows: int, share: float
) -> dict[str, Any]:
    """The fusion's shares, of the sample and over time, as fields of :class:`Explanation`."""
    if not callable(getattr(model, "contributions", None)):
        return {}
    contributions: Any = model.contributions
    found = contributions(subject.inputs, subject.masks, subject.available)
    result = {"modalities": found.names, "contributions": found.clip[0].cpu()}
    if found.steps is not None:
        steps = found.steps[0].cpu()
        # The reference's steps, evenly over its time: its encoder may have made fewer of them.
        reference: str = model.fusion.reference  # type: ignore[union-attr, assignment]
        begin, end = float(times[reference].min()), float(times[reference].max())
        edges = torch.linspace(begin, end, len(steps) + 1, dtype=torch.float64)
        return {
            **result,
            "contribution_steps": steps,
            "contribution_seconds": torch.stack([edges[:-1], edges[1:]], 1),
        }
    begin = min(float(t.min()) for t in times.values() if len(t))
    end = max(float(t.max()) for t in times.values() if len(t))
    half = (end - begin) * share / 2
    middles = torch.linspace(begin, end, 2 * windows + 1, dtype=torch.float64)[1::2]
    seconds = torch.stack([middles - half, middles + half], 1).clamp(begin, end)
    masks, inputs = {}, {}
    for name, x in subject.inputs.items():
        starts, stops = times[name].unbind(1)
        inside = (starts < seconds[:, 1:]) & (stops > seconds[:, :1])
        if name in subject.masks:
            inside = inside.to(x.device) & subject.masks[name]
        masks[name], inputs[name] = inside.to(x.device), x.expand(windows, *x.shape[1:])
    available = None if subject.available is None else subject.available.expand(windows, -1)
    return {
        **result,
        "contribution_steps": contributions(inputs, masks, available).clip.cpu(),
        "contribution_seconds": seconds,
        "windowed": True,
    }
