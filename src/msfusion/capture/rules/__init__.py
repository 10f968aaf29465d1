"""What each operation says about the dimensions of its inputs and outputs; one file per family."""

from . import contraction, convolution, indexing, normalisation, pointwise, recurrent, views
from .registry import Call, Labels, Rule, find_rule, is_view, rule

__all__ = [
    "Call",
    "Labels",
    "Rule",
    "contraction",
    "convolution",
    "find_rule",
    "indexing",
    "is_view",
    "normalisation",
    "pointwise",
    "recurrent",
    "rule",
    "views",
]
