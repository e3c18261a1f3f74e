"""Training and judging: what ``mmcore train generate`` does."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from mmcore import models
from mmcore.models import MultiTaskNet
from mmcore.recipes.batches import StepBatches
from mmcore.recipes.choices import choose_backend, choose_size
from mmcore.recipes.generate.autoencoder import FrameAutoencoder
from mmcore.recipes.generate.data import labels, split
from mmcore.recipes.generate.flow import LatentFlow, TextToVideo
from mmcore.recipes.generate.generator import Generator
from mmcore.recipes.generate.judge import accuracies, classify, judge_loss, make_judge
from mmcore.recipes.generate.prompts import ATTRIBUTES, Prompts, some_of
from mmcore.recipes.generate.sizes import SIZES, Size
from mmcore.recipes.processes import process_rank
from mmcore.recipes.report import RecipeResult, write_report
from mmcore.recipes.report_figures import new_figure
from mmcore.recipes.shapes import Scene
from mmcore.recipes.train_settings import TrainSettings
from mmcore.recipes.trainer import Trainer
from mmcore.recipes.training_log import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["train"]

# Seeds of rendered clips: far apart, so that nothing that is tested was trained on.
_TRAINED, _JUDGED, _TESTED = 0, 1_000_000, 2_000_000

_SEEN_IN_A_FRAME = ("shape", "color")


def train(
    folder: str | os.PathLike[str],
    *,
    size: str = "full",
    backend: str = "fused",
    seed: int = 0,
    steps: int | None = None,
    resume: bool = False,
    device: str = "cpu",
    num_workers: int | None = None,
    progress: bool = True,
) -> RecipeResult:
    """Train text to video on rendered moving shapes, and judge it on combinations that it never saw.

    Three trainings follow each other: the judge, a classifier of real clips; the autoencoder of frames; and
    the flow in the autoencoder's latents, which is the generator itself. The latter two see no clip of the
    held-out combinations.

    Parameters
    ----------
    folder : path
        Where the generator, logs, checkpoints and ``report.html`` are written, and those of the others in
        ``judge/`` and ``autoencoder/``; :func:`load` reads it.
    size : {"full", "smallest"}
        Some minutes of one core with 288 combinations, or some seconds with 32.
    backend : {"fused", "eager"}
        Fusion and losses by mmcore's compiled pass, or by plain torch.
    seed : int
        Of weights, of the order of the data, and of what is held out.
    steps : int, optional
        Of the flow, instead of the size's own number; the other two trainings are shortened alike.
    resume : bool
        Go on from the folder's last checkpoint.
    device : str
    num_workers : int, optional
        Processes that make batches. None: 0, as all data is in memory.
    progress : bool

    Returns
    -------
    RecipeResult
        Its history is the flow's. Its metrics are parts of clips in which the judge sees each attribute as
        the prompt says, and ``all`` of them, for held-out combinations; ``shuffled_``: as the other prompts
        say, which is chance; ``seen_``: for combinations that were trained; ``real_``: of rendered clips;
        ``decoded_``: of rendered clips after the autoencoder.

    Raises
    ------
    ValueError
        For a size or backend that there is not.
    """
    chosen, kernels = choose_size(size, SIZES), choose_backend(backend)
    stages = _Stages(Path(folder), chosen, seed, steps, resume, device, num_workers or 0, progress)
    with kernels:
        return stages.run()


class _Stages:
    """The three trainings and what they share."""

    def __init__(
        self,
        folder: Path,
        size: Size,
        seed: int,
        steps: int | None,
        resume: bool,
        device: str,
        num_workers: int,
        progress: bool,
    ) -> None:
        self.folder, self.size, self.seed, self.device = folder, size, seed, device
        self.resume, self.num_workers, self.progress = resume, num_workers, progress
        self.part = 1.0 if steps is None else steps / size.flow_steps
        self.world = size.world
        self.trained, self.held_out = split(self.world, size.held_out, seed)
        self.tested = [scene for scene in self.held_out for _ in range(size.tested_each)]
        self.real = self.world.render(self.tested, _TESTED)
        self.expected = labels(self.tested, self.world)

    def run(self) -> RecipeResult:
        """Train all, save and measure."""
        judge, history = self.train_judge()
        if history.stopped == "interrupted":
            return self.result({}, history)
        scenes = [self.trained[i % len(self.trained)] for i in range(self.size.clips)]
        clips = self.world.render(scenes, _TRAINED)
        autoencoder, history = self.train_autoencoder(clips, scenes, judge)
        if history.stopped == "interrupted":
            return self.result({}, history)
        model, history = self.train_flow(clips, scenes, autoencoder, judge)
        if process_rank() == 0:
            models.save(model, self.folder)
            models.save(judge, self.folder / "judge")
        found = self.judged(model, judge, self.tested)
        metrics = self.metrics(model, judge, found)
        return self.result(metrics, history, model, found)

    def train_judge(self) -> tuple[MultiTaskNet, History]:
        """Train the judge on real clips of all combinations."""
        everything = self.world.scenes()
        scenes = [everything[i % len(everything)] for i in range(self.size.judge_clips)]
        known = labels(scenes, self.world)
        data = _Rows({"video": self.world.render(scenes, _JUDGED), **known})
        torch.manual_seed(self.seed)
        judge = make_judge(self.world.choices, dim=96, widths=self.size.judge_widths)

        def evaluate(trained: MultiTaskNet) -> dict[str, float]:
            return accuracies(classify(trained, self.real), self.expected)

        history = self.fit(judge, judge_loss, data, self.size.judge_steps, evaluate, part="judge", batch=32)
        return judge.eval(), history

    def train_autoencoder(
        self, clips: Tensor, scenes: Sequence[Scene], judge: MultiTaskNet
    ) -> tuple[FrameAutoencoder, History]:
        """Train the autoencoder on single frames."""
        torch.manual_seed(self.seed)
        autoencoder = FrameAutoencoder(
            height=self.world.height,
            width=self.world.width,
            classes={name: len(self.world.values[name]) for name in _SEEN_IN_A_FRAME},
            latent=self.size.latent,
            channels=self.size.channels,
        )

        def loss(trained: FrameAutoencoder, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            return trained.loss(batch["frame"], {name: batch[name] for name in _SEEN_IN_A_FRAME})

        def evaluate(trained: FrameAutoencoder) -> dict[str, float]:
            return accuracies(classify(judge, self.decoded(trained)), self.expected)

        known = labels(scenes, self.world)
        of_frames = {name: known[name].repeat_interleave(clips.shape[1]) for name in _SEEN_IN_A_FRAME}
        data = _Rows({"frame": clips.flatten(0, 1), **of_frames})
        history = self.fit(
            autoencoder,
            loss,
            data,
            self.size.frame_steps,
            evaluate,
            part="autoencoder",
            batch=64,
            learning_rate=4e-3,
        )
        return autoencoder.eval(), history

    def train_flow(
        self, clips: Tensor, scenes: Sequence[Scene], autoencoder: FrameAutoencoder, judge: MultiTaskNet
    ) -> tuple[TextToVideo, History]:
        """Train the flow on the latents of the same clips, with prompts that say all or some of a scene."""
        rng = random.Random(self.seed)
        said = [some_of(_said(scene), keep_all=0.5, rng=rng) for scene in scenes]
        prompts = Prompts(self.world.values)
        ids, mask = prompts.encode(said)
        device = next(autoencoder.parameters()).device
        with torch.no_grad():
            latents = torch.cat(
                [autoencoder.encode(part.to(device)).cpu() for part in torch.split(clips, 256)]
            )
        torch.manual_seed(self.seed)
        flow = LatentFlow(
            latent=self.size.latent,
            num_frames=self.world.num_frames,
            vocabulary=len(prompts.words),
            max_length=prompts.max_length,
            dim=self.size.dim,
            layers=self.size.layers,
        )

        def loss(trained: LatentFlow, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            return trained.loss(batch["latents"], batch["ids"], batch["mask"])

        def evaluate(trained: LatentFlow) -> dict[str, float]:
            model = TextToVideo(values=self.world.values, autoencoder=autoencoder, flow=trained)
            return accuracies(self.judged(model, judge, self.tested), self.expected)

        data = _Rows({"latents": latents, "ids": ids, "mask": mask})
        history = self.fit(
            flow, loss, data, self.size.flow_steps, evaluate, batch=64, learning_rate=1.5e-3, ema=0.998
        )
        return TextToVideo(values=self.world.values, autoencoder=autoencoder, flow=flow).eval(), history

    def fit(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], tuple[Tensor, dict[str, Tensor]]],
        data: Dataset[Any],
        steps: int,
        evaluate: Callable[[Any], dict[str, float]],
        *,
        batch: int,
        part: str = "",
        learning_rate: float = 3e-3,
        ema: float | None = None,
    ) -> History:
        """Run one of the trainings."""
        steps = max(1, round(steps * self.part))
        settings = TrainSettings(
            steps=steps,
            batch_size=batch,
            learning_rate=learning_rate,
            warmup_steps=min(50, steps // 4),
            ema=ema,
            evaluate_every=max(1, -(-steps // 2)),
            checkpoint_every=200,
            seed=self.seed,
        )
        trainer = Trainer(
            model,
            loss,
            StepBatches(data, batch, self.seed, self.num_workers),
            settings,
            folder=self.folder / part,
            evaluate=evaluate,
            device=self.device,
            progress=self.progress,
        )
        return trainer.fit(self.resume)

    @torch.no_grad()
    def decoded(self, autoencoder: FrameAutoencoder) -> Tensor:
        """Give the real test clips as the autoencoder sees them: the best that any flow in it can do."""
        device = next(autoencoder.parameters()).device
        parts = [
            autoencoder.decode(autoencoder.encode(clips.to(device))) for clips in torch.split(self.real, 64)
        ]
        return torch.cat(parts).cpu()

    def judged(self, model: TextToVideo, judge: MultiTaskNet, scenes: Sequence[Scene]) -> dict[str, Tensor]:
        """Say what the judge sees in one generated clip of each scene's caption."""
        captions = [scene.caption() for scene in scenes]
        return classify(judge, Generator(model).generate(captions, seed=self.seed).cpu())

    def metrics(
        self, model: TextToVideo, judge: MultiTaskNet, found: Mapping[str, Tensor]
    ) -> dict[str, float]:
        """Compare what is seen in clips, generated as ``found`` says and real, with what should be."""
        # Each clip against the prompts of all other held-out combinations, whose clips follow one another.
        shifts = [i * self.size.tested_each for i in range(1, len(self.held_out))]
        others = [
            accuracies(found, {name: values.roll(shift) for name, values in self.expected.items()})
            for shift in shifts
        ]
        shuffled = {name: sum(other[name] for other in others) / len(others) for name in others[0]}
        seen = random.Random(self.seed).sample(self.trained, min(len(self.trained), len(self.tested)))
        return {
            **_named("", accuracies(found, self.expected)),
            **_named("shuffled_", shuffled),
            **_named("seen_", accuracies(self.judged(model, judge, seen), labels(seen, self.world))),
            **_named("real_", accuracies(classify(judge, self.real), self.expected)),
            **_named("decoded_", accuracies(classify(judge, self.decoded(model.autoencoder)), self.expected)),
        }

    def result(
        self,
        metrics: dict[str, float],
        history: History,
        model: TextToVideo | None = None,
        found: Mapping[str, Tensor] | None = None,
    ) -> RecipeResult:
        """Write the report; without a model it is that of an interrupted training."""
        report = self.folder / "report.html"
        if process_rank() == 0:
            confusion, figures = {}, []
            if model is not None and found is not None:
                for name, words in self.world.choices.items():
                    counts = torch.zeros(len(words), len(words), dtype=torch.int64)
                    one = torch.ones_like(found[name])
                    counts.index_put_((self.expected[name], found[name]), one, accumulate=True)
                    confusion[name] = (words, counts.numpy())
                figures = [("Clips of combinations that were never trained", self.pictures(model))]
            report = write_report(
                self.folder,
                "Text to video",
                history,
                metrics=metrics,
                confusion=confusion,
                figures=figures,
                notes=[_NOTE],
            )
        return RecipeResult(self.folder, metrics, history, report)

    def pictures(self, model: TextToVideo) -> Figure:
        """Draw the frames of a clip of each of some held-out combinations."""
        scenes = self.held_out[:8]
        clips = Generator(model).generate([scene.caption() for scene in scenes], seed=self.seed).cpu()
        figure = new_figure(8, 1.15 * len(scenes))
        axes = figure.subplots(len(scenes), 1, squeeze=False).ravel()
        for ax, scene, clip in zip(axes, scenes, clips, strict=True):
            framed = nn.functional.pad(clip, (1, 1, 1, 1), value=110)
            ax.imshow(framed.permute(2, 0, 3, 1).flatten(1, 2).numpy(), interpolation="nearest")
            ax.set_title(scene.caption(), fontsize=8, loc="left", pad=2)
            ax.axis("off")
        return figure


_NOTE = (
    "size, color, shape, motion: parts of generated clips in which a classifier, trained on real clips, sees"
    " what the prompt says, for combinations of attributes of which the generator never saw a clip; all: it"
    " sees everything as the prompt says. shuffled_: against the prompts of all other combinations, which is"
    " chance. seen_: combinations that were trained. real_: the classifier on rendered clips. decoded_: on"
    " rendered clips after the autoencoder, the most that can be reached."
)


class _Rows(Dataset[dict[str, Tensor]]):
    """Tensors of the same length as samples by name."""

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        self.names = tuple(columns)
        self.rows = TensorDataset(*columns.values())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return dict(zip(self.names, self.rows[index], strict=True))


def _said(scene: Scene) -> dict[str, str]:
    return {name: getattr(scene, name) for name in ATTRIBUTES}


def _named(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}{name}": value for name, value in values.items()}
