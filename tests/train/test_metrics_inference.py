from __future__ import annotations

import torch
from torch import nn

from sparsetune.train.metrics import joined_rows, predict_logits


class Recorder(nn.Module):
    """Doubles its input; remembers in which mode it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, x):
        self.modes.append((self.training, torch.is_inference_mode_enabled()))
        if x.isnan().any():
            raise RuntimeError
        return self.weight * x


def test_gives_all_outputs_in_order_as_float32():
    batches = [(torch.full((2, 3), 1.0), torch.tensor([0, 1])), (torch.full((1, 3), 4.0), torch.tensor([2]))]
    net = Recorder()
    logits, labels = predict_logits(net, batches)
    assert logits.dtype == torch.float32
    assert logits.tolist() == [[2.0] * 3, [2.0] * 3, [8.0] * 3]
    assert labels.tolist() == [0, 1, 2]
    assert net.modes == [(False, True)] * 2


def test_gives_the_model_its_mode_back():
    batch, bad = [(torch.ones(1, 3), torch.zeros(1))], [(torch.full((1, 3), torch.nan), torch.zeros(1))]
    for training in (True, False):
        net = Recorder().train(training)
        predict_logits(net, batch)
        assert net.training is training
        try:
            predict_logits(net, bad)
        except RuntimeError:
            assert net.training is training


def test_takes_a_model_without_parameters():
    assert predict_logits(nn.Identity(), [(torch.ones(1, 3), torch.zeros(1))])[0].shape == (1, 3)


def test_no_batch_gives_no_row_and_joins_those_of_others():
    logits, labels = predict_logits(Recorder(), [])
    assert (logits.shape, labels.shape, labels.dtype) == ((0, 0), (0,), torch.int64)
    rows = torch.arange(6.0).view(2, 3)
    assert torch.equal(joined_rows([logits, rows, logits, rows]), torch.cat([rows, rows]))
    assert joined_rows([logits, logits]).shape == (0, 0)
