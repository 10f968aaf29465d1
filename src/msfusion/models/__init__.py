"""The shipped models, in plain PyTorch, and how a model is built from its name.

Nothing here knows about windows or widths: a model is cut by reading what it computes.
"""

from msfusion.models.inputs import InputSpec
from msfusion.models.meta import parameters_on_meta
from msfusion.models.registry import MODELS, build, build_without_values, is_from_file

__all__ = [
    "MODELS",
    "InputSpec",
    "build",
    "build_without_values",
    "is_from_file",
    "parameters_on_meta",
]
