"""Multi-task losses as a module: class weights that move with it, strategies that weight the tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmcore.nn.task_weighting import (
    Fixed,
    GradientWeighting,
    KnownWeighting,
    LossWeighting,
    TaskWeighting,
    Uncertainty,
    make_weighting,
)
from mmcore.ops.head_gram import head_gram
from mmcore.ops.loss_task import Task
from mmcore.ops.losses import MAX_TASKS, Losses, multi_task_loss, multi_task_value_and_grad

__all__ = ["MultiTaskLoss"]

Outputs = Sequence[Tensor] | Mapping[str, Tensor]
Targets = Sequence[Tensor | None] | Mapping[str, Tensor | None]
Heads = Sequence[nn.Module] | Mapping[str, nn.Module]


class MultiTaskLoss(nn.Module):
    """Losses of K tasks and their total: :func:`mmcore.multi_task_loss` as a module that weights the tasks.

    Parameters
    ----------
    tasks : sequence or mapping of Task
        What each loss is. A mapping here wants mappings in ``forward``, with its names. Class weights and
        pos_weights become buffers: they move with ``.to()`` and are part of the ``state_dict``.
    weighting : str or TaskWeighting
        The strategy: an object of :mod:`mmcore.nn`, or the name of one for its default settings. "fixed",
        "uncertainty", "dwa", "rlw"; "uw_so", "geometric_mean", "imtl_l", "stch", "famo"; "gradnorm", "mgda",
        "pcgrad", "cagrad", "imtl_g", "aligned_mtl", "upgrad".
    weights : Tensor, sequence of float or mapping of str to float, optional
        lambda, (K,): fixed factors of the losses; strategies see ``lambda_i loss_i``. None: ones.
    inplace_gradient : bool
        As :func:`mmcore.multi_task_loss` has it; for strategies that know their weights beforehand ("fixed",
        "uncertainty", "dwa", "rlw").

    Attributes
    ----------
    weighting : TaskWeighting
        The strategy with its state; ``weighting.log_vars`` are the log variances of "uncertainty".
    coefficients : Tensor or None
        (K,): alpha of the last training step, of strategies that balance gradients.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit; the message says what was expected and what came.

    Notes
    -----
    Cost: where weights are known beforehand, losses, total and gradients are one pass over the outputs. Where
    the total is a function of the losses, the gradients are made in the same pass too, and scaled in the
    backward.

    Strategies that balance gradients need ``features``, the tensor that all heads read, and ``heads``. A step
    has one backward through what is shared. If all heads are plain ``nn.Linear`` layers on ``features``, with
    nothing after them, the Gram comes from :func:`mmcore.head_gram` and the heads' backward is one product of
    matrices; other heads are differentiated one by one, down to the features. What features receive is
    ``sum_i alpha_i lambda_i dL_i/dfeatures``; what the heads' own parameters receive is ``lambda_i dL_i``, or
    alpha_i times that, as ``head_gradients`` of the strategy says. MGDA, CAGrad, IMTL-G, Aligned-MTL, UPGrad
    and PCGrad wait for the (K, K) matrix on the CPU, once a step; GradNorm does not.

    With "own", the backward does not pass through ``outputs``: it is computed from ``features`` and
    ``heads``, so what else is made of outputs gets its gradient as usual, while hooks on outputs do not run.
    ``losses`` are then for reading only. Hooks on features run once more for each head that is not linear.

    Only "fixed" and "uncertainty" are meant for ``torch.compile(fullgraph=True)``.

    Examples
    --------
    >>> import mmcore, torch
    >>> tasks = {"kind": mmcore.Task.cross_entropy(), "score": mmcore.Task.mse()}
    >>> loss = mmcore.nn.MultiTaskLoss(tasks, weights={"score": 0.5})
    >>> outputs = {"kind": torch.zeros(2, 4), "score": torch.ones(2)}
    >>> total, losses = loss(outputs, {"kind": torch.tensor([3, 0]), "score": torch.zeros(2)})
    >>> total, losses
    (tensor(1.8863), {'kind': tensor(1.3863), 'score': tensor(1.)})
    """

    weights: Tensor | None
    weighting: TaskWeighting
    coefficients: Tensor | None

    def __init__(
        self,
        tasks: Sequence[Task] | Mapping[str, Task],
        weighting: str | TaskWeighting = "fixed",
        *,
        weights: Tensor | Sequence[float] | Mapping[str, float] | None = None,
        inplace_gradient: bool = False,
    ) -> None:
        super().__init__()
        self.names, self._tasks = _check_tasks(tasks)
        self.weighting = make_weighting(weighting)
        if inplace_gradient and not isinstance(self.weighting, KnownWeighting):
            raise ValueError(
                f"inplace_gradient: {type(self.weighting).__name__} needs the outputs after the losses"
            )
        self.inplace_gradient = inplace_gradient
        if not isinstance(self.weighting, (Fixed, Uncertainty)):
            for i, task in enumerate(self._tasks):
                if task.reduction == "none":
                    raise ValueError(
                        f"tasks[{self._name(i)}]: reduction none stays out of the total, so that"
                        f" {type(self.weighting).__name__} cannot weight it"
                    )
        self.weighting.setup(self._tasks)
        for i, task in enumerate(self._tasks):
            if task.weight is not None:
                self.register_buffer(f"task_weight_{i}", task.weight)
        self.register_buffer("weights", _check_weights(weights, self.names, len(self._tasks)))
        self.coefficients = None
        self._heads_checked = False

    @property
    def tasks(self) -> tuple[Task, ...] | dict[str, Task]:
        """The tasks, with class weights where they are now."""
        tasks = self._current_tasks()
        return tasks if self.names is None else dict(zip(self.names, tasks, strict=True))

    def forward(
        self,
        outputs: Outputs,
        targets: Targets,
        masks: Targets | None = None,
        *,
        features: Tensor | Sequence[Tensor] | None = None,
        heads: Heads | None = None,
    ) -> tuple[Tensor, Losses]:
        """Losses and their total.

        Parameters
        ----------
        outputs, targets, masks
            As :func:`mmcore.multi_task_loss` takes them.
        features : Tensor or sequence of Tensor
            What the heads read, for strategies that balance gradients; others ignore it. Where no gradient is
            wanted, it may be left out.
        heads : sequence or mapping of nn.Module
            The heads, ``outputs[i]`` being made from ``features`` by ``heads[i]`` with no parameters in
            between that are not heads[i]'s. With ``head_gradients="weighted"`` they may be left out.

        Returns
        -------
        total : Tensor
            Shape (). For strategies that balance gradients ``sum_i alpha_i lambda_i loss_i``, whose backward
            sends the balanced gradient.
        losses : Tensor, tuple or dict of Tensor
            Of each task, without any weight.
        """
        strategy = self.weighting
        tasks = self._current_tasks()
        if isinstance(strategy, KnownWeighting):
            return self._known(strategy, tasks, outputs, targets, masks)
        outs = self._flat("outputs", outputs)
        call = _LossCall(tasks, self._flat("targets", targets), self._flat("masks", masks))
        if isinstance(strategy, LossWeighting):
            losses = _losses(call, outs)
            return strategy.total(self._weighted(losses)), self._named(losses)
        if not isinstance(strategy, GradientWeighting):
            raise TypeError(
                "weighting: expected a KnownWeighting, LossWeighting or GradientWeighting, got"
                f" {type(strategy).__name__}"
            )
        if not (strategy.learning and any(out.requires_grad for out in outs)):
            losses = _losses(call, outs)
            total = self._weighted(losses) * strategy.resting_coefficients(losses.detach()).to(losses)
            return total.sum(), self._named(losses)
        return self._balanced(strategy, call, outs, features, heads)

    def update(self, losses: Losses | Sequence[Tensor]) -> None:
        """Tell the strategy the losses of the same batch after the optimiser's step; FAMO needs it.

        Computed again, without gradients: ``with torch.no_grad(): loss.update(loss(model(x), targets)[1])``.
        """
        values = losses
        if not isinstance(values, Tensor):
            values = torch.stack([v.detach() for v in self._flat("losses", values)])
        if values.shape != (len(self._tasks),):
            raise ValueError(f"losses: expected shape {(len(self._tasks),)}, got {tuple(values.shape)}")
        self.weighting.update(self._weighted(values.detach()))

    def end_epoch(self) -> None:
        """Tell the strategy that an epoch is over; DWA and STCH need it."""
        self.weighting.end_epoch()

    def extra_repr(self) -> str:
        """Tasks and weights."""
        tasks = [repr(task) for task in self._tasks]
        if self.names is not None:
            tasks = [f"{name}: {task}" for name, task in zip(self.names, tasks, strict=True)]
        shown = [f"({', '.join(tasks)})"]
        if self.weights is not None:
            shown.append(f"weights={self.weights.tolist()}")
        if self.inplace_gradient:
            shown.append("inplace_gradient=True")
        return ", ".join(shown)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._current_tasks()
        return self

    # the kinds of strategy

    def _known(
        self, strategy: KnownWeighting, tasks: tuple[Task, ...], outputs: Any, targets: Any, masks: Any
    ) -> tuple[Tensor, Losses]:
        weights = strategy.weights()
        if weights is None:
            weights = self.weights
        else:
            outs = self._flat("outputs", outputs)
            wide = any(isinstance(out, Tensor) and out.dtype == torch.float64 for out in outs)
            device = outs[0].device if isinstance(outs[0], Tensor) else None
            weights = weights.to(device, torch.float64 if wide else torch.float32)
            if self.weights is not None:
                weights = weights * self.weights.to(weights)
        total, losses = multi_task_loss(
            outputs,
            targets,
            tasks if self.names is None else dict(zip(self.names, tasks, strict=True)),
            weights=weights,
            log_vars=strategy.log_vars,
            masks=masks,
            inplace_gradient=self.inplace_gradient,
        )
        if not isinstance(strategy, (Fixed, Uncertainty)) and strategy.learning:
            values = losses if isinstance(losses, Tensor) else torch.stack(self._flat("losses", losses))
            strategy.observe(self._weighted(values.detach()))
        return total, losses

    def _balanced(
        self,
        strategy: GradientWeighting,
        call: _LossCall,
        outs: tuple[Tensor, ...],
        features: Tensor | Sequence[Tensor] | None,
        heads: Heads | None,
    ) -> tuple[Tensor, Losses]:
        own = strategy.head_gradients == "own"
        if features is None:
            raise ValueError(
                f"features: {type(strategy).__name__} needs the tensor that the heads read, got None"
            )
        zs = (features,) if isinstance(features, Tensor) else tuple(features)
        for i, z in enumerate(zs):
            if not isinstance(z, Tensor):
                raise TypeError(f"features[{i}]: expected a tensor, got {type(z).__name__}")
            if not z.requires_grad:
                raise ValueError(
                    f"features[{i}]: requires no gradient, so nothing shared would learn; use fixed weights"
                )
        modules: tuple[nn.Module, ...] = ()
        if heads is not None:
            modules = self._flat("heads", heads)
            for i, head in enumerate(modules):
                if not isinstance(head, nn.Module):
                    raise TypeError(f"heads[{self._name(i)}]: expected a module, got {type(head).__name__}")
        elif own:
            raise ValueError(
                f"heads: {type(strategy).__name__} with head_gradients='own' needs the heads, got None;"
                " head_gradients='weighted' does not"
            )

        if own:
            losses, gradients = call.values_and_gradients(outs)
        else:
            # In the usual way through the outputs; what is kept for their backward serves the Gram too.
            losses = _losses(call, outs)
            assert call.gradients is not None
            gradients = call.gradients
        part: _HeadParts
        if self._are_linear(modules, zs, outs):
            part = _LinearParts(zs[0], modules, gradients)
        else:
            part = _AnyParts(zs, modules if own else (), outs, gradients)
        weighted = self._weighted(losses.detach())
        gram = part.gram()
        if self.weights is not None:
            lam = self.weights.to(gram)
            gram = gram * lam * lam[:, None]
        with torch.no_grad():
            alpha = strategy.coefficients(gram, weighted).detach()
        self.coefficients = alpha
        factors = alpha.to(weighted)
        if not own:
            return (self._weighted(losses) * factors).sum(), self._named(losses)
        lam = torch.ones_like(weighted) if self.weights is None else self.weights.to(weighted)
        total = (factors * weighted).sum()
        total = _ThroughHeads.apply(part, factors * lam, lam, total, *zs, *part.parameters)  # type: ignore[no-untyped-call]
        return total, self._named(losses)

    def _are_linear(
        self, modules: tuple[nn.Module, ...], zs: tuple[Tensor, ...], outs: tuple[Tensor, ...]
    ) -> bool:
        """Whether all heads are linear layers, and what they give is the outputs."""
        if not modules or len(zs) != 1 or any(type(head) is not nn.Linear for head in modules):
            return False
        z = zs[0]
        for head, out in zip(modules, outs, strict=True):
            assert isinstance(head, nn.Linear)
            made = (*z.shape[:-1], head.out_features)
            if z.shape[-1] != head.in_features or out.shape not in (
                (made, made[:-1]) if head.out_features == 1 else (made,)
            ):
                return False
        if not self._heads_checked and z.numel():
            # Once: a mistake here would train without an error, and wrongly.
            for i, (head, out) in enumerate(zip(modules, outs, strict=True)):
                with torch.no_grad():
                    row = nn.functional.linear(
                        z.reshape(-1, z.shape[-1])[-1].double(),
                        *(None if p is None else p.double() for p in (head.weight, head.bias)),  # type: ignore[arg-type]
                    )
                    given = out.reshape(-1, row.numel())[-1].double()
                    if not torch.allclose(
                        row, given, 0.0, 0.05 * float(row.abs().max()) + 1e-6, equal_nan=True
                    ):
                        raise ValueError(
                            f"outputs[{self._name(i)}]: is not what heads[{self._name(i)}], a linear layer,"
                            " makes of features; heads must be all that comes after features"
                        )
            self._heads_checked = True
        return True

    # names, weights, tasks

    def _current_tasks(self) -> tuple[Task, ...]:
        """The tasks with the class weights of the buffers, which may have been moved, loaded or swapped."""
        tasks = self._tasks
        if any(
            t.weight is not None and t.weight is not self._buffers[f"task_weight_{i}"]
            for i, t in enumerate(tasks)
        ):
            self._tasks = tuple(
                task if task.weight is None else Task(task.options, self._buffers[f"task_weight_{i}"])
                for i, task in enumerate(tasks)
            )
        return self._tasks

    def _weighted(self, losses: Tensor) -> Tensor:
        return losses if self.weights is None else losses * self.weights.to(losses)

    def _named(self, losses: Tensor) -> Losses:
        return losses if self.names is None else dict(zip(self.names, losses.unbind(), strict=True))

    def _name(self, i: int) -> str:
        return str(i) if self.names is None else repr(self.names[i])

    def _flat(self, what: str, values: Any) -> Any:
        """A tuple in the order of the tasks; None stays None."""
        if values is None:
            return None
        count = len(self._tasks)
        if isinstance(values, nn.ModuleDict):
            values = dict(values.items())
        if self.names is not None:
            if not isinstance(values, Mapping):
                raise TypeError(f"{what}: expected a mapping as tasks is, got {type(values).__name__}")
            unknown = [str(name) for name in values if name not in self.names]
            missing = [] if what == "masks" else [name for name in self.names if name not in values]
            if unknown or missing:
                raise ValueError(
                    f"{what}: expected the names of tasks, {', '.join(self.names)};"
                    f" {'unknown: ' + ', '.join(unknown) if unknown else 'missing: ' + ', '.join(missing)}"
                )
            return tuple(values.get(name) for name in self.names)
        if isinstance(values, (Mapping, str, Tensor)) or not isinstance(values, (Sequence, nn.ModuleList)):
            raise TypeError(
                f"{what}: expected a sequence, one for each task, got {type(values).__name__};"
                " mappings go with a mapping of tasks"
            )
        if len(values) != count:
            raise ValueError(f"{what}: expected {count}, one for each task, got {len(values)}")
        return tuple(values)


# ---- losses whose total is not known yet


class _LossCall:
    """The arguments of one call, and the outputs' gradients of their own losses, kept for one backward."""

    __slots__ = ("gradients", "masks", "targets", "tasks")

    def __init__(self, tasks: tuple[Task, ...], targets: Any, masks: Any) -> None:
        self.tasks = tasks
        self.targets = targets
        self.masks = masks
        self.gradients: tuple[Tensor, ...] | None = None

    def losses(self, outs: tuple[Tensor, ...]) -> Tensor:
        losses = multi_task_loss(outs, self.targets, self.tasks, masks=self.masks)[1]
        assert isinstance(losses, Tensor)
        return losses

    def values_and_gradients(self, outs: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(K,) losses, and of each output the gradient of its own loss: that of the losses' sum."""
        _, losses, found = multi_task_value_and_grad(outs, self.targets, self.tasks, masks=self.masks)
        assert isinstance(losses, Tensor)
        assert isinstance(found.outputs, tuple)
        return losses, found.outputs


def _losses(call: _LossCall, outs: tuple[Tensor, ...]) -> Tensor:
    """(K,) losses, differentiable."""
    recorded = torch.is_grad_enabled() and any(isinstance(out, Tensor) and out.requires_grad for out in outs)
    if not recorded or torch.compiler.is_compiling():
        return call.losses(outs)
    losses: Tensor = _HeadLosses.apply(call, *outs)  # type: ignore[no-untyped-call]
    return losses


class _HeadLosses(torch.autograd.Function):
    """The losses, with their gradients made in the same pass; the backward scales them."""

    @staticmethod
    def forward(ctx: Any, call: _LossCall, *outs: Tensor) -> Tensor:
        ctx.save_for_backward(*outs)
        ctx.call = call
        losses, call.gradients = call.values_and_gradients(outs)
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        call, needs = ctx.call, ctx.needs_input_grad[1:]
        outs = ctx.saved_tensors
        if call.gradients is None or torch.is_grad_enabled():
            # Asked for again, or to be differentiated again.
            again = torch.is_grad_enabled()
            with torch.enable_grad():
                outs = tuple(
                    o.view_as(o) if again else o.detach().requires_grad_(need)
                    for o, need in zip(outs, needs, strict=True)
                )
                losses = call.losses(outs)
                wanted = [o for o, need in zip(outs, needs, strict=True) if need]
                found = iter(torch.autograd.grad(losses, wanted, grad, create_graph=again))
            return None, *(next(found) if need else None for need in needs)
        gradients, call.gradients = call.gradients, None
        return None, *(
            g.mul_(factor.to(g.dtype)) if need else None
            for g, factor, need in zip(gradients, grad.unbind(), needs, strict=True)
        )


# ---- gradients of the heads, down to the features


class _HeadParts:
    """Gradients of K losses in features and in the heads' own parameters."""

    parameters: tuple[Tensor, ...]
    """Of all heads, each once."""
    saved: tuple[Tensor, ...]
    """All tensors that ``gradients`` reads."""

    def gram(self) -> Tensor:
        raise NotImplementedError

    def gradients(self, saved: tuple[Tensor, ...], shared: Tensor, own: Tensor) -> Sequence[Tensor | None]:
        """Of features, for factors ``shared`` (K,), then of the parameters, for factors ``own``."""
        raise NotImplementedError

    def _own_parameters(self, modules: tuple[nn.Module, ...]) -> list[list[int]]:
        """Fill ``parameters``; give of each head which are its."""
        found: dict[Tensor, int] = {}
        index = [
            [found.setdefault(p, len(found)) for p in head.parameters() if p.requires_grad]
            for head in modules
        ]
        self.parameters = tuple(found)
        return index


class _LinearParts(_HeadParts):
    """Linear heads on one tensor: everything from the outputs' gradients dy_i, features z and weights W_i.

    dL/dz = sum_i f_i dy_i W_i = [f_1 dy_1 .. f_K dy_K] [W_1; ..; W_K]
    dL_i/dW_i = dy_i^T z,  dL_i/db_i = sum dy_i
    """

    def __init__(self, z: Tensor, heads: tuple[nn.Module, ...], gradients: tuple[Tensor, ...]) -> None:
        self._own_parameters(heads)
        of = {p: i for i, p in enumerate(self.parameters)}
        weights, self.index = [], []
        for head in heads:
            assert isinstance(head, nn.Linear)
            weights.append(head.weight)
            self.index.append((of.get(head.weight), None if head.bias is None else of.get(head.bias)))
        self.count = len(heads)
        self.saved = (z, *weights, *gradients)

    def gram(self) -> Tensor:
        return head_gram(self.saved[self.count + 1 :], self.saved[1 : self.count + 1])

    def gradients(self, saved: tuple[Tensor, ...], shared: Tensor, own: Tensor) -> Sequence[Tensor | None]:
        z, weights, dys = saved[0], saved[1 : self.count + 1], saved[self.count + 1 :]
        # In the outputs' dtype, as the heads' backward would be under autocast.
        dtype = dys[0].dtype
        for dy in dys:
            dtype = torch.promote_types(dtype, dy.dtype)
        rows = z.reshape(-1, z.shape[-1]).to(dtype)
        ys = [dy.reshape(rows.shape[0], w.shape[0]).to(dtype) for dy, w in zip(dys, weights, strict=True)]
        joined = torch.cat([y * f.to(dtype) for y, f in zip(ys, shared.unbind(), strict=True)], 1)
        dz = (joined @ torch.cat([w.to(dtype) for w in weights])).reshape(z.shape).to(z.dtype)
        made: list[Tensor | None] = [None] * len(self.parameters)
        for y, f, (weight, bias) in zip(ys, own.unbind(), self.index, strict=True):
            if weight is not None:
                _add(made, weight, (y.T @ rows), f, self.parameters)
            if bias is not None:
                _add(made, bias, y.sum(0), f, self.parameters)
        return [dz, *made]


class _AnyParts(_HeadParts):
    """Heads of any kind: each is differentiated on its own, down to the features."""

    def __init__(
        self,
        zs: tuple[Tensor, ...],
        heads: tuple[nn.Module, ...],
        outs: tuple[Tensor, ...],
        gradients: tuple[Tensor, ...],
    ) -> None:
        self.parameters = ()
        self.index = self._own_parameters(heads) or [[] for _ in outs]
        of_features, of_parameters = [], []
        retained = [z.grad if z.retains_grad else None for z in zs]
        for out, gradient, own in zip(outs, gradients, self.index, strict=True):
            wanted = [*zs, *(self.parameters[i] for i in own)]
            found: Sequence[Tensor | None] = [None] * len(wanted)
            if out.requires_grad:
                found = torch.autograd.grad(out, wanted, gradient, retain_graph=True, allow_unused=True)
            filled = [torch.zeros_like(t) if g is None else g for g, t in zip(found, wanted, strict=True)]
            if all(g is None for g in found[: len(zs)]) and out.requires_grad:
                raise ValueError(
                    "features: an output was not made from them; give the tensor that the heads read"
                )
            of_features.append(filled[: len(zs)])
            of_parameters.extend(filled[len(zs) :])
        for z, grad in zip(zs, retained, strict=True):
            if z.retains_grad:
                # What is differentiated here is not what the backward will send.
                z.grad = grad
        self.shapes = len(outs), len(zs)
        self.of_features = of_features
        self.saved = (*(g for gs in of_features for g in gs), *of_parameters)

    def gram(self) -> Tensor:
        return head_gram(feature_gradients=self.of_features)

    def gradients(self, saved: tuple[Tensor, ...], shared: Tensor, own: Tensor) -> Sequence[Tensor | None]:
        count, parts = self.shapes
        made: list[Tensor | None] = []
        for k in range(parts):
            gs = saved[k : count * parts : parts]
            total = gs[0] * shared[0].to(gs[0].dtype)
            for g, f in zip(gs[1:], shared[1:].unbind(), strict=True):
                total = total.addcmul_(g, f.to(g.dtype))
            made.append(total)
        of_parameters: list[Tensor | None] = [None] * len(self.parameters)
        rest = iter(saved[count * parts :])
        for index, f in zip(self.index, own.unbind(), strict=True):
            for i in index:
                _add(of_parameters, i, next(rest), f, self.parameters)
        return [*made, *of_parameters]


def _add(
    made: list[Tensor | None], i: int, gradient: Tensor, factor: Tensor, parameters: tuple[Tensor, ...]
) -> None:
    """Add ``factor * gradient`` to that of parameter i; several heads may share one."""
    scaled = (gradient * factor.to(gradient.dtype)).to(parameters[i].dtype)
    before = made[i]
    made[i] = scaled if before is None else before + scaled


class _ThroughHeads(torch.autograd.Function):
    """The total; its backward sends the features' and the heads' gradients, each by factors of their own."""

    @staticmethod
    def forward(
        ctx: Any, part: _HeadParts, shared: Tensor, own: Tensor, total: Tensor, *inputs: Tensor
    ) -> Tensor:
        ctx.save_for_backward(shared, own, *part.saved)
        # Only through the saved tensors, which autograd frees after the backward.
        part.saved = ()
        if isinstance(part, _AnyParts):
            part.of_features = []
        ctx.part = part
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        shared, own, *saved = ctx.saved_tensors
        found = ctx.part.gradients(tuple(saved), shared * grad, own * grad)
        needs = ctx.needs_input_grad[4:]
        return None, None, None, None, *(g if need else None for g, need in zip(found, needs, strict=True))


def _check_tasks(tasks: object) -> tuple[tuple[str, ...] | None, tuple[Task, ...]]:
    names = None
    if isinstance(tasks, Mapping):
        names = tuple(tasks)
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"tasks: expected names that are str, got {name!r}")
        tasks = list(tasks.values())
    if isinstance(tasks, str) or not isinstance(tasks, Sequence):
        raise TypeError(f"tasks: expected a sequence or mapping of mmcore.Task, got {type(tasks).__name__}")
    if not 1 <= len(tasks) <= MAX_TASKS:
        raise ValueError(f"tasks: expected 1 to {MAX_TASKS}, got {len(tasks)}")
    for i, task in enumerate(tasks):
        if not isinstance(task, Task):
            label = i if names is None else repr(names[i])
            raise TypeError(f"tasks[{label}]: expected a mmcore.Task, got {type(task).__name__}")
    return names, tuple(tasks)


def _check_weights(weights: object, names: tuple[str, ...] | None, count: int) -> Tensor | None:
    """(K,) of the default dtype; names that are not mentioned have weight 1."""
    if weights is None:
        return None
    if isinstance(weights, Mapping):
        unknown = [str(name) for name in weights if name not in (names or ())]
        if unknown:
            raise ValueError(
                f"weights: expected names of tasks ({', '.join(names or ('there are none',))}),"
                f" got {', '.join(unknown)}"
            )
        weights = [weights.get(name, 1.0) for name in names or ()]
    if isinstance(weights, Tensor):
        if not weights.is_floating_point():
            raise TypeError(f"weights: expected a floating-point tensor, got {weights.dtype}")
        made = weights.detach().clone()
    else:
        if isinstance(weights, str) or not isinstance(weights, Sequence):
            raise TypeError(
                f"weights: expected a tensor, sequence or mapping of numbers, got {type(weights).__name__}"
            )
        for i, weight in enumerate(weights):
            if isinstance(weight, bool) or not isinstance(weight, (int, float)):
                raise TypeError(f"weights[{i}]: expected a number, got {weight!r}")
        made = torch.tensor([float(w) for w in weights])
    if made.shape != (count,):
        raise ValueError(f"weights: expected {count}, one for each task, got shape {tuple(made.shape)}")
    return made
