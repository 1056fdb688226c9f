"""An optimiser that was made before ``adapt_`` or ``merge_`` says so at its next step."""

import copy

import pytest
import torch
from torch import nn

import sparsetune as st
from sparsetune.errors import ConfigError


@pytest.mark.parametrize("learn", [st.Learn(fraction=0.5), st.Learn(rank=1), st.Learn(filters=0)])
def test_an_optimiser_of_before_is_refused(learn):
    net, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(5, 3)
    for change in (lambda: st.adapt_(net, learn), lambda: st.merge_(net)):
        old = torch.optim.Adam(net.parameters())
        name = "merge_" if hasattr(net, "_sparsetune_adapted") else "adapt_"
        partial = any(part.partial for part in st.adapted(net).plan) if name == "merge_" else True
        change()
        net(x).sum().backward()
        before = copy.deepcopy(net.state_dict())
        if partial:
            with pytest.raises(ConfigError, match=rf"^this Adam was made before {name}, .* make it after"):
                old.step()
            assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
        torch.optim.Adam(net.parameters()).step()
