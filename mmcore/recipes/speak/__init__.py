"""Text to speech: phonemes to a log-mel spectrogram to sound, learned from espeak-ng.

``train(folder)`` makes the speech, trains and judges; ``load(folder)`` gives a :class:`Speaker`.
"""

from mmcore.recipes.speak.speaker import Speaker, load
from mmcore.recipes.speak.training import train

__all__ = ["Speaker", "load", "train"]
