"""An adapted Hugging Face image classifier in transformers' Trainer, saved as a delta over its checkpoint.

Run: python examples/transformers_trainer.py [epochs]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

import sparsetune as st


def build(classes: int) -> ResNetForImageClassification:
    """Make a small classifier with random weights; a published one comes from ``from_pretrained``."""
    torch.manual_seed(0)
    shape = {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [1, 1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(num_labels=classes, **shape))


def rows(split: Any, form: st.Preprocessing) -> list[dict[str, Any]]:
    """Give pictures and labels under the names of the model's arguments."""
    return [{"pixel_values": form.apply(picture), "labels": label} for picture, label in split]


def accuracy(prediction: Any) -> dict[str, float]:
    """Score what Trainer hands to ``compute_metrics``."""
    return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


def trainer(net: torch.nn.Module, data: st.Data, epochs: int, folder: str) -> Trainer:
    """Make a Trainer that writes no checkpoints of its own, on the CPU."""
    settings = TrainingArguments(
        folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=512,
        learning_rate=5e-3,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    train, test = (rows(split, data.preprocessing) for split in (data.train, data.test))
    return Trainer(net, settings, train_dataset=train, eval_dataset=test, compute_metrics=accuracy)


def main(epochs: int = 3) -> float:
    """Train at 25 % on the embedded digits; return the test accuracy of the delta, loaded again."""
    data = st.open_data("digits")
    with tempfile.TemporaryDirectory() as folder:
        net = build(len(data.classes))
        net.save_pretrained(f"{folder}/backbone")  # once, however many deltas stand on it
        st.adapt_(net, st.Learn(fraction=0.25), st.Backbone.from_module(net))
        trainer(net, data, epochs, folder).train()

        path = Path(folder) / "digits.safetensors"
        st.save(net, path, classes=data.classes, preprocessing=data.preprocessing)
        fresh = ResNetForImageClassification.from_pretrained(f"{folder}/backbone")
        loaded = st.load(path, module=fresh)
        result = trainer(loaded, data, epochs, folder).evaluate()
        size = path.stat().st_size
    print(f"delta {size / 1024:.0f} KiB, test accuracy {result['eval_accuracy']:.1%}")
    return result["eval_accuracy"]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
