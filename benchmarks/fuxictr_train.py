"""FuxiCTR's DCNv2 on batches that are ready made; runs in FuxiCTR's own environment, prints seconds of each step.

The model is put together of FuxiCTR's layers as its DCNv2 (parallel structure) is, and trained by FuxiCTR's step.

Arguments: a folder with one ``.npy`` of encoded ids a feature (two-dimensional: a padded bag) and ``label.npy``, the
batch size, the number of steps, the number of warm-up steps.
"""

import json
import logging
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr_dcnv2 import DCNv2

folder, batch_size, steps, warm_up = Path(sys.argv[1]), *map(int, sys.argv[2:5])
logging.disable(logging.CRITICAL)
torch.manual_seed(0)
columns = {path.stem: np.load(path) for path in sorted(folder.glob("*.npy"))}
features = FeatureMap("bench", str(folder))
features.features = OrderedDict()
for name, ids in columns.items():
    if name == "label":
        continue
    entry = {
        "source": "",
        "type": "categorical",
        "padding_idx": 0,
        "vocab_size": int(ids.max()) + 1,
        "embedding_dim": 16,
    }
    if ids.ndim == 2:
        entry |= {"type": "sequence", "max_len": ids.shape[1], "feature_encoder": "layers.MaskedAveragePooling()"}
    features.features[name] = entry
features.num_fields = len(features.features)
features.total_features = sum(entry["vocab_size"] for entry in features.features.values())
features.labels = ["label"]
features.set_column_index()
model = DCNv2(features, gpu=-1, metrics=["AUC"], task="binary_classification", model_root=tempfile.mkdtemp(), verbose=0)
model.train()
seconds = []
for step in range(warm_up + steps):
    rows = slice(step * batch_size % (len(columns["label"]) - batch_size), None)
    batch = {name: torch.from_numpy(np.ascontiguousarray(ids[rows][:batch_size])) for name, ids in columns.items()}
    batch["label"] = batch["label"].float()
    begin = time.perf_counter()
    model.train_step(batch)
    seconds.append(time.perf_counter() - begin)
print(json.dumps(seconds[warm_up:]))
