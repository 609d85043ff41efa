"""Models of FuxiCTR's own layers and training step, for the scripts that run in FuxiCTR's environment.

FuxiCTR's package has the layers; the models that the public leaderboard runs stand in its repository alone. Here they
are, put together as there: DCNv2 (Wang et al. 2021, parallel), FinalMLP (Mao et al. 2023), FinalNet (Zhu et al. 2023)
and DIN (Zhou et al. 2018).
"""

import tempfile
from itertools import pairwise
from pathlib import Path

import torch
from fuxictr.pytorch.layers import CrossNetV2, DIN_Attention, FeatureEmbedding, FeatureEmbeddingDict, MLP_Block
from fuxictr.pytorch.models import BaseModel
from torch import nn


class _Model(BaseModel):
    """A click model on the CPU; its best weights by valid AUC lie in ``folder``."""

    attends = False

    def __init__(self, feature_map, regularizer=None, folder=None):
        folder = Path(folder or tempfile.mkdtemp())
        super().__init__(
            feature_map,
            task="binary_classification",
            metrics=["AUC"],
            model_root=str(folder),
            embedding_regularizer=regularizer,
            verbose=0,
        )
        Path(self.model_dir).mkdir(parents=True, exist_ok=True)
        self._max_gradient_norm = 10.0

    def _ready(self):
        """Adam at 0.001, and FuxiCTR's initial weights."""
        self.compile("adam", "binary_crossentropy", 1e-3)
        self.reset_parameters()

    def _probability(self, logits):
        return {"y_pred": self.output_activation(logits)}


class DCNv2(_Model):
    """Full cross layers beside a tower."""

    def __init__(self, feature_map, dim, *, layers, hidden, dropout=0.0, batch_norm=False, **settings):
        super().__init__(feature_map, **settings)
        self.embedding_layer = FeatureEmbedding(feature_map, dim)
        width = feature_map.sum_emb_out_dim()
        self.crossnet = CrossNetV2(width, layers)
        self.tower = MLP_Block(width, hidden, "relu", dropout_rates=dropout, batch_norm=batch_norm)
        self.fc = nn.Linear(width + hidden[-1], 1)
        self._ready()

    def forward(self, inputs):
        row = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
        return self._probability(self.fc(torch.cat([self.crossnet(row), self.tower(row)], dim=-1)))


class FinalMLP(_Model):
    """Two towers that meet in a bilinear form; a context feature of its own gates what each is shown."""

    def __init__(self, feature_map, dim, *, contexts, gate, hidden, heads, dropout, **settings):
        super().__init__(feature_map, **settings)
        self.embedding_layer = FeatureEmbedding(feature_map, dim)
        width = feature_map.sum_emb_out_dim()
        self.contexts = nn.ModuleList(
            FeatureEmbedding(feature_map, dim, required_feature_columns=[name]) for name in contexts
        )
        self.gates = nn.ModuleList(
            MLP_Block(dim, gate, "relu", output_dim=width, output_activation="sigmoid") for _ in contexts
        )
        self.towers = nn.ModuleList(
            MLP_Block(width, units, "relu", dropout_rates=dropout, batch_norm=True) for units in hidden
        )
        self.linear = nn.ModuleList(nn.Linear(units[-1], 1) for units in hidden)
        left, right = (units[-1] for units in hidden)
        self.heads = heads
        self.bilinear = nn.Parameter(nn.init.xavier_normal_(torch.empty(left * right // heads, 1)))
        self._ready()

    def forward(self, inputs):
        features = self.get_inputs(inputs)
        row = self.embedding_layer(features, flatten_emb=True)
        shown = [
            row * 2 * gate(context(features, flatten_emb=True))
            for context, gate in zip(self.contexts, self.gates, strict=True)
        ]
        outs = [tower(part) for tower, part in zip(self.towers, shown, strict=True)]
        left, right = (out.unflatten(-1, (self.heads, -1)) for out in outs)
        form = self.bilinear.view(self.heads, left.shape[-1], right.shape[-1])
        met = torch.einsum("bhi,hij,bhj->b", left, form, right).unsqueeze(-1)
        return self._probability(met + sum(linear(out) for linear, out in zip(self.linear, outs, strict=True)))


class _Interactions(nn.Sequential):
    """Layers of FinalNet: each hands on half of its outputs, and the product of both halves."""

    class Halves(nn.Module):
        def forward(self, both):
            kept, factor = both.chunk(2, dim=-1)
            return torch.cat([kept, kept * factor], dim=-1)

    def __init__(self, width, hidden, dropout):
        layers = []
        for before, after in pairwise([width, *hidden]):
            layers += [nn.Linear(before, after), self.Halves(), nn.BatchNorm1d(after), nn.ReLU(), nn.Dropout(dropout)]
        super().__init__(*layers)


class _Gating(nn.Module):
    """Fields beside themselves times a linear function of all of them, which starts at one."""

    def __init__(self, fields):
        super().__init__()
        self.linear = nn.Linear(fields, fields)

    def init_weights(self):
        nn.init.zeros_(self.linear.weight)
        nn.init.ones_(self.linear.bias)

    def forward(self, fields_BFd):
        gates_BFd = self.linear(fields_BFd.transpose(1, 2)).transpose(1, 2)
        return torch.cat([fields_BFd, fields_BFd * gates_BFd], dim=1)


class FinalNet(_Model):
    """Two blocks, the first behind a gate, each taught by the mean of both as well."""

    def __init__(self, feature_map, dim, *, hidden, dropout, **settings):
        super().__init__(feature_map, **settings)
        self.embedding_layer = FeatureEmbedding(feature_map, dim)
        width = feature_map.sum_emb_out_dim()
        self.gating = _Gating(feature_map.num_fields)
        self.blocks = nn.ModuleList(
            _Interactions(inputs, units, dropout) for inputs, units in zip((2 * width, width), hidden, strict=True)
        )
        self.heads = nn.ModuleList(nn.Linear(units[-1], 1) for units in hidden)
        self._ready()

    def forward(self, inputs):
        fields_BFd = self.embedding_layer(self.get_inputs(inputs))
        logits = [
            head(block(seen.flatten(start_dim=1)))
            for head, block, seen in zip(self.heads, self.blocks, (self.gating(fields_BFd), fields_BFd), strict=True)
        ]
        return self._probability(sum(logits) / len(logits)) | {"logits": logits}

    def add_loss(self, return_dict, y_true):
        taught = [self.output_activation(logits) for logits in return_dict["logits"]]
        mean = return_dict["y_pred"].detach()
        return super().add_loss(return_dict, y_true) + sum(self.loss_fn(block, mean) for block in taught)


class DIN(_Model):
    """Histories are summed by attention: what each event weighs is computed from it and the row's own candidate."""

    attends = True

    def __init__(self, feature_map, dim, *, hidden, attention, **settings):
        super().__init__(feature_map, **settings)
        self.dim = dim
        self.embedding_layer = FeatureEmbeddingDict(feature_map, dim)
        self.events = [name for name, entry in feature_map.features.items() if entry.get("attended")]
        self.candidates = [feature_map.features[name]["share_embedding"] for name in self.events]
        self.attention = DIN_Attention(dim * len(self.events), attention, "dice")
        self.tower = MLP_Block(feature_map.sum_emb_out_dim(), hidden, "relu", output_dim=1)
        self._ready()

    def forward(self, inputs):
        features = self.get_inputs(inputs)
        embedded = self.embedding_layer(features)
        candidate, events = (
            torch.cat([embedded[name] for name in names], dim=-1) for names in (self.candidates, self.events)
        )
        pooled = self.attention(candidate, events, features[self.events[0]] != 0)
        embedded |= dict(zip(self.events, pooled.split(self.dim, dim=-1), strict=True))
        return self._probability(self.tower(self.embedding_layer.dict2tensor(embedded, flatten_emb=True)))
