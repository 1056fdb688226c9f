"""Learn a slice of each layer over a frozen backbone rebuilt from a seed; save only the slice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparsetune.host import after_import, lazily

if TYPE_CHECKING:
    from sparsetune.backbone import Backbone, create, names
    from sparsetune.data import Data, Preprocessing, open_data
    from sparsetune.delta import inspect, load, save, verify
    from sparsetune.errors import SparsetuneError
    from sparsetune.narrow import load_slim, slim, slimming
    from sparsetune.parts import Plan, plan
    from sparsetune.publish import from_peft, from_pretrained, push, save_pretrained, to_peft
    from sparsetune.runs import Choice, Report, choose, evaluate
    from sparsetune.serve import Ensemble, Tasks
    from sparsetune.sliced import adapt_, adapted, merge_
    from sparsetune.spec import FitConfig, Learn
    from sparsetune.train import Epoch, History, fit

    __version__: str
else:
    _hand_on = lazily(__name__)

    def __getattr__(name: str) -> Any:
        if name != "__version__":
            return _hand_on(name)
        from importlib.metadata import version  # late: it takes as long as all else here

        return version("sparsetune")


__all__ = [
    "Backbone",
    "Choice",
    "Data",
    "Ensemble",
    "Epoch",
    "FitConfig",
    "History",
    "Learn",
    "Plan",
    "Preprocessing",
    "Report",
    "SparsetuneError",
    "Tasks",
    "adapt_",
    "adapted",
    "choose",
    "create",
    "evaluate",
    "fit",
    "from_peft",
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
    "to_peft",
    "verify",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


after_import("timm", "sparsetune.backbone.models")  # which registers them there
