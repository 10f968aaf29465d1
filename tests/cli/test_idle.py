"""Settings that are given and have no effect, and variants that change nothing, are told."""

import warnings
from typing import Any

import pytest

from msfusion.commands.idle import _SETTINGS, _VARIANTS, warn_of_idle, warn_of_variants
from msfusion.config import Config
from msfusion.learn.methods import METHODS
from msfusion.settings import filled


def told(given: dict[str, Any], *methods: str) -> list[str]:
    """The warnings about settings of runs of some methods."""
    base = {} if "share" in given else {"width": 0.5}
    runs = [filled(Config, {**base, **given, "method": method}) for method in methods]
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warn_of_idle(given, runs)
        warn_of_variants(runs)
    return [str(one.message) for one in found]


@pytest.mark.parametrize(
    ("given", "method"),
    [
        ({"share": 0.1}, "fedavg"),
        ({"contrast.weight": 1}, "fedrolex"),
        ({"contrast.every": 2}, "msfusion"),
        ({"overlap": 0.5}, "fedrolex"),
        ({"adapt.last": 0.5}, "msfusion"),
        ({"loss_rate": 0.5}, "standalone"),
        ({"server_momentum": 0.5}, "standalone"),
        ({"mask_unseen": True}, "standalone"),
        ({"twins": 0.9}, "fedavg"),
        ({"train.momentum": 0.5, "train.optimizer": "adam"}, "msfusion"),
        ({"data.alpha": 0.1, "data.partition": "iid"}, "msfusion"),
        ({"data.alpha": 0.1, "data.name": "text"}, "msfusion"),
        ({"data.augment": True, "data.name": "text"}, "msfusion"),
        ({"data.block": 9}, "msfusion"),
        ({"data.vocabulary": 900, "data.name": "text"}, "msfusion"),
    ],
)
def test_a_setting_without_effect_is_told(given: dict[str, Any], method: str) -> None:
    key = next(iter(given))
    assert [said.split(" has no effect here: it is for ")[0] for said in told(given, method)] == [key]


@pytest.mark.parametrize(
    ("given", "methods"),
    [
        ({"share": 0.1, "data.alpha": 0.1}, ["fedavg", "msfusion"]),
        ({"contrast.weight": 1, "contrast.every": 2}, ["fedavg", "msfusion"]),
        ({"twins": 0.9}, ["fedavg-small:inner-first"]),
        ({"overlap": 0.5, "adapt.kind": "linear", "adapt.last": 0.1}, ["msfusion"]),
        ({"twins": "none", "overlap": 0}, ["fedavg"]),
        ({"data.block": 9, "data.name": "text", "data.vocabulary": 900, "data.tokenizer": "bpe"}, ["fjord"]),
    ],
)
def test_a_setting_that_one_method_obeys_or_that_switches_off_is_not(
    given: dict[str, Any], methods: list[str]
) -> None:
    assert told(given, *methods) == []


def test_a_variant_that_leaves_out_what_is_off_is_told() -> None:
    assert told({}, "msfusion", "msfusion:no-twins") == [
        "msfusion:no-twins is the same as msfusion here, as twins is off"
    ]
    assert told({"twins": 0.9}, "msfusion:no-twins", "msfusion") == []
    assert len(told({}, "fedavg:no-momentum")) == 1


def test_every_setting_and_variant_exists() -> None:
    config = Config()
    for key in _SETTINGS:
        owner: Any = config
        for part in key.split("."):
            owner = getattr(owner, part)
    assert _VARIANTS.keys() <= METHODS["msfusion"].variants.keys()
