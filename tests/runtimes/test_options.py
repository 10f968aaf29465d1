"""The options of the method: what they do to a run, what the records say, and that off is off."""

from pathlib import Path

import pytest
import torch
from blobs import net, play, same, state

from msfusion.learn.contrast import Contrast
from msfusion.records import read
from msfusion.runtimes import checkpoint

# --- contrastive loss


def carried(out: Path, kind: str) -> dict[str, torch.Tensor]:
    return {name: t for name, t in checkpoint.load(out)[0].items() if name.startswith(f"{kind}/")}


def test_contrast_changes_training_from_the_second_round_on() -> None:
    """In the first round nobody has a previous model."""
    for rounds, equal in ((1, True), (2, False)):
        with_, without = (state(play(rounds=rounds, contrast=Contrast(weight=w))) for w in (1.0, 0.0))
        assert same(with_, without) == equal


@pytest.mark.parametrize("method", ["msfusion:no-contrast", "fedrolex", "fedavg"])
def test_other_methods_train_without_contrast(method: str, tmp_path: Path) -> None:
    with_ = state(play(tmp_path, method=method, contrast=Contrast(weight=1.0)))
    assert same(with_, state(play(method=method)))
    assert not carried(tmp_path, "previous")


def test_without_contrast_the_variant_is_the_method() -> None:
    assert same(state(play(method="msfusion:no-contrast")), state(play()))


def test_a_participant_keeps_a_sub_model_at_most(tmp_path: Path) -> None:
    play(tmp_path, contrast=Contrast(weight=1.0))
    kept = carried(tmp_path, "previous")
    for number, facts in enumerate(read(tmp_path).header["participants"]):
        own = [t.numel() for name, t in kept.items() if name.startswith(f"previous/{number}/values/")]
        assert sum(own) == facts["parameters"]


def test_contrast_is_paid_for(tmp_path: Path) -> None:
    """Not in the first round, in which it is not there."""
    for name, weight in (("with", 1.0), ("without", 0.0)):
        play(tmp_path / name, contrast=Contrast(weight=weight), model=net())
    with_, without = (read(tmp_path / name) for name in ("with", "without"))
    assert with_.rounds[0]["flops"] == without.rounds[0]["flops"]
    assert with_.rounds[1]["flops"] > 1.4 * without.rounds[1]["flops"]
    facts = [run.header["participants"][0] for run in (with_, without)]
    assert facts[0]["flops_per_step"] > facts[1]["flops_per_step"]
    assert facts[0]["memory_bytes"] > facts[1]["memory_bytes"]
