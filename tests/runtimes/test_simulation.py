"""A run is a function of its configuration and seed; it can be stopped, resumed and refused."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from blobs import SIZES, TEST, files, net, participants, play, points, same, settings, state
from torch import nn
from torch.utils.data import TensorDataset

import msfusion
from msfusion import Run, UserError
from msfusion.commands.training import note
from msfusion.learn import learner as learner_module
from msfusion.learn.adapt import Adapt
from msfusion.learn.contrast import Contrast
from msfusion.learn.methods import METHODS
from msfusion.records import read
from msfusion.runtimes import checkpoint
from msfusion.runtimes.run import Problem
from msfusion.runtimes.simulation import Simulation

KINDS = ["msfusion", "random", "fjord", "fedavg", "fedavg-small", "standalone"]
"""One method for each kind of store, schedule and evaluation."""


def tensors(out: Path) -> dict[str, torch.Tensor]:
    """All that the checkpoint holds: full model, own models, coverage."""
    return checkpoint.load(out)[0]


# --- determinism


@pytest.mark.parametrize("method", METHODS)
def test_the_same_configuration_gives_the_same_bits(method: str, tmp_path: Path) -> None:
    states = []
    for disturbance in (0, 1):
        model = net()
        torch.manual_seed(disturbance)
        play(tmp_path / str(disturbance), method=method, model=model)
        states.append(tensors(tmp_path / str(disturbance)))
    assert same(*states)


@pytest.mark.parametrize("method", ["msfusion", "fedavg", "standalone"])
def test_another_seed_gives_others(method: str, tmp_path: Path) -> None:
    for seed in (0, 1):
        play(tmp_path / str(seed), method=method, seed=seed)
    assert not same(tensors(tmp_path / "0"), tensors(tmp_path / "1"))


@pytest.mark.slow
def test_the_hash_seed_of_the_process_does_not_matter(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import torch; "
    code += (
        "torch.set_num_threads(1); from pathlib import Path; from blobs import play; play(Path(sys.argv[1]))"
    )
    for hash_seed in ("1", "2"):
        run = [sys.executable, "-c", code, str(tmp_path / hash_seed)]
        subprocess.run(run, env={**os.environ, "PYTHONHASHSEED": hash_seed}, check=True)
    first, second = (checkpoint.load(tmp_path / h) for h in ("1", "2"))
    assert same(first[0], second[0])
    assert first[1] == second[1]


def test_the_global_generator_is_left_as_it_was() -> None:
    model = net()
    before = torch.get_rng_state()
    play(model=model)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("method", ["msfusion", "fedavg-small", "standalone"])
def test_evaluation_does_not_change_what_is_trained(method: str, tmp_path: Path) -> None:
    play(tmp_path / "often", method=method, evaluate_every=1, rounds=4)
    play(tmp_path / "once", method=method, evaluate_every=100, rounds=4)
    assert same(tensors(tmp_path / "often"), tensors(tmp_path / "once"))


def test_only_due_rounds_and_the_last_are_evaluated() -> None:
    history = play(evaluate_every=3, rounds=7).history
    assert [r["round"] for r in history if r["evaluation"]] == [2, 5, 6]


def test_the_result_is_the_last_evaluation() -> None:
    result = play()
    last = result.history[-1]["evaluation"]
    assert last is not None
    assert (last["accuracy"], last["loss"]) == (result.evaluation.accuracy, result.evaluation.loss)
    assert not result.model.training


def test_a_problem_of_blobs_is_learnt() -> None:
    """What the other tests compare is not noise."""
    result = play(rounds=15, train={"lr": 0.1, "steps": 5})
    assert result.evaluation.accuracy is not None
    assert result.evaluation.accuracy > 0.9
    assert result.coverage.share == 1


# --- resume


WAYS: list[dict[str, Any]] = [
    {"train": {"optimizer": "adam", "lr": 0.01}},
    {"train": {"momentum": 0.0, "weight_decay": 0.1}, "server_step": "cosine"},
    {"train": {"lr_schedule": "cosine", "optimizer": "adamw", "lr": 0.01}, "evaluate_every": 3},
    {"train": {"clip": 0.5}, "overlap": 0.4, "method": "msfusion:independent"},
    {"adapt": Adapt("feedback", target=0.2), "overlap": 0.2, "rounds": 6},
    {"adapt": Adapt("cosine", last=0.5, measure=True)},
    {"contrast": Contrast(1.0, every=2)},
    {"sample": 0.5, "loss_rate": 0.2, "late_rate": 0.4, "mask_unseen": True},
    {"late_rate": 0.5, "contrast": Contrast(1.0), "rounds": 5},
    {"late_rate": 0.5, "method": "fedavg", "sample": 0.8},
    {"contrast": Contrast(0.5, on="logits"), "method": "msfusion:residual-cut"},
    {"train": {"keep_optimizer": True}, "contrast": Contrast(1.0), "late_rate": 0.5},
    {"train": {"keep_optimizer": True, "optimizer": "adamw", "lr": 0.01}, "twins": 0.9, "sample": 0.7},
]


def stopped_after(last: int, out: Path, **changes: Any) -> None:
    """A run that is killed after ``last`` rounds: nothing is saved but what has been."""
    run = settings(**changes)
    simulation = Simulation(
        Problem(net(), (TEST.tensors[0][:2],), participants(), TEST, name="Net"), run, out=out
    )

    class Killed(BaseException):
        pass

    def watch(record: Any) -> None:
        if record["round"] + 1 == last:
            raise Killed

    with pytest.raises(Killed):
        simulation.run(watch=watch)


@pytest.mark.parametrize("method", KINDS)
def test_a_resumed_run_equals_an_unbroken_one(method: str, tmp_path: Path) -> None:
    """Killed after 5 of 7 rounds with a checkpoint after every second one: goes on from round 4."""
    changes: dict[str, Any] = {"method": method, "rounds": 7, "checkpoint_every": 2}
    stopped_after(5, tmp_path / "broken", **changes)
    assert checkpoint.load(tmp_path / "broken")[1]["rounds_done"] == 4
    resumed = play(tmp_path / "broken", resume=True, **changes)
    assert [r["round"] for r in resumed.history] == [4, 5, 6]
    unbroken = play(tmp_path / "unbroken", **changes)
    assert same(tensors(tmp_path / "broken"), tensors(tmp_path / "unbroken"))
    assert same(state(resumed), state(unbroken))
    assert resumed.evaluation == unbroken.evaluation
    assert resumed.coverage == unbroken.coverage
    rounds = [read(tmp_path / name).rounds for name in ("broken", "unbroken")]
    assert [{**r, "seconds": 0} for r in rounds[0]] == [{**r, "seconds": 0} for r in rounds[1]]


@pytest.mark.parametrize("changes", WAYS)
def test_a_resumed_run_equals_an_unbroken_one_whatever_trains(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    every = {"rounds": 4, "checkpoint_every": 3, **changes}
    stopped_after(3, tmp_path / "broken", **every)
    play(tmp_path / "broken", resume=True, **every)
    play(tmp_path / "unbroken", **every)
    assert same(tensors(tmp_path / "broken"), tensors(tmp_path / "unbroken"))


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path: Path) -> None:
    stopped_after(2, tmp_path / "broken", rounds=4)
    resumed = play(tmp_path / "broken", resume=True, rounds=4)
    assert [r["round"] for r in resumed.history] == [0, 1, 2, 3]
    play(tmp_path / "unbroken", rounds=4)
    assert same(tensors(tmp_path / "broken"), tensors(tmp_path / "unbroken"))


def test_a_finished_run_can_be_resumed_with_more_rounds(tmp_path: Path) -> None:
    play(tmp_path / "broken", rounds=2)
    play(tmp_path / "broken", resume=True, rounds=5)
    play(tmp_path / "unbroken", rounds=5)
    assert same(tensors(tmp_path / "broken"), tensors(tmp_path / "unbroken"))


def test_a_finished_run_resumed_as_it_is_does_nothing(tmp_path: Path) -> None:
    first = play(tmp_path / "run")
    before = files(tmp_path / "run")
    again = play(tmp_path / "run", resume=True)
    assert again.history == []
    assert again.evaluation == first.evaluation
    assert same(state(first), state(again))
    assert files(tmp_path / "run") == before


def test_many_axes_come_back_in_order(tmp_path: Path) -> None:
    """More than ten tables of coverage: by name, the tenth would come before the second."""

    def deep() -> nn.Sequential:
        torch.manual_seed(0)
        hidden = [layer for size in range(4, 11) for layer in (nn.Linear(size - 1, size), nn.Tanh())]
        return nn.Sequential(nn.Linear(5, 3), *hidden, nn.Linear(10, 3))

    stopped_after_two = play(tmp_path / "broken", model=deep(), rounds=2, width=0.4)
    assert stopped_after_two.coverage.share < 1
    resumed = play(tmp_path / "broken", resume=True, model=deep(), rounds=3, width=0.4)
    unbroken = play(model=deep(), rounds=3, width=0.4)
    assert resumed.coverage == unbroken.coverage


# --- interrupts


def interrupted(
    out: Path, monkeypatch: pytest.MonkeyPatch, call: int, presses: int = 1, **changes: Any
) -> None:
    """Ctrl-C while the local training that is number ``call`` of the run is going on."""
    calls = 0
    plain = learner_module.train

    def train(*args: Any, **kwargs: Any) -> float:
        nonlocal calls
        if calls == call:
            for _ in range(presses):
                os.kill(os.getpid(), signal.SIGINT)
        calls += 1
        return plain(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(learner_module, "train", train)
        with pytest.raises(KeyboardInterrupt):
            play(out, **changes)


@pytest.mark.parametrize(
    ("method", "call"), [("msfusion", 0), ("msfusion", 7), ("msfusion", 8), ("standalone", 5)]
)
def test_ctrl_c_saves_the_last_finished_round(
    method: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four participants: call 5 is the second one of round 1, call 7 the last one, call 8 begins round 2."""
    interrupted(tmp_path / "broken", monkeypatch, call, method=method)
    done = checkpoint.load(tmp_path / "broken")[1]["rounds_done"]
    assert done == call // len(SIZES)
    assert len(read(tmp_path / "broken").rounds) == done
    resumed = play(tmp_path / "broken", resume=True, method=method)
    play(tmp_path / "unbroken", method=method)
    assert [r["round"] for r in resumed.history] == list(range(done, 3))
    assert same(tensors(tmp_path / "broken"), tensors(tmp_path / "unbroken"))


def test_a_second_ctrl_c_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path / "broken", monkeypatch, call=9, presses=2, checkpoint_every=1)
    assert checkpoint.load(tmp_path / "broken")[1]["rounds_done"] == 2
    play(tmp_path / "broken", resume=True, checkpoint_every=1)
    play(tmp_path / "unbroken", checkpoint_every=1)
    assert same(tensors(tmp_path / "broken"), tensors(tmp_path / "unbroken"))


def test_a_second_ctrl_c_in_the_middle_of_a_merge_saves_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, merges = torch.Tensor.sub_, 0

    def sub_(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal merges
        merges += 1
        if merges == 12:  # 8 parameters: the fourth one of round 1
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "sub_", sub_)
        with pytest.raises(KeyboardInterrupt):
            play(tmp_path / "broken")
    assert merges == 12
    play(tmp_path / "broken", resume=True)
    play(tmp_path / "unbroken")
    assert same(tensors(tmp_path / "broken"), tensors(tmp_path / "unbroken"))


def test_ctrl_c_without_a_directory_leaves_the_model_between_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", lambda *args, **kwargs: pytest.fail("wrote"))
        interrupted(None, patch, call=5, model=model)  # type: ignore[arg-type]
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), play(rounds=1).model.parameters(), strict=True)
    )


def test_a_run_in_another_thread_leaves_signals_alone() -> None:
    results: list[Any] = []
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: results.append(play(rounds=1)))
    thread.start()
    thread.join()
    assert len(results) == 1
    assert signal.getsignal(signal.SIGINT) is before


# --- refusals: one sentence, and nothing on disk is touched


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three rounds."""
    play(tmp_path / "run")
    return tmp_path / "run"


def refused(out: Path, words: str, **how: Any) -> None:
    before = files(out)
    with pytest.raises(UserError, match=words) as caught:
        play(out, **how)
    assert "\n" not in str(caught.value)
    assert files(out) == before


def test_a_directory_with_a_run_is_refused(run: Path) -> None:
    refused(run, "expected a directory without a run")
    refused(run, "expected a directory without a run", seed=1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed = 1 where the run has 0"),
        ({"method": "fedrolex"}, "method = fedrolex where the run has msfusion"),
        ({"width": 0.25}, "width = 0.25 where the run has 0.5"),
        (
            {"width": None, "share": 0.4},
            "share = 0.4 where the run has none, width = none where the run has 0.5",
        ),
        ({"train": {"lr": 0.2}}, r"got train\.lr = 0\.2 where the run has 0.1; resume"),
        ({"overlap": 0.5}, "overlap = 0.5"),
        ({"rounds": 2}, "rounds of at least 3, which the run has done, got 2"),
    ],
)
def test_other_settings_are_refused(run: Path, change: dict[str, Any], words: str) -> None:
    refused(run, words, resume=True, **change)


def test_more_rounds_are_refused_where_the_rate_depends_on_them(tmp_path: Path) -> None:
    play(tmp_path, server_step="cosine")
    refused(tmp_path, "rounds = 4 where the run has 3", resume=True, server_step="cosine", rounds=4)


def test_a_checkpoint_of_another_model_is_refused(run: Path) -> None:
    refused(run, "to be of this model, it is of another", resume=True, model=net(norm=False))


def test_a_checkpoint_of_other_data_is_refused(run: Path) -> None:
    before = files(run)
    for others in (participants()[:3], participants((41, 9, 25, 70))):
        with pytest.raises(UserError, match=r"whose participants have \[40, 9, 25, 70\] examples"):
            msfusion.simulate(net(), others, TEST, settings(), out=run, resume=True)
    assert files(run) == before


def test_a_missing_checkpoint_is_refused(run: Path) -> None:
    (run / checkpoint.FILE_NAME).unlink()
    refused(run, "found no checkpoint.safetensors", resume=True)


def test_a_missing_directory_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found no checkpoint"):
        play(tmp_path / "nowhere", resume=True)
    assert not (tmp_path / "nowhere").exists()


def test_resuming_from_nowhere_is_refused() -> None:
    with pytest.raises(UserError, match="expected a run directory to resume from"):
        play(None, resume=True)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_checkpoint_is_refused(run: Path, keep: int) -> None:
    path = run / checkpoint.FILE_NAME
    path.write_bytes(path.read_bytes()[:keep])
    refused(run, "it cannot be read", resume=True)


@pytest.mark.parametrize("bit", [0, 3, 7])
def test_a_checkpoint_with_one_wrong_bit_is_refused(run: Path, bit: int) -> None:
    path = run / checkpoint.FILE_NAME
    whole = path.read_bytes()
    for place in range(0, len(whole), 41):
        broken = bytearray(whole)
        broken[place] ^= 1 << bit
        path.write_bytes(broken)
        with pytest.raises(UserError) as caught:
            checkpoint.load(run)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    assert checkpoint.load(run)[1]["rounds_done"] == 3


def test_changed_values_and_facts_are_refused(run: Path) -> None:
    from safetensors.torch import save_file

    path = run / checkpoint.FILE_NAME
    tensors, facts = checkpoint.load(run)
    names = sorted(name for name in tensors if name.startswith("model/"))
    said = json.dumps(facts)
    digest = checkpoint.digest(tensors, said)
    fresh = {name: tensor.clone() for name, tensor in tensors.items()}
    for changed, text in (
        ({**fresh, names[0]: -fresh[names[0]]}, said),
        (fresh, json.dumps({**facts, "rounds_done": 2})),
        ({name: tensor for name, tensor in fresh.items() if name != names[0]}, said),
    ):
        save_file(changed, path, metadata={"facts": text, "digest": digest})
        refused(run, "its digest tells that it has changed", resume=True)
    save_file(fresh, path, metadata={"facts": said})
    refused(run, "its digest", resume=True)


@pytest.mark.parametrize("content", [b"not a checkpoint", b"\x00" * 500, b"\xff" * 500])
def test_a_file_that_is_no_checkpoint_is_refused(run: Path, content: bytes) -> None:
    (run / checkpoint.FILE_NAME).write_bytes(content)
    refused(run, "it cannot be read", resume=True)


def test_a_safetensors_file_of_something_else_is_refused(run: Path) -> None:
    from safetensors.torch import save_file

    for metadata in (None, {"facts": "{}"}, {"facts": "[]"}, {"facts": "nonsense"}):
        save_file({"x": torch.zeros(2)}, run / checkpoint.FILE_NAME, metadata=metadata)
        refused(run, "to be a checkpoint of msfusion", resume=True)


def test_a_checkpoint_ahead_of_its_records_is_refused(run: Path) -> None:
    path = run / "records.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    refused(run, "to record round 2", resume=True)


def test_a_failed_write_keeps_the_old_checkpoint(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run / checkpoint.FILE_NAME).read_bytes()

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        play(run, resume=True, rounds=5)
    assert (run / checkpoint.FILE_NAME).read_bytes() == before
    monkeypatch.undo()
    assert len(play(run, resume=True, rounds=5).history) == 2


# --- data and settings that cannot work


def test_no_participant() -> None:
    with pytest.raises(UserError, match="at least one participant"):
        msfusion.simulate(net(), [], TEST, settings())


@pytest.mark.parametrize("number", [0, 2])
def test_a_participant_without_data_is_named(number: int) -> None:
    sizes = [4, 4, 4]
    sizes[number] = 0
    with pytest.raises(UserError, match=f"none for participant {number} of 3"):
        msfusion.simulate(net(), participants(tuple(sizes)), TEST, settings())


def test_no_test_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a test set with at least one example"):
        msfusion.simulate(net(), participants(), points(0, 0), settings(), out=tmp_path)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (Run(), "one of width, share, memory, flops for a participant's part, got none"),
        (Run(width=0.5, share=0.5), "got width 0.5 and share 0.5"),
        (Run(width=0.0), "setting width"),
        (Run(width=1.5), "setting width"),
        (Run(width=math.nan), "setting width"),
        (Run(share=-1), "setting share"),
        (Run(width=0.01), "units of axis 'second.out' round to none"),
        (Run(share=0.001), "give participants more"),
        (Run(width=0.5, rounds=0), "setting rounds"),
        (Run(width=0.5, overlap=1.0), "setting overlap"),
        (Run(width=0.5, train=msfusion.Train(lr=0)), "setting train.lr"),
        (Run(width=0.5, train=msfusion.Train(batch=0)), "setting train.batch"),
        (Run(width=0.5, train=msfusion.Train(optimizer="rmsprop")), "setting train.optimizer.*rmsprop"),  # type: ignore[arg-type]
        (Run(width=0.5, method="msfussion"), "did you mean 'msfusion'"),
        (Run(width=0.5, device="gpu"), "device.*got 'gpu'"),
    ],
)
def test_settings_out_of_their_range(run: Run, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as caught:
        msfusion.simulate(net(), participants(), TEST, run, out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_label_outside_the_classes_names_the_range() -> None:
    bad = TensorDataset(torch.zeros(4, 5), torch.tensor([0, 1, 7, 2]))
    with pytest.raises(UserError, match=r"labels from 0 to 2.*got 7"):
        msfusion.simulate(net(), [points(8, 0), bad], TEST, settings())


def test_divergence_is_one_sentence_and_keeps_the_rounds_before(tmp_path: Path) -> None:
    """Five rounds train, then the loss of every participant is not a number."""
    play(tmp_path / "good", rounds=2)
    rounds = 0

    def loss(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal rounds
        rounds += output.requires_grad
        value = nn.functional.cross_entropy(output, targets)
        return value * (math.nan if rounds > 2 * 4 * 3 else 1.0)

    with pytest.raises(UserError, match=r"participant 0.*NaN.*train\.lr"):
        msfusion.simulate(net(), participants(), TEST, settings(rounds=9), loss=loss, out=tmp_path / "bad")
    saved, facts = checkpoint.load(tmp_path / "bad")
    assert facts["rounds_done"] == 2
    assert same(saved, tensors(tmp_path / "good"))


def test_a_huge_learning_rate_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"participant \d.*train\.lr"):
        play(tmp_path, rounds=30, train={"lr": 1e9}, model=net(norm=False))
    assert all(t.isfinite().all() for t in tensors(tmp_path).values())


def test_a_training_loss_that_is_no_number_names_round_and_participant(tmp_path: Path) -> None:
    """The gradients stay finite, and so do the parameters."""
    play(tmp_path / "good", rounds=2)
    steps = 0

    def loss(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += output.requires_grad
        late = steps > 3 * (2 * 4 + 1)  # three steps of four participants in two rounds, and of one
        return nn.functional.cross_entropy(output, targets) + (math.inf if late else 0.0)

    with pytest.raises(UserError, match=r"round 2, participant 1: .*NaN or infinity.*train\.lr"):
        msfusion.simulate(net(), participants(), TEST, settings(rounds=9), loss=loss, out=tmp_path / "bad")
    saved, facts = checkpoint.load(tmp_path / "bad")
    assert facts["rounds_done"] == 2
    assert same(saved, tensors(tmp_path / "good"))


@pytest.mark.parametrize("method", ["msfusion", "fedavg-small", "standalone"])
def test_a_score_that_is_no_number_ends_the_run_behind_its_round(method: str, tmp_path: Path) -> None:
    scores = 0

    def loss(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal scores
        scores += not output.requires_grad
        bad = scores > (4 if method == "standalone" else 1) and not output.requires_grad
        return nn.functional.cross_entropy(output, targets) + (math.nan if bad else 0.0)

    def play_on(resume: bool) -> None:
        run = settings(method=method, rounds=2)
        msfusion.simulate(net(), participants(), TEST, run, loss=loss, out=tmp_path, resume=resume)

    for resume in (False, True):
        with pytest.raises(UserError, match=r"round 1: .*finite loss.*got nan.*train\.lr"):
            play_on(resume)
        assert checkpoint.load(tmp_path)[1]["rounds_done"] == 2
        rounds = read(tmp_path).rounds
        assert [r["evaluation"] and r["evaluation"]["loss"] is None for r in rounds] == [False, True]


# --- few participants, few examples


@pytest.mark.parametrize("method", METHODS)
def test_one_participant(method: str) -> None:
    result = msfusion.simulate(net(), [points(30, 0)], TEST, settings(method=method))
    assert math.isfinite(result.evaluation.loss)


@pytest.mark.parametrize("method", ["msfusion", "standalone"])
def test_a_participant_with_one_example(method: str) -> None:
    result = msfusion.simulate(net(norm=False), participants((1, 30)), TEST, settings(method=method))
    assert math.isfinite(result.evaluation.loss)


@pytest.mark.parametrize(("sizes", "batch"), [((1, 1), 16), ((30, 30), 1)])
def test_batches_of_one_do_not_go_with_batch_norm(sizes: tuple[int, ...], batch: int) -> None:
    with pytest.raises(UserError, match=r"expected (batches|train\.batch) of at least 2.*batch norm"):
        msfusion.simulate(net(), participants(sizes), TEST, settings(train={"batch": batch}))


@pytest.mark.parametrize("method", ["msfusion", "fedavg-small", "standalone"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_participant_with_one_example_is_left_out_where_there_is_batch_norm(
    method: str, workers: int, tmp_path: Path
) -> None:
    run = settings(method=method, workers=workers, sample=0.7, rounds=4)
    result = msfusion.simulate(net(), participants((30, 1, 30)), TEST, run, out=tmp_path)
    assert math.isfinite(result.evaluation.loss)
    left = [one for r in result.history for one in r["dropped"]]
    assert {one["participant"] for one in left} == {1}
    assert all("expected batches of at least 2 examples" in one["reason"] for one in left)
    assert not any(1 in r["participants"] for r in result.history)
    one, two = (dict(read(tmp_path).header["participants"][i]) for i in (1, 0))
    assert one["flops_per_step"] * 16 == two["flops_per_step"] * 2


def test_a_round_may_pass_in_which_all_are_left_out() -> None:
    run = settings(sample=0.4, rounds=6)
    result = msfusion.simulate(net(), participants((30, 1)), TEST, run)
    assert [r["participants"] for r in result.history if r["train_loss"] is None]
    assert all(note(r) for r in result.history)


def test_batches_of_one_do_where_a_channel_has_several_values() -> None:
    images = TensorDataset(torch.randn(1, 2, 4, 4), torch.zeros(1, dtype=torch.int64))
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    result = msfusion.simulate(model, [images, images], images, settings(rounds=1))
    assert result.history[0]["participants"] == [0, 1]


def test_other_errors_of_a_model_are_not_hidden() -> None:
    def loss(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise ValueError("mine")

    with pytest.raises(ValueError, match=r"^mine$"):
        msfusion.simulate(net(), participants(), TEST, settings(), loss=loss)


def test_costs_are_those_of_the_batches_that_there_are(tmp_path: Path) -> None:
    """The second participant has 9 examples where a batch has 16."""
    play(tmp_path, method="fedavg")
    run = read(tmp_path)
    big, small = run.header["participants"][0], run.header["participants"][1]
    assert big["flops_per_step"] * 9 == small["flops_per_step"] * 16
    assert small["memory_bytes"] < big["memory_bytes"]
    per_round = sum(p["flops_per_step"] for p in run.header["participants"]) * 3
    assert {r["flops"] for r in run.rounds} == {per_round}


# --- what is left on disk


def test_the_header_says_what_was_run(tmp_path: Path) -> None:
    play(tmp_path)
    header = read(tmp_path).header
    assert (header["method"], header["seed"], header["metric"]) == ("msfusion", 0, "accuracy")
    assert header["config"]["width"] == 0.5
    assert header["config"]["train"]["steps"] == 3
    assert header["versions"]["torch"] == torch.__version__
    assert [p["examples"] for p in header["participants"]] == list(SIZES)
    assert header["model"]["axes"] == {"first.out": 12, "second.out": 7}
    assert header["model"]["parameters"] == 5 * 12 + 12 + 24 + 12 * 7 + 7 + 7 * 3 + 3


def test_records_hold_the_windows_that_were_trained(tmp_path: Path) -> None:
    play(tmp_path)
    windows = read(tmp_path).rounds[1]["windows"]
    assert windows.keys() == {"first.out", "second.out"}
    for axis, width in (("first.out", 6), ("second.out", 4)):
        assert [sum(b - a for a, b in windows[axis][str(p)]) for p in range(4)] == [width] * 4


def test_axes_that_all_train_whole_are_not_pictured(tmp_path: Path) -> None:
    play(tmp_path, width=0.95)  # 11 of 12 units, and 7 of 7
    run = read(tmp_path)
    assert run.header["pictured"] == list(run.rounds[0]["windows"]) == ["first.out"]


def test_a_run_without_a_directory_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    play()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("evaluate_every", [1, 100])
def test_every_checkpoint_holds_estimated_batch_norm(evaluate_every: int, tmp_path: Path) -> None:
    """Whoever exports a run that was stopped gets a model that works."""
    stopped_after(2, tmp_path / "run", rounds=5, checkpoint_every=1, evaluate_every=evaluate_every)
    expected = state(play(rounds=2))
    saved = {n[6:]: t for n, t in tensors(tmp_path / "run").items() if n.startswith("model/")}
    assert same(saved, expected)
    assert saved["norm.num_batches_tracked"] == len(SIZES)


def test_records_are_readable_json(tmp_path: Path) -> None:
    play(tmp_path)
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["header", "round", "round", "round"]


class Projected(torch.nn.Module):
    """A layer whose weights are a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = torch.nn.Linear(5, 12), torch.nn.Linear(4, 3)
        self.register_buffer("projection", torch.randn(4, 12, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.nn.functional.linear(torch.relu(self.first(x)), self.projection))


def test_a_buffer_that_sums_over_a_cut_axis_stays_as_it_is() -> None:
    model = Projected()
    before = model.projection.clone()
    result = play(model=model)
    assert torch.equal(state(result)["projection"], before)
    assert result.coverage.share == 1


@pytest.mark.parametrize(
    ("example", "words"),
    [(torch.zeros(2, 8), "got Tensor: pack"), (((torch.zeros(2, 8),),), "got tuple: pack")],
)
def test_example_inputs_are_a_tuple_of_tensors(example: Any, words: str) -> None:
    data = TensorDataset(torch.zeros(4, 8), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(UserError, match=words):
        Problem(nn.Linear(8, 4), example, [data], data)
