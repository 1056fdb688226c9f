"""Measures what a delta loses in fewer bits: accuracy and loss of each precision, as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import sparsetune as st
from sparsetune.data import loader, open_data
from sparsetune.delta import compress
from sparsetune.host import describe_machine
from sparsetune.parts import PRECISIONS
from sparsetune.train import predict_logits, score


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("delta", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--name", help="what to call the data")
    parser.add_argument("--test-limit", type=int)
    options = parser.parse_args()
    data = open_data(options.data, test_limit=options.test_limit)
    header = st.inspect(options.delta)
    rows = []
    with TemporaryDirectory() as folder:
        for dtype in ("float32", *PRECISIONS):
            path = options.delta if dtype == "float32" else Path(folder) / dtype
            if dtype != "float32":
                compress(options.delta, path, dtype)
            batches = loader(data.test, header.preprocessing or data.preprocessing, batch_size=256)
            logits, labels = predict_logits(st.load(path), batches)
            found = score(logits, labels)
            rows.append({"dtype": dtype, "bytes": path.stat().st_size, "top1": found.top1, "nll": found.nll})
    value = {"model": header.model, "learn": header.learn.to_json(), "data": options.name or data.name}
    value |= {"pictures": len(data.test), "epochs": header.training.get("config", {}).get("epochs")}
    print(json.dumps({**value, **describe_machine(), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
