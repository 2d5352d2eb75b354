"""Data sets, and the batches that models take."""

from dlip.data.batch import Example, Question
from dlip.data.dataset import DataSet
from dlip.data.sources import as_dataset, open, splits

__all__ = ["DataSet", "Example", "Question", "as_dataset", "open", "splits"]
