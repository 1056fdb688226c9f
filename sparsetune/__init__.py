"""Learn a slice of each layer over a frozen backbone rebuilt from a seed; save only the slice."""

from __future__ import annotations

from importlib.metadata import version

from sparsetune.adapt import adapt_, adapted, merge_
from sparsetune.backbone import Backbone
from sparsetune.budget import choose
from sparsetune.choice import Choice
from sparsetune.config import FitConfig
from sparsetune.data import Data, open_data
from sparsetune.ensemble import Ensemble
from sparsetune.errors import SparsetuneError
from sparsetune.hub import from_pretrained, push, save_pretrained
from sparsetune.learn import Learn
from sparsetune.plan import Plan, plan
from sparsetune.preprocessing import Preprocessing
from sparsetune.saving import inspect, load, save, verify
from sparsetune.slim import slim
from sparsetune.slimfile import load_slim
from sparsetune.slimming import slimming
from sparsetune.tasks import Tasks
from sparsetune.training import Epoch, fit
from sparsetune.zoo import create, names

__version__ = version("sparsetune")

__all__ = [
    "Backbone",
    "Choice",
    "Data",
    "Ensemble",
    "Epoch",
    "FitConfig",
    "Learn",
    "Plan",
    "Preprocessing",
    "SparsetuneError",
    "Tasks",
    "adapt_",
    "adapted",
    "choose",
    "create",
    "fit",
    "from_pretrained",
    "inspect",
    "load",
    "load_slim",
    "merge_",
    "names",
    "open_data",
    "plan",
    "push",
    "save",
    "save_pretrained",
    "slim",
    "slimming",
    "verify",
]
