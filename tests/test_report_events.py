import sys
from pathlib import Path

import pytest

from msfusion.errors import UserError
from msfusion.events import Events
from test_report import a_header, a_round


def test_without_tensorboard_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r'pip install "msfusion\[report\]"'):
        Events(tmp_path)


def test_every_number_of_a_round_is_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start in (0, 1):  # the second time resumes after one round
        events = Events(tmp_path)
        for number in range(start, 3):
            events.round(a_round(a_header("msfusion", 0), number))
    read_back = EventAccumulator(str(tmp_path))
    read_back.Reload()
    assert "full model/accuracy" in read_back.Tags()["scalars"]
    assert [e.step for e in read_back.Scalars("windows/coverage")] == [0, 1, 2]
    assert "windows/shift" not in read_back.Tags()["scalars"]


def test_what_was_written_before_a_first_checkpoint_is_hidden(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    header = a_header("msfusion", 0)
    for rounds in (3, 5):  # begun, lost, and begun again
        events = Events(tmp_path)
        for number in range(rounds):
            events.round(a_round(header, number))
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert [event.step for event in found.Scalars("train/loss")] == [0, 1, 2, 3, 4]
