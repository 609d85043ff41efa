"""DCNv2 of FuxiCTR's own layers, for the scripts that run in FuxiCTR's environment."""

import torch
from fuxictr.pytorch.layers import CrossNetV2, FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel
from torch import nn


class DCNv2(BaseModel):
    """Three cross layers beside a 400-400 tower, embeddings of 16."""

    def __init__(self, feature_map, **settings):
        super().__init__(feature_map, **settings)
        self.embedding_layer = FeatureEmbedding(feature_map, 16)
        width = feature_map.sum_emb_out_dim()
        self.crossnet = CrossNetV2(width, 3)
        self.tower = MLP_Block(input_dim=width, hidden_units=[400, 400], hidden_activations="relu", batch_norm=False)
        self.fc = nn.Linear(width + 400, 1)
        self._max_gradient_norm = 10.0
        self.compile("adam", "binary_crossentropy", 1e-3)
        self.reset_parameters()

    def forward(self, inputs):
        row = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
        logits = self.fc(torch.cat([self.crossnet(row), self.tower(row)], dim=-1))
        return {"y_pred": self.output_activation(logits)}
