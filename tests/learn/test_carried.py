"""What a checkpoint holds of what passes from round to round beside the model."""

import torch

from msfusion.core.axes import Selection
from msfusion.core.merge import Contribution
from msfusion.learn.carried import Carried
from msfusion.learn.memory import Memory


def test_what_is_carried_comes_back() -> None:
    windows: Selection = {"a": ((0, 2), (5, 6)), "b.c": ((1, 2),)}
    memory = Memory(windows, {"x.w": torch.randn(3, 1)}, {"first/x.w": torch.randn(3, 1)})
    late = Contribution(2, windows, {"x.w": torch.randn(3, 1)}, 7, {"x.w": (1, ((0, 1),))})
    state = Carried({3: memory}, (late,)).state()
    back = Carried.restored({**state, "model/x.w": torch.zeros(9)}, torch.device("cpu"))
    assert back.previous[3].windows == back.late[0].selection == windows
    assert torch.equal(back.previous[3].values["x.w"], memory.values["x.w"])
    assert torch.equal(back.previous[3].optimizer["first/x.w"], memory.optimizer["first/x.w"])
    assert (back.late[0].participant, back.late[0].weight, back.late[0].only) == (2, 7, late.only)
    assert torch.equal(back.late[0].values["x.w"], late.values["x.w"])


def test_who_has_nothing_to_remember_is_not_there() -> None:
    assert Carried.restored(Carried({3: Memory({})}).state(), torch.device("cpu")).previous.get(3) is None
