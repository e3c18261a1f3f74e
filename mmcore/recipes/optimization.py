"""One step of the optimiser: learning rate, loss scaling, clipping, the moving average of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmcore.recipes.parallel import full, local, part_of
from mmcore.recipes.train_settings import TrainSettings

__all__ = ["MovingAverage", "Optimization"]


class Optimization:
    """Adam or AdamW over a model's parameters, as the settings say.

    Parameters
    ----------
    model : nn.Module
        Parameters that require a gradient are trained.
    settings : TrainSettings
    device : torch.device

    Raises
    ------
    ValueError
        If the model has nothing to train.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings, device: torch.device) -> None:
        self.settings = settings
        self._named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self._named:
            raise ValueError("model: has no parameter that requires a gradient")
        # Parts and whole tensors cannot be in one group: their updates are made for a whole group at once.
        groups: dict[tuple[bool, bool], list[Tensor]] = {}
        for p in self._named.values():
            groups.setdefault((p.dim() > 1, local(p) is not p), []).append(p)
        kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
        self.optimizer = kind(
            [
                {"params": parameters, "weight_decay": settings.weight_decay if decays else 0.0}
                for (decays, _), parameters in groups.items()
            ],
            lr=settings.learning_rate,
            betas=settings.betas,
            # One pass over all parameters; parts of tensors are left to the other implementation.
            fused=not any(sharded for _, sharded in groups),
        )
        scales = settings.precision == "float16" and device.type == "cuda"
        self.scaler = torch.amp.GradScaler(device.type, enabled=scales)

    def backward(self, total: Tensor, share: float) -> None:
        """Add the gradients of ``share * total``."""
        scaled = total if share == 1 else total * share
        self.scaler.scale(scaled).backward()  # type: ignore[no-untyped-call]

    def gradient_norm(self) -> Tensor | None:
        """Clip the gradients; give their length before that, on their device. None: they are not clipped.

        A length that is not finite leaves the gradients as they are.
        """
        if self.settings.clip_norm is None:
            return None
        self.scaler.unscale_(self.optimizer)
        pairs = [(p, local(p.grad)) for p in self._named.values() if p.grad is not None]
        if not pairs:
            return torch.zeros(())
        split = [g for p, g in pairs if local(p) is not p]
        whole = [g for p, g in pairs if local(p) is p]
        norm = torch.nn.utils.get_total_norm(whole) if whole else torch.zeros((), device=pairs[0][1].device)
        if split:
            square = torch.nn.utils.get_total_norm(split).square()
            dist.all_reduce(square)
            norm = (norm.square() + square).sqrt()
        factor = (self.settings.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([g for _, g in pairs], torch.where(norm.isfinite(), factor, 1.0))
        return norm

    def step(self, step: int) -> bool:
        """Change the weights, forget the gradients; False if the scaler passed over infinite ones."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate_at(step)
        before = self.scaler.get_scale() if self.scaler.is_enabled() else 0.0
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return not self.scaler.is_enabled() or self.scaler.get_scale() >= before

    def state(self) -> dict[str, Any]:
        """All that a step depends on, by the parameters' names, whole; all processes must call it."""
        state = {name: full(self.optimizer.state.get(p, {})) for name, p in self._named.items()}
        return {"parameters": state, "scaler": self.scaler.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        for name, p in self._named.items():
            found = state["parameters"].get(name, {})
            if found:
                self.optimizer.state[p] = {
                    key: part_of(value.clone(), p) if key == "step" else part_of(value.to(p.device), p)
                    for key, value in found.items()
                }
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


class MovingAverage:
    """Exponential moving average of a model's parameters: ``a <- d a + (1 - d) w`` after each step.

    d is ``min(decay, (1 + step) / (10 + step))``, so that the first weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._named = dict(model.named_parameters())
        self._average = {name: local(p.detach()).clone() for name, p in self._named.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [local(p.detach()) for p in self._named.values()]
        torch._foreach_lerp_(list(self._average.values()), current, 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the model has the average for its weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, p in self._named.items():
            held, kept = local(p.detach()), self._average[name]
            self._average[name] = held.clone()
            held.copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """The average, by the parameters' names, whole; all processes must call it."""
        with self.applied():
            return {name: full(p).clone() for name, p in self._named.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        for name, p in self._named.items():
            self._average[name].copy_(local(part_of(state[name], p)))
