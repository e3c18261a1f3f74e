"""A folder of your own videos, sounds or clips with a CSV file of labels, some of which may be missing.

``mmcore train folder --data FOLDER --labels labels.csv -o DIR`` trains a network on it; :func:`load` uses it.
"""

from __future__ import annotations

from mmcore.recipes.folder.predictor import FolderModel, Prediction, load
from mmcore.recipes.folder.training import train

__all__ = ["FolderModel", "Prediction", "load", "train"]
