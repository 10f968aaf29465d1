"""A user's module -> its axis map -> a runnable narrow module."""

from .capture import Capture, axes, capture
from .check import TOLERANCE, permutation_errors

__all__ = ["TOLERANCE", "Capture", "axes", "capture", "permutation_errors"]
