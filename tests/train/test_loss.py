import torch

from gptoss_tune.train.loss import LossMeter


def test_meter_gives_means_by_channel_and_starts_again():
    meter = LossMeter(torch.device("cpu"))
    token_losses = torch.tensor([[9.0, 2.0, 4.0, 3.0]])
    weights = torch.tensor([[0.0, 1.0, 0.5, 2.0]])
    channels = torch.tensor([[1, 1, 1, 3]])
    meter.add(token_losses, weights, channels)
    meter.add(torch.tensor([[5.0]]), torch.tensor([[1.0]]), torch.tensor([[3]]))
    logs = meter.read()
    assert logs["loss_analysis"] == 3.0  # the token of weight 0 is context
    assert logs["loss_final"] == 4.0
    assert "loss_commentary" not in logs
    assert logs["trained_tokens"] == 4
    assert logs["mean_loss"] == (2 + 2 + 6 + 5) / 4.5
    meter.reset()
    assert meter.read() == {"trained_tokens": 0.0}
