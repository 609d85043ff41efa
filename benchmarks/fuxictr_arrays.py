"""Encoded rows as ``benchmarks.arrays`` writes them, for the scripts that run in FuxiCTR's environment."""

import json
from collections import OrderedDict

import numpy as np
import torch
from fuxictr.features import FeatureMap

BATCH = 4096


def _module_name(name):
    """PyTorch's names of modules have no dots."""
    return name.replace(".", "_")


def feature_map(folder, dim, *, attend=False):
    """FuxiCTR's description of the features in ``folder``, with embeddings of ``dim``, shared by table.

    Bags and histories are averaged; of histories that share a table with the row itself the events are kept if a model
    is to ``attend`` to them.
    """
    description = json.loads((folder / "features.json").read_text())
    features, owners = OrderedDict(), {}
    for name, feature in ((_module_name(name), feature) for name, feature in description.items()):
        entry = {
            "source": "",
            "type": "categorical" if feature["kind"] == "id" else "sequence",
            "padding_idx": 0,
            "vocab_size": feature["rows"],
            "embedding_dim": dim,
        }
        owner = owners.setdefault(feature["table"], name)
        if owner != name:
            entry["share_embedding"] = owner
        if feature["kind"] != "id":
            entry["max_len"] = feature["width"]
            if attend and feature["kind"] == "history" and owner != name:
                entry["attended"] = True
            else:
                entry["feature_encoder"] = "layers.MaskedAveragePooling()"
        features[name] = entry
    described = FeatureMap("arrays", str(folder))
    described.features, described.labels = features, ["label"]
    described.num_fields = len(features)
    described.total_features = sum(entry["vocab_size"] for entry in features.values())
    described.set_column_index()
    return described


class Batches:
    """Batches of a split, all its rows in a new random order each time if ``shuffle``."""

    def __init__(self, folder, *, size=BATCH, shuffle=False, rows=None):
        paths = sorted(folder.glob("*.npy"))
        self.columns = {_module_name(path.stem): torch.from_numpy(np.load(path)[:rows]) for path in paths}
        self.size, self.shuffle = size, shuffle

    @property
    def rows(self):
        return len(self.columns["label"])

    def __len__(self):
        return -(-self.rows // self.size)

    def __iter__(self):
        order = torch.randperm(self.rows) if self.shuffle else torch.arange(self.rows)
        for some in order.split(self.size):
            yield {name: values[some] for name, values in self.columns.items()}
