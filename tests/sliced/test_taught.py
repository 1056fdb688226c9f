from __future__ import annotations

import copy
import pickle

from torch import nn

import sparsetune as st
from sparsetune.sliced.adapt import Taught, taught, teach


def test_what_a_model_was_taught_goes_with_its_copies():
    net = nn.Linear(2, 2)
    assert taught(net) == Taught(None, None, None)
    what = Taught(("a", "b"), st.Preprocessing((1, 2, 2), (0.5,), (0.5,)))
    teach(net, what)
    assert taught(copy.deepcopy(net)) == taught(pickle.loads(pickle.dumps(net))) == what
    assert list(net.state_dict()) == ["weight", "bias"]
