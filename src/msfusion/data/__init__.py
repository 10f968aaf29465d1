"""Datasets and how they are divided among participants."""

from .config import Data
from .examples import Examples, LabelledImages, TokenBlocks, fetch
from .federation import Federation
from .load import load

__all__ = ["Data", "Examples", "Federation", "LabelledImages", "TokenBlocks", "fetch", "load"]
