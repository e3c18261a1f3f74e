"""The network: CNN, RNN and Transformer, their weighted sum, and a head for each task."""

from __future__ import annotations

import mmcore
from mmcore.models import (
    CNN,
    RNN,
    ClassificationHead,
    Fusion,
    Head,
    MultiTaskNet,
    RegressionHead,
    Transformer,
)

from .dataset import MAX_TOKENS, NUM_MELS
from .task import ANSWERS, DIGITS, OPERATIONS

__all__ = ["build"]

_DIM = 128
_CLASSES = {"answer": len(ANSWERS), "seen": len(DIGITS), "heard": len(DIGITS), "operation": len(OPERATIONS)}


def build(*, modality_dropout: float = 0.1) -> MultiTaskNet:
    """Make the untrained network, of about 860,000 parameters.

    The modalities' weights in the sum are learned numbers, the same for all clips, and begin equal. A gate
    that looks at the clip soon turns down the pictures, which take longest to be understood, and then they
    never are.

    Parameters
    ----------
    modality_dropout : float
        In training, how often a modality of a clip is taken away: the network learns to do without.
    """
    encoders = {
        "video": CNN(_DIM, in_channels=4, widths=(16, 32, 96), temporal="none", grid=4),
        "audio": RNN(_DIM, num_mels=NUM_MELS, hidden=64, stride=4),
        "text": Transformer(
            _DIM,
            vocabulary=mmcore.ByteTokenizer.vocab_size,
            layers=1,
            heads=4,
            max_length=MAX_TOKENS,
        ),
    }
    fusion = Fusion(
        {name: encoder.dim for name, encoder in encoders.items()},
        _DIM,
        weighting="scalar",
        modality_dropout=modality_dropout,
    )
    # The answer depends on products of what is seen, heard and read: its head needs a layer that has them.
    heads: dict[str, Head] = {
        task: ClassificationHead(
            _DIM, classes, hidden=512 if task == "answer" else None, gated=task == "answer"
        )
        for task, classes in _CLASSES.items()
    }
    heads["position"] = RegressionHead(_DIM, 2)
    tasks = {task: mmcore.Task.cross_entropy() for task in _CLASSES}
    tasks["position"] = mmcore.Task.smooth_l1(beta=0.1)
    # The digit seen takes longest to learn; errors of position are small numbers.
    loss = mmcore.nn.MultiTaskLoss(tasks, weights={"seen": 2.0, "position": 3.0})
    return MultiTaskNet(encoders, fusion, heads, loss)
