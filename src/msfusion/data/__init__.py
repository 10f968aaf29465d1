"""Datasets and how they are divided among participants."""

from msfusion.data.config import Data
from msfusion.data.examples import Examples, LabelledImages, TokenBlocks, fetch
from msfusion.data.federation import Federation
from msfusion.data.load import load
from msfusion.data.resident import resident

__all__ = ["Data", "Examples", "Federation", "LabelledImages", "TokenBlocks", "fetch", "load", "resident"]
