"""What a user asks for, as frozen values; nothing here imports torch.

- ``learn``: ``Learn``, which part of each layer is learned.
- ``config``: ``FitConfig``, how a training goes.

A value comes from Python, a command's options or a file's JSON, is checked once as it is made, and is never
changed: ``Learn`` goes to ``parts.plan``, and both go into the file.
"""

from sparsetune.spec.config import FREE, YELLOWFIN, FitConfig
from sparsetune.spec.learn import Learn, matches

__all__ = [
    "FREE",
    "FitConfig",
    "Learn",
    "YELLOWFIN",
    "matches",
]
