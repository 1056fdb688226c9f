"""An adapted model in Lightning, and a callback that saves its delta when it is better than before.

Run: python examples/lightning_callback.py [epochs]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsetune as st
from sparsetune.data import loader


class SaveDelta(L.Callback):
    """Save the delta of ``module.net`` at the end of each epoch, or of those whose metric is the best so far.

    Args:
        path: The file; each save replaces it.
        monitor: A logged metric; ``None`` saves every epoch.
        mode: Whether a better value is smaller (``min``) or larger (``max``).
        **about: ``classes``, ``preprocessing`` and ``training``, as for ``st.save``.
    """

    def __init__(
        self, path: Path, monitor: str | None = None, mode: Literal["min", "max"] = "min", **about: Any
    ) -> None:
        self.path, self.monitor, self.about = path, monitor, about
        self.sign = 1.0 if mode == "min" else -1.0
        self.best = float("inf")

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Validation has run by now, and its metrics are there."""
        if self.monitor is not None:
            value = self.sign * float(trainer.callback_metrics[self.monitor])
            if not value < self.best:
                return
            self.best = value
        if trainer.is_global_zero:
            st.save(module.net, self.path, **self.about)

    def state_dict(self) -> dict[str, Any]:
        """Go into Lightning's own checkpoint, so that a resumed training remembers the best value."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Come back from Lightning's own checkpoint."""
        self.best = state["best"]


class Classifier(L.LightningModule):
    """What Lightning wants around a model and its data."""

    def __init__(self, net: nn.Module, data: st.Data) -> None:
        super().__init__()
        self.net, self.data = net, data

    def train_dataloader(self) -> Any:
        """Give the epoch's batches."""
        form = self.data.preprocessing
        return loader(self.data.train, form, batch_size=64, train=True, epoch=self.current_epoch)

    def val_dataloader(self) -> Any:
        """Give the test pictures."""
        return loader(self.data.test, self.data.preprocessing, batch_size=512)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss."""
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Log the accuracy."""
        x, y = batch
        self.log("accuracy", (self.net(x).argmax(1) == y).float().mean(), batch_size=len(x))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Optimise the model's parameters, which are its learned slices."""
        return torch.optim.AdamW(self.net.parameters(), lr=3e-3)


def trainer(epochs: int, folder: Path, *callbacks: L.Callback) -> L.Trainer:
    """Make a trainer that asks for new batches in each epoch, on the CPU."""
    return L.Trainer(
        max_epochs=epochs,
        default_root_dir=folder,
        callbacks=list(callbacks),
        reload_dataloaders_every_n_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def main(epochs: int = 3) -> float:
    """Train WRN-10-2 at 25 % on the embedded digits; return the saved delta's test accuracy."""
    data = st.open_data("digits")
    net = st.create("wrn28_4", depth=10, width=2, num_classes=len(data.classes), seed=0)
    st.adapt_(net, st.Learn(fraction=0.25))
    module = Classifier(net, data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "best.safetensors"
        best = SaveDelta(path, "accuracy", "max", classes=data.classes, preprocessing=data.preprocessing)
        trainer(epochs, Path(folder), best).fit(module)
        module.net = st.load(path)
        (result,) = trainer(epochs, Path(folder)).validate(module)
    return result["accuracy"]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
