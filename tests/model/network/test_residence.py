"""What a pass borrows of a model it gives back, also where it never begins."""

import pytest
import torch
from torch import nn

from rose.model.network.residence import evaluating


def test_a_model_that_has_no_room_on_the_device_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2)).train()
    module[1].eval()
    moves: list[torch.device] = []

    def no_room(device: torch.device) -> None:
        moves.append(device)
        if device.type != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "to", no_room)
    with pytest.raises(torch.OutOfMemoryError), evaluating(module, torch.device("cuda")):
        pass
    assert [one.training for one in module.modules()] == [True, True, False, True]
    assert moves == [torch.device("cuda"), torch.device("cpu")]
