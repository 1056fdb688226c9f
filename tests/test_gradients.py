import torch
from torch import nn
from torch.nn import functional as F

from sparsetune.gradients import mean_gradients


def test_the_mean_of_each_batchs_gradient_in_training_mode():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    for value in net.parameters():
        value.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    batches = [(torch.randn(5, 3, 8, 8), torch.randint(2, (5,))) for _ in range(3)]
    found = mean_gradients(net, batches, torch.device("cpu"))
    assert set(found) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    values = {name: value.clone().requires_grad_() for name, value in net.named_parameters()}
    twin = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2)).train()
    loss = sum(F.cross_entropy(torch.func.functional_call(twin, values, (x,)), y) for x, y in batches) / 3
    names = ["0.weight", "3.weight"]
    for name, wanted in zip(names, torch.autograd.grad(loss, [values[n] for n in names]), strict=True):
        torch.testing.assert_close(found[name], wanted)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not net.training
    assert not any(value.requires_grad for value in net.parameters())
