"""Datasets and how they are divided among participants."""

from .config import Data
from .examples import Examples, LabelledImages, TokenBlocks, fetch

__all__ = ["Data", "Examples", "LabelledImages", "TokenBlocks", "fetch"]
