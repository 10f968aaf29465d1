"""Each method does what it says: who trains what, what is merged, what is scored."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from blobs import CLASSES, SIZES, TEST, net, participants, play, same, settings, state
from torch import Tensor, nn
from torch.nn import functional as F

import msfusion
from msfusion import UserError
from msfusion.core.seeds import derive
from msfusion.learn.batch_norm import estimate_batch_norm
from msfusion.learn.contrast import Contrast
from msfusion.learn.evaluation import evaluate
from msfusion.learn.local import batches, seeded
from msfusion.learn.methods import METHODS, get_method
from msfusion.learn.objective import Objective
from msfusion.records import Round, read
from msfusion.runtimes import checkpoint

ALL = [*METHODS, *(f"{name}:{v}" for name, method in METHODS.items() for v in method.variants)]

PARTS: dict[str, Any] = {"contrast": Contrast(1.0), "overlap": 0.5, "twins": 0.9, "server_momentum": 0.5}
"""What variants can leave out, switched on."""


@pytest.mark.parametrize("method", ALL)
def test_every_method_runs(method: str, tmp_path: Path) -> None:
    if get_method(method).apart:  # 12 and 7 units have no common divisor
        with pytest.raises(UserError, match="windows that divide all axes by one number"):
            play(tmp_path, method=method, rounds=2, **PARTS)
        return
    result = play(tmp_path, method=method, rounds=2, **PARTS)
    assert [r["round"] for r in result.history] == [0, 1]
    assert result.evaluation.examples == len(TEST)
    assert 0 < result.coverage.share <= 1
    header = read(tmp_path).header
    assert header["method"] == method
    whole = get_method(method).cut is None
    assert all((p["share"] == 1) == whole for p in header["participants"])
    assert all((p["bytes_per_round"] == 0) == (method == "standalone") for p in header["participants"])


def test_an_unknown_method_is_refused_with_the_nearest() -> None:
    for given, near in (("fedrolx", "fedrolex"), ("msfusion:instep", "msfusion:in-step"), ("", "")):
        with pytest.raises(UserError, match=f"did you mean '{near}" if near else "did you mean"):
            get_method(given)
    with pytest.raises(UserError):
        get_method("fedavg:")


def windows(history: list[Round], axis: str) -> list[dict[int, list[tuple[int, int]]]]:
    return [{int(p): [(a, b) for a, b in runs] for p, runs in r["windows"][axis].items()} for r in history]


# --- FedAvg


def by_hand(rounds: int, norm: bool, dropout: float) -> dict[str, Tensor]:
    """Federated averaging, written out: SGD with momentum on a copy each, then the mean by examples."""
    model, data, config = net(norm=norm, dropout=dropout), participants(), settings().train
    for round in range(rounds):
        weights = [p.detach().clone() for p in model.parameters()]
        total = [torch.zeros_like(w) for w in weights]
        for number, own in enumerate(data):
            local = copy.deepcopy(model).train()
            seed = derive(0, "local training", round, number)
            momenta = [torch.zeros_like(w) for w in weights]
            with seeded(seed, torch.device("cpu")):
                for x, y in batches(own, config.batch, config.steps, seed):
                    local.zero_grad()
                    F.cross_entropy(local(x), y).backward()
                    with torch.no_grad():
                        for p, momentum in zip(local.parameters(), momenta, strict=True):
                            momentum.mul_(config.momentum).add_(p.grad)
                            p.sub_(config.lr * momentum)
            for t, p in zip(total, local.parameters(), strict=True):
                t += len(own) / sum(SIZES) * p.detach()
        with torch.no_grad():
            for p, t in zip(model.parameters(), total, strict=True):
                p.copy_(t)
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize(("norm", "dropout"), [(False, 0.0), (True, 0.0), (True, 0.3)])
def test_fedavg_equals_a_loop_by_hand(norm: bool, dropout: float) -> None:
    result = play(method="fedavg", width=None, model=net(norm=norm, dropout=dropout))
    for name, expected in by_hand(3, norm, dropout).items():
        assert torch.allclose(state(result)[name], expected, atol=1e-5), name


def test_every_cutting_method_at_full_width_is_fedavg() -> None:
    """The same seeds, the same merge; only schedules differ, and at full width they all say everything."""
    expected = state(play(method="fedavg"))
    for method in ("msfusion", "msfusion:residual-cut", "fedrolex", "heterofl", "random", "fedavg-small"):
        got = state(play(method=method, width=1.0))
        assert all(torch.equal(got[name], expected[name]) for name, _ in net().named_parameters()), method


def test_server_steps_shrink_the_change() -> None:
    """The first step is 1; with two rounds the second is a twentieth."""
    one, plain, shrunk = (
        state(play(method="fedavg", rounds=r, server_step=s))
        for r, s in ((1, "constant"), (2, "constant"), (2, "linear"))
    )
    for name, _ in net().named_parameters():
        assert torch.allclose(shrunk[name] - one[name], 0.05 * (plain[name] - one[name]), atol=1e-6)


# --- windows


def test_heterofl_trains_the_nested_part_and_nothing_else() -> None:
    """Half of 12 and of 7 units: the first 6 and the first 4."""
    plain = net(norm=False, dropout=0)
    before = copy.deepcopy(plain.state_dict())
    after = state(play(method="heterofl", model=plain))
    for name, kept in {
        "first.weight": (slice(0, 6), slice(None)),
        "first.bias": (slice(0, 6),),
        "second.weight": (slice(0, 4), slice(0, 6)),
        "second.bias": (slice(0, 4),),
        "head.weight": (slice(None), slice(0, 4)),
        "head.bias": (slice(None),),
    }.items():
        changed = before[name] != after[name]
        assert changed[kept].float().mean() > 0.8, name  # dead ReLUs may leave a few
        outside = torch.ones_like(changed)
        outside[kept] = False
        assert not changed[outside].any(), name


@pytest.mark.parametrize(("method", "factors"), [("heterofl", (12 / 6, 7 / 4)), ("fjord", (1, 1))])
def test_methods_of_first_units_are_scored_on_those_that_the_widest_trains(
    method: str, factors: tuple[float, float]
) -> None:
    """Half of 12 and of 7 units; FjORD's models share their values as they are."""
    result = play(method=method, model=net(norm=False, dropout=0), width=(0.25, 0.5))
    values = state(result)
    first = torch.relu(TEST.tensors[0] @ values["first.weight"][:6].T + values["first.bias"][:6])
    second = torch.relu(factors[0] * first @ values["second.weight"][:4, :6].T + values["second.bias"][:4])
    outputs = factors[1] * second @ values["head.weight"][:, :4].T + values["head.bias"]
    assert result.evaluation.loss == pytest.approx(float(F.cross_entropy(outputs, TEST.tensors[1])), rel=1e-5)


@pytest.mark.parametrize("method", ["heterofl", "fjord"])
def test_where_somebody_trains_all_units_the_full_model_is_scored(method: str) -> None:
    result = play(method=method, width=(0.5, 1.0))
    score = evaluate(result.model, TEST, Objective())
    assert result.evaluation == score


@pytest.mark.parametrize("method", ["msfusion", "heterofl", "fjord"])
def test_the_statistics_of_the_full_model_are_estimated_with_and_without_a_folder(
    method: str, tmp_path: Path
) -> None:
    kept, free = (state(play(out, method=method)) for out in (tmp_path / "run", None))
    assert torch.equal(kept["norm.running_mean"], free["norm.running_mean"])
    assert free["norm.running_mean"].abs().min() > 0


def test_fedrolex_rolls_by_one_unit_for_all_at_once() -> None:
    history = play(method="fedrolex", rounds=9).history
    for round, seen in enumerate(windows(history, "first.out")):
        stop = round + 6
        expected = [(round, stop)] if stop <= 12 else [(0, stop - 12), (round, 12)]
        assert all(seen[p] == expected for p in range(len(SIZES)))


def test_msfusion_gives_participants_windows_of_their_own() -> None:
    seen = windows(play().history, "first.out")
    units = [{u for a, b in seen[0][p] for u in range(a, b)} for p in range(len(SIZES))]
    assert set.union(*units) == set(range(12)), "together they hold the axis in every round"
    assert len({tuple(sorted(u)) for u in units}) > 1
    assert seen[0] != seen[1]


def test_fjord_trains_parts_of_the_nested_part() -> None:
    widths = {
        (p, sum(b - a for a, b in runs))
        for seen in windows(play(method="fjord", rounds=12).history, "first.out")
        for p, runs in seen.items()
        if runs[0][0] == 0
    }
    assert {width for _, width in widths} == {2, 3, 5, 6}


def test_fjord_shares_its_levels_among_participants_of_all_widths() -> None:
    """Quarters of 12 units are 3, 6, 9 and 12, whoever trains; 2 units are none of them."""
    history = play(method="fjord", rounds=20, width=(1.0, 0.5, 0.2)).history
    drawn: dict[int, set[int]] = {}
    for seen in windows(history, "first.out"):
        for p, runs in seen.items():
            drawn.setdefault(p % 3, set()).add(sum(b - a for a, b in runs))
    assert drawn == {0: {3, 6, 9, 12}, 1: {3, 6}, 2: {2}}


def test_coverage_is_full_for_msfusion_and_stays_a_band_for_fedrolex() -> None:
    """Two axes of 12 units in windows of 3 that move in step: 5 of 12 offsets are ever trained."""

    def square() -> nn.Sequential:
        return nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3))

    shares = {
        method: play(method=method, model=square(), rounds=25, evaluate_every=50, width=0.25).coverage.share
        for method in ("msfusion", "msfusion:in-step", "fedrolex")
    }
    parameters = sum(p.numel() for p in square().parameters())
    assert shares["msfusion"] == 1
    assert shares["fedrolex"] == pytest.approx(1 - 144 * 7 / 12 / parameters)
    assert shares["msfusion:in-step"] < 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batched": "on"},
        {"workers": 2},
        {"logit_adjustment": 1.0},
        {"train": {"keep_optimizer": True}},
        {"contrast": Contrast(weight=0.5)},
        {"method": "fedavg-small", "width": 0.5},
    ],
    ids=str,
)
def test_what_gets_no_gradient_keeps_its_value_to_the_bit_at_every_width(changes: dict[str, Any]) -> None:
    """No hidden unit ever fires, so the second layer has no gradient; its factor of the scale rule, 30 over
    20 units, is no power of two. Server momentum would carry on what was but rounded."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 30), nn.ReLU(), nn.Linear(30, CLASSES))
    nn.init.constant_(model[0].bias, -1e6)
    before = copy.deepcopy(model.state_dict())
    play(model=model, **{"width": 2 / 3, "server_momentum": 0.9, "rounds": 3} | changes)
    assert torch.equal(model[2].weight, before["2.weight"])
    assert not torch.equal(model[2].bias, before["2.bias"])


def test_what_is_never_trained_keeps_its_start_to_the_bit() -> None:
    """One round of one participant: what lies outside its windows is as it was."""
    before, model = net().state_dict(), net()
    result = msfusion.simulate(model, participants()[:1], TEST, settings(rounds=1))
    runs = windows(result.history, "first.out")[0][0]
    outside = torch.ones(12, dtype=torch.bool)
    for a, b in runs:
        outside[a:b] = False
    assert torch.equal(before["first.weight"][outside], state(result)["first.weight"][outside])
    assert not torch.equal(before["first.weight"][~outside], state(result)["first.weight"][~outside])


# --- what is scored


def test_standalone_has_no_use_for_settings_of_the_merge(tmp_path: Path) -> None:
    merge = {"server_momentum": 0.9, "server_step": "linear", "mask_unseen": True}
    for name, changes in (("plain", {}), ("set", merge)):
        play(tmp_path / name, method="standalone", **changes)
    plain, given = (checkpoint.load(tmp_path / name)[0] for name in ("plain", "set"))
    assert same(plain, given)


def test_standalone_never_exchanges(tmp_path: Path) -> None:
    """Each participant trains as if it were alone; the full model keeps its start."""
    result = play(tmp_path, method="standalone")
    before = net().state_dict()
    assert all(torch.equal(before[n], p) for n, p in result.model.named_parameters())
    tensors = checkpoint.load(tmp_path)[0]
    own = [tensors[f"model/own/{p}/first.weight"] for p in range(len(SIZES))]
    assert own[0].shape == (6, 5)
    assert all(not torch.equal(a, b) for i, a in enumerate(own) for b in own[:i])
    alone = tmp_path / "alone"
    msfusion.simulate(net(), participants()[:1], TEST, settings(method="standalone"), out=alone)
    assert torch.equal(own[0], checkpoint.load(alone)[0]["model/own/0/first.weight"])


def test_standalone_reports_the_mean_of_the_participants() -> None:
    together = play(method="standalone").evaluation
    assert together.accuracy is not None
    assert together.accuracy * len(TEST) * len(SIZES) == pytest.approx(
        round(together.accuracy * len(TEST) * len(SIZES))
    )
    one = msfusion.simulate(net(), participants()[:1], TEST, settings(method="standalone")).evaluation
    assert one != together


def test_fedavg_small_scores_the_small_model_in_it() -> None:
    """By hand: the first half of each axis, outputs scaled by the root of size / width."""
    result = play(method="fedavg-small")
    trained, small = result.model, net()
    w = dict(trained.named_parameters())
    small.first, small.second, small.head = (
        nn.Linear(5, 6),
        nn.Linear(6, 4),
        nn.Linear(4, CLASSES),
    )
    small.norm = nn.BatchNorm1d(6)
    values = {
        "first.weight": w["first.weight"][:6],
        "first.bias": w["first.bias"][:6],
        "norm.weight": w["norm.weight"][:6],
        "norm.bias": w["norm.bias"][:6],
        "second.weight": w["second.weight"][:4, :6] * 2**0.5,
        "second.bias": w["second.bias"][:4],
        "head.weight": w["head.weight"][:, :4] * (7 / 4) ** 0.5,
        "head.bias": w["head.bias"],
    }
    small.load_state_dict(values, strict=False)
    estimate_batch_norm(small, participants(), derive(0, "batch norm"))
    expected = evaluate(small, TEST, Objective())
    assert result.evaluation.accuracy == expected.accuracy
    assert result.evaluation.loss == pytest.approx(expected.loss, rel=1e-5)
