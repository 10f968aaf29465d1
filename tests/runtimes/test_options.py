"""The options of the method: what they do to a run, what the records say, and that off is off."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from blobs import SIZES, TEST, net, participants, play, same, settings, state
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import msfusion
from msfusion.capture import capture
from msfusion.config import load
from msfusion.core.twins import Twins
from msfusion.errors import UserError
from msfusion.learn import scripts
from msfusion.learn.adapt import Adapt
from msfusion.learn.contrast import Contrast
from msfusion.learn.labels import logit_adjustment
from msfusion.learn.methods import METHODS
from msfusion.models import build
from msfusion.records import read
from msfusion.report import write_report
from msfusion.runtimes import checkpoint
from msfusion.runtimes.run import Run, check_real

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


# --- overlap rate


def rates(out: Path) -> list[float]:
    return [round["overlap"] for round in read(out).rounds]


@pytest.mark.parametrize("kind", ["linear", "cosine", "exponential", "feedback"])
def test_the_rate_moves_and_is_recorded(kind: Any, tmp_path: Path) -> None:
    play(tmp_path, rounds=8, adapt=Adapt(kind, last=0.6, target=0.01, gain=0.2))
    got = rates(tmp_path)
    assert got[0] == 0
    assert got[-1] > 0.3
    assert got == sorted(got)
    shifts = [round["shift"] for round in read(tmp_path).rounds]
    assert all((shift is not None) == (kind == "feedback") for shift in shifts)


def test_a_rate_that_cannot_move_is_told_of() -> None:
    with pytest.warns(UserWarning, match=r"stays at 0\.5: .* changes every 4 rounds, .* the run has 2"):
        play(rounds=2, overlap=0.5, adapt=Adapt("linear"))


def test_measuring_the_shift_changes_nothing(tmp_path: Path) -> None:
    measured = state(play(tmp_path, adapt=Adapt(measure=True)))
    assert same(measured, state(play()))
    shifts = [round["shift"] for round in read(tmp_path).rounds]
    assert all(shift is not None and shift > 0 for shift in shifts)


@pytest.mark.parametrize("method", ["msfusion:no-overlap", "fedrolex", "standalone"])
def test_other_methods_have_no_overlap(method: str, tmp_path: Path) -> None:
    result = play(tmp_path, method=method, overlap=0.5, adapt=Adapt("feedback"))
    assert rates(tmp_path) == [0, 0, 0]
    assert same(state(result), state(play(method=method)))


def test_without_overlap_the_variant_is_the_method() -> None:
    assert same(state(play(method="msfusion:no-overlap", overlap=0.5)), state(play()))


def test_a_schedule_over_the_rounds_keeps_their_number(tmp_path: Path) -> None:
    play(tmp_path, rounds=2, adapt=Adapt("linear", last=0.5))
    with pytest.raises(UserError, match="rounds"):
        play(tmp_path, rounds=3, adapt=Adapt("linear", last=0.5), resume=True)


# --- partial participation and an imperfect network


def test_a_sample_takes_part_on_every_method(tmp_path: Path) -> None:
    for method in METHODS:
        play(tmp_path / method, method=method, sample=0.5)
        rounds = read(tmp_path / method).rounds
        assert [len(r["participants"]) for r in rounds] == [2, 2, 2], method
        assert all(not r["dropped"] for r in rounds)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_lost_never_arrives(method: str) -> None:
    result = play(method=method, loss_rate=1.0)
    before = net().state_dict()
    assert all(torch.equal(before[name], p) for name, p in result.model.named_parameters())
    if method == "standalone":  # nothing is sent
        assert not any(r["dropped"] for r in result.history)
        return
    assert result.coverage.share == 0
    for record in result.history:
        assert record["participants"] == []
        assert [d["participant"] for d in record["dropped"]] == [0, 1, 2, 3]
        assert record["flops"] > 0


@pytest.mark.parametrize("method", ["msfusion", "fedavg"])
def test_what_is_late_is_merged_in_the_next_round(method: str, tmp_path: Path) -> None:
    """The first round's contributions of two rounds that are all late are what one round gives on time."""
    late = play(tmp_path, method=method, rounds=2, late_rate=1.0)
    on_time = play(method=method, rounds=1)
    assert all(
        torch.equal(p, q) for p, q in zip(late.model.parameters(), on_time.model.parameters(), strict=True)
    )
    assert late.coverage == on_time.coverage
    assert [r["coverage"] for r in late.history] == [0, on_time.coverage.share]
    assert len({name.split("/")[1] for name in carried(tmp_path, "late")}) == len(SIZES)
    first, last = ({d["reason"] for d in r["dropped"]} for r in late.history)
    assert first == {"contribution came one round late"}
    assert last == {"contribution came late, after the last round so far"}


def test_a_network_that_is_sure_to_fail_twice_is_refused() -> None:
    with pytest.raises(UserError, match="together at most"):
        play(loss_rate=0.6, late_rate=0.6)


def test_a_report_of_rounds_without_anybody(tmp_path: Path) -> None:
    play(tmp_path / "run", loss_rate=1.0)
    write_report([tmp_path / "run"], tmp_path / "report.html")
    assert "contribution lost" in (tmp_path / "report.html").read_text()


# --- labels that a participant has never seen


def one_class(label: int) -> TensorDataset:
    return TensorDataset(
        torch.randn(20, 5, generator=torch.Generator().manual_seed(label)), torch.full((20,), label)
    )


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_unseen_labels_are_left_alone(method: str) -> None:
    """Nobody has seen class 1: with the mask its row of the head stays as it was, to the bit."""
    data, before = [one_class(0), one_class(2)], net().state_dict()
    for mask in (True, False):
        run = settings(method=method, mask_unseen=mask)
        model = msfusion.simulate(net(), data, TEST, run).model
        for name in ("head.weight", "head.bias"):
            got, old = dict(model.named_parameters())[name], before[name]
            assert torch.equal(got[1], old[1]) == (mask or method == "standalone"), name
            assert torch.equal(got[0], old[0]) == (method == "standalone"), name


def test_the_mask_does_nothing_where_all_have_seen_all() -> None:
    assert same(state(play(mask_unseen=True)), state(play()))


@pytest.mark.parametrize("name", ["cnn", "resnet18", "vit", "mlp", "gpt"])
def test_the_head_is_found_by_the_output(name: str) -> None:
    module, example = build(name, None, {})
    head, classes = capture(module, example).head(), module(*example).shape[-1]
    assert all(dict(module.named_parameters())[n].shape[d] == classes for n, d in head.items())
    assert len(head) in ((0, 1) if name == "gpt" else (2,))


class Refined(nn.Module):
    """Logits that a last layer corrects by what they are; its weight has the classes along both sides."""

    def __init__(self, linear: bool) -> None:
        super().__init__()
        self.hidden, self.head, self.linear = nn.Linear(5, 8), nn.Linear(8, 3), linear
        self.last = nn.Parameter(0.1 * torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(torch.relu(self.hidden(x)))
        h = torch.relu(logits + 3)
        return logits + (F.linear(h, self.last) if self.linear else h @ self.last)


@pytest.mark.parametrize("linear", [True, False])
def test_of_a_layer_from_classes_to_classes_what_it_puts_out_is_masked(linear: bool) -> None:
    model = Refined(linear)
    before = model.last.detach().clone()
    msfusion.simulate(model, [one_class(0), one_class(2)], TEST, settings(method="fedavg", mask_unseen=True))
    moved = model.last != before if linear else (model.last != before).t()
    assert moved.any(1).tolist() == [True, False, True]


@pytest.mark.parametrize("label", [-100, 3])
@pytest.mark.parametrize("changes", [{"mask_unseen": True}, {"logit_adjustment": 1.0}], ids=str)
def test_labels_that_no_output_has_are_named(label: int, changes: dict[str, Any]) -> None:
    """Also where no round would draw the example."""
    data = participants((40, 400))
    data[1].tensors[1][17] = label
    with pytest.raises(UserError, match=rf"labels from 0 to 2.* got {label} from participant 1"):
        msfusion.simulate(net(), data, TEST, settings(rounds=1, **changes))


def test_a_loss_without_classes_has_no_mask() -> None:
    with pytest.raises(UserError, match="mask_unseen"):
        msfusion.simulate(
            net(), participants(), TEST, settings(mask_unseen=True), loss=lambda y, t: y.square().mean()
        )


# --- logit adjustment


def test_adjusted_training_is_that_of_adjusted_logits() -> None:
    """One participant with 12, 6 and 0 of three labels; its only step, beside one by hand."""
    inputs = torch.randn(18, 5, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(inputs, torch.arange(18) // 12)
    model, expected = net(dropout=0.0), net(dropout=0.0)
    train = {"batch": 18, "steps": 1, "momentum": 0.0}
    run = settings(method="fedavg", rounds=1, logit_adjustment=0.5, train=train)
    trained = msfusion.simulate(model, [data], TEST, run).model

    shares = torch.tensor([13 / 21, 7 / 21, 1 / 21])
    logits = expected(inputs) + 0.5 * shares.log()
    torch.nn.functional.cross_entropy(logits, data.tensors[1]).backward()
    for name, value in expected.named_parameters():
        assert value.grad is not None
        torch.testing.assert_close(dict(trained.named_parameters())[name], value - 0.1 * value.grad)


def test_labels_that_are_equally_frequent_need_no_adjustment() -> None:
    assert torch.equal(logit_adjustment({0: 3, 1: 3}, 2, 1.0), torch.full((2,), 0.5).log())
    assert not same(state(play(logit_adjustment=1.0)), state(play()))


@pytest.mark.parametrize("name", ["cnn", "resnet18", "vit", "mlp"])
def test_the_bias_of_the_head_is_added_to_the_output(name: str) -> None:
    module, example = build(name, None, {})
    bias = capture(module, example).head_bias()
    assert bias is not None
    before = module.eval()(*example)
    shift = torch.arange(float(before.shape[-1]))
    module.get_parameter(bias).data += shift
    torch.testing.assert_close(module(*example), before + shift)


class Head(torch.nn.Module):
    """A last layer in one of several forms."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.first = torch.nn.Linear(5, 8)
        self.bias = torch.nn.Parameter(torch.zeros(3))
        self.last = torch.nn.Linear(8, 3, bias=form != "none")
        self.back = torch.nn.Linear(3, 8)
        self.register_buffer("shift", torch.zeros(3))
        if form == "tied":
            self.last.bias = self.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.back(self.last(x) if self.form == "twice" else x[..., :3]))
        if self.form == "buffer":
            return torch.nn.functional.linear(x, self.last.weight, self.get_buffer("shift"))
        return torch.relu(self.last(x)) if self.form == "behind" else self.last(x)


@pytest.mark.parametrize("form", ["none", "buffer", "twice", "behind"])
def test_a_model_that_adds_no_bias_of_its_own_is_not_adjusted(form: str) -> None:
    with pytest.raises(UserError, match="logit_adjustment"):
        msfusion.simulate(Head(form), participants(), TEST, settings(logit_adjustment=1.0))


def test_a_tied_bias_has_its_first_name() -> None:
    assert capture(Head("tied"), (TEST.tensors[0][:2],)).head_bias() == "bias"
    msfusion.simulate(Head("tied"), participants(), TEST, settings(logit_adjustment=1.0, rounds=1))


def test_weight_decay_would_draw_an_adjusted_bias_back() -> None:
    with pytest.raises(UserError, match=r"weight_decay of 0 beside logit_adjustment.*got 0\.1"):
        play(logit_adjustment=1.0, train={"weight_decay": 0.1})


# --- settings


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("contrast.weight", 1, -1),
        ("contrast.temperature", 0.1, 0),
        ("contrast.every", 3, 0),
        ("contrast.on", "logits", "pixels"),
        ("adapt.kind", "feedback", "wild"),
        ("adapt.last", 0.5, 1),
        ("adapt.target", 0.5, 0),
        ("adapt.gain", 0.2, 0.9),
        ("adapt.most", 0.9, 1),
        ("adapt.measure", True, "perhaps"),
        ("sample", 0.5, 0),
        ("loss_rate", 0.5, 1.5),
        ("late_rate", 0.5, -0.5),
        ("mask_unseen", True, 7),
        ("logit_adjustment", 1, -1),
    ],
)
def test_every_option_is_a_setting_with_bounds(key: str, good: Any, bad: Any) -> None:
    assert load("demo", {key: good}) != load("demo")
    with pytest.raises(UserError, match=f"setting {key}"):
        load("demo", {key: bad})


# --- twins


def test_twins_are_of_msfusion_only() -> None:
    assert not same(state(play(twins=0.5)), state(play()))
    for method in ("fedrolex", "fedavg", "msfusion:no-twins"):
        assert same(state(play(method=method, twins=0.5)), state(play(method=method)))


def test_controls_of_a_method_with_twins_have_its_widths(tmp_path: Path) -> None:
    methods = ("msfusion", "msfusion:no-twins", "fedavg-small:inner-first", "fedavg-small")
    for method in methods:
        play(tmp_path / method, method=method, rounds=1, width=None, share=0.45, twins=0.5)
    own, *controls, usual = (
        read(tmp_path / method).header["participants"][0]["parameters"] for method in methods
    )
    assert controls == [own, own]
    assert usual > own


@pytest.mark.parametrize("method", ["msfusion", "fedavg-small"])
def test_capacities_that_nobody_has_change_nothing(method: str) -> None:
    own = {"width": None, "method": method, "rounds": 1}
    more = play(share=(0.5, 0.4, 0.6, 0.5, 0.1), **own)  # of four participants
    assert same(state(more), state(play(share=(0.5, 0.4, 0.6, 0.5), **own)))


def test_fully_tied_twins_stay_alike() -> None:
    model = state(play(twins=1.0, rounds=4))["first.weight"]
    assert torch.allclose(model[:6], model[6:], atol=1e-6)
    model = state(play(twins=0.5, rounds=4))["first.weight"]
    assert not torch.allclose(model[:6], model[6:], atol=1e-3)


def test_twins_go_on_as_if_unbroken(tmp_path: Path) -> None:
    play(tmp_path, twins=0.5, rounds=1)
    resumed = state(play(tmp_path, twins=0.5, rounds=3, resume=True))
    assert same(resumed, state(play(twins=0.5, rounds=3)))


# --- server momentum


@pytest.mark.parametrize("method", ["msfusion", "fedrolex", "fedavg", "fedavg-small"])
def test_momentum_moves_every_method_from_the_second_round_on(method: str) -> None:
    for rounds, equal in ((1, True), (2, False)):
        with_, without = (state(play(method=method, rounds=rounds, server_momentum=m)) for m in (0.5, 0.0))
        assert same(with_, without) == equal


def test_any_method_can_do_without_momentum() -> None:
    for method in ("msfusion", "fedavg-small"):
        plain = state(play(method=method))
        assert same(state(play(method=f"{method}:no-momentum", server_momentum=0.5)), plain)


def test_momentum_goes_on_as_if_unbroken(tmp_path: Path) -> None:
    play(tmp_path, server_momentum=0.5, rounds=1)
    resumed = state(play(tmp_path, server_momentum=0.5, rounds=3, resume=True))
    assert same(resumed, state(play(server_momentum=0.5, rounds=3)))


# --- where there is no simulation


@pytest.mark.parametrize(("key", "value"), [("loss_rate", 0.1), ("late_rate", 0.1)])
def test_what_a_simulation_alone_can_do_is_refused_elsewhere(key: str, value: float) -> None:
    check_real(Run(share=0.5), "among peers")
    with pytest.raises(
        UserError, match=f"{key} = .* among peers, got {value}: it works in a simulation only"
    ):
        check_real(Run(share=0.5, **{key: value}), "among peers")  # type: ignore[arg-type]


# --- optimizers that are kept


def test_there_has_to_be_a_state_to_keep() -> None:
    with pytest.raises(UserError, match="keep_optimizer, got sgd without momentum"):
        play(train={"momentum": 0.0, "keep_optimizer": True})


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_rounds_of_one_step_are_one_round_of_steps(optimizer: str) -> None:
    """One participant with one batch: where its optimizer is kept, it does not matter when a round ends."""

    def trained(rounds: int, keep: bool) -> dict[str, torch.Tensor]:
        train = {
            "steps": 4 // rounds,
            "batch": 40,
            "optimizer": optimizer,
            "lr": 0.01,
            "keep_optimizer": keep,
        }
        run = settings(method="fedavg", rounds=rounds, train=train)
        return state(msfusion.simulate(net(norm=False, dropout=0.0), participants((40,)), TEST, run))

    whole = trained(1, True)
    for name, value in trained(4, True).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-6)
    assert max(float((value - whole[name]).abs().max()) for name, value in trained(4, False).items()) > 1e-3


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_twins_go_on_with_what_their_twins_have_learned(optimizer: str) -> None:
    """Tied by 1, with widths that divide, MSfusion is a small model in copies wherever its windows are, and
    so it stays where optimizers are kept; the small model is trained in windows that do not move."""

    def small_in_copies() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(5, 12), torch.nn.Tanh(), torch.nn.Linear(12, 3))

    still = small_in_copies()
    axes = capture(still, (TEST.tensors[0][:2],)).axes
    Twins(axes, dict.fromkeys(axes.cuttable, 6), 1.0).start_(
        {name: p.detach() for name, p in still.named_parameters()}, 1.0
    )
    train = {"optimizer": optimizer, "lr": 0.01, "keep_optimizer": True}
    expected = state(play(model=still, method="heterofl", rounds=4, train=train))
    got = state(play(model=small_in_copies(), method="msfusion", twins=1.0, rounds=4, train=train))
    torch.testing.assert_close(got["0.weight"][:6], expected["0.weight"][:6])
    torch.testing.assert_close(got["2.weight"][:, :6], expected["2.weight"][:, :6])


# --- learning rates by fan-in


def test_lr_fan_in_is_for_adam() -> None:
    with pytest.raises(UserError, match="lr_fan_in, got sgd"):
        play(train={"lr_fan_in": 4})


@pytest.mark.parametrize("method", ["msfusion", "heterofl", "fedavg"])
def test_lr_fan_in_lowers_the_rate_of_what_sums_over_more(method: str) -> None:
    """Adam's first step is the learning rate, wherever there is a gradient: here of the last layer, as no
    axis cuts what the first sums over."""

    def moved(**more: Any) -> dict[str, float]:
        model = torch.nn.Sequential(torch.nn.Linear(5, 12), torch.nn.Tanh(), torch.nn.Linear(12, 3))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        train = {"optimizer": "adam", "lr": 0.01, "steps": 1, "batch": 40, **more}
        run = settings(method=method, rounds=1, train=train)
        after = state(msfusion.simulate(model, participants((40,)), TEST, run))
        return {name: float((after[name] - before[name]).abs().max()) for name in before}

    fan_in = 12 if method == "fedavg" else 6
    plain, lower = moved(), moved(lr_fan_in=2)
    assert lower.pop("2.weight") == pytest.approx(plain.pop("2.weight") * 2 / fan_in, rel=1e-3)
    assert lower == pytest.approx(plain, rel=1e-3)


# --- windows apart


def apart(out: Path | None = None, **changes: Any) -> msfusion.Result:
    own = {"width": 0.25, "rounds": 6, "method": "msfusion:apart", "model": wide()}
    return play(out, **{**own, **changes})


def wide() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)
    )


def test_windows_apart_leave_the_model_in_blocks() -> None:
    """Four blocks of two by one units; the head and the first layer are whole."""
    for changes in ({}, {"twins": 0.5}, {"complement": False, "server_momentum": 0.5}):
        values = state(apart(**changes))
        block = torch.block_diag(*[torch.ones(1, 2)] * 4).bool()
        assert not values["3.weight"][~block].any(), changes
        assert values["3.weight"][block].all(), changes


def test_windows_apart_cover_what_lies_in_sub_models() -> None:
    result = apart()
    whole = sum(p.numel() for p in wide().parameters())
    assert result.coverage.share == (whole - 4 * 8 + 8) / whole


@pytest.mark.filterwarnings("ignore:batches stay the same for 4 rounds")
def test_complements_change_training_from_the_second_round_of_a_cycle_on() -> None:
    """In the first round of four nobody has heard anything, and batches are those of that round."""
    for rounds, equal in ((1, True), (2, False)):
        with_, without = (state(apart(rounds=rounds, complement=on)) for on in (True, False))
        assert same(with_, without) == equal


def test_a_share_apart_is_the_widest_that_fits() -> None:
    for share, number in ((0.6, 2), (0.3, 4)):
        values = state(apart(width=None, share=share))
        block = torch.block_diag(*[torch.ones(4 // number, 8 // number)] * number).bool()
        assert torch.equal(values["3.weight"] != 0, block)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rounds": 3}, "batches stay the same for 4 rounds, until .* and the run has 3: it sees no others"),
        ({"train": {"keep_optimizer": True}}, "keep_optimizer keeps little with msfusion:apart"),
    ],
)
def test_what_helps_little_apart_is_told(changes: dict[str, Any], told: str) -> None:
    with pytest.warns(UserWarning, match=told):
        apart(**changes)


def test_complements_have_no_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was heard would be a constant in it."""
    without = state(apart(script=False))
    monkeypatch.setattr(scripts, "_WORTH", 2)
    assert same(state(apart()), without)


@pytest.mark.filterwarnings("ignore:batches stay the same for 4 rounds")
def test_a_resumed_run_of_complements_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """In the middle of a cycle."""
    for twins in (None, 0.5):
        out = tmp_path / str(twins)
        apart(out, rounds=2, twins=twins)
        assert carried(out, "previous")
        assert same(state(apart(out, resume=True, twins=twins)), state(apart(twins=twins)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": (0.5, 0.25)}, "participants that all afford the same for msfusion:apart"),
        ({"width": 0.4}, "windows that divide all axes by one number, as they share no unit, got 3 of the 8"),
        (
            {"width": None, "memory": 10},
            "a sub-model of msfusion:apart, of which there are 4 at",
        ),
        ({"batched": "on"}, "sub-models that complement one another have no batched form"),
    ],
)
def test_what_windows_apart_cannot_do_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        apart(**changes)


def test_complements_want_logits() -> None:
    for method, complement in (("msfusion", True), ("msfusion:apart", False)):
        run = settings(width=0.25, method=method, complement=complement)
        msfusion.simulate(wide(), participants(), TEST, run, loss=F.cross_entropy)
    run = settings(width=0.25, method="msfusion:apart")
    with pytest.raises(UserError, match="expected a model that returns logits for complement"):
        msfusion.simulate(wide(), participants(), TEST, run, loss=F.cross_entropy)
