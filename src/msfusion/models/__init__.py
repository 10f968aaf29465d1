"""The shipped models, in plain PyTorch, and how a model is built from its name.

Nothing here knows about windows or widths: a model is cut by reading what it computes.
"""

from .inputs import InputSpec, example
from .registry import MODELS, build

__all__ = ["MODELS", "InputSpec", "build", "example"]
