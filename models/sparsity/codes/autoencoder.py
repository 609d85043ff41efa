"""Sparse autoencoders over embeddings: a dense vector becomes a few active codes out of many, each interpretable.

``codes = topk(relu(W (x - b) + c))``, ``x' = D codes + b`` with unit columns of D (top-k: Gao et al., 2406.04093), or
without the top-k and with an L1 penalty on the codes. A code that stops firing is reinitialized at the rows with the
largest reconstruction error, because otherwise dead units waste most of a large code book.

Letters: N vectors, d their width, C codes.
"""

import torch
from torch import Tensor, nn

from data_pipelines.config.base import Config
from models.sparsity.lever import Count, Strength


class AutoencoderConfig(Config):
    """A sparse autoencoder and its training.

    Attributes:
        codes: C.
        active: Active codes per vector (top-k); 0 leaves sparsity to ``l1``.
        l1: Weight of the mean absolute code in the loss.
        steps: Steps of Adam, on batches of ``batch`` vectors.
        revive_every: Steps between two searches for codes that have not fired since the previous one.
    """

    codes: Count = 256
    active: int = 8
    l1: Strength = 0.0
    steps: Count = 1500
    batch: Count = 512
    learning_rate: float = 3e-3
    revive_every: Count = 150
    seed: int = 0


class SparseAutoencoder(nn.Module):
    """Encoder, activation and decoder; see :func:`fit`."""

    def __init__(self, width: int, config: AutoencoderConfig) -> None:
        super().__init__()
        if not 0 <= config.active <= config.codes:
            raise ValueError(f"active must be between 0 and codes ({config.codes}), not {config.active}")
        self.config = config
        generator = torch.Generator().manual_seed(config.seed)
        decoder_Cd = nn.functional.normalize(torch.randn(config.codes, width, generator=generator), dim=1)
        self.decoder_Cd = nn.Parameter(decoder_Cd)
        self.encoder_Cd = nn.Parameter(decoder_Cd.clone())
        self.threshold_C = nn.Parameter(torch.zeros(config.codes))
        self.center_d = nn.Parameter(torch.zeros(width))

    def encode(self, x_Nd: Tensor) -> Tensor:
        """(N, C) non-negative codes, at most ``active`` per row above zero."""
        codes_NC = ((x_Nd - self.center_d) @ self.encoder_Cd.T + self.threshold_C).relu()
        if not self.config.active:
            return codes_NC
        kept = codes_NC.topk(self.config.active, dim=1)
        return torch.zeros_like(codes_NC).scatter(1, kept.indices, kept.values)

    def decode(self, codes_NC: Tensor) -> Tensor:
        """(N, d)."""
        return codes_NC @ self.decoder_Cd + self.center_d

    def forward(self, x_Nd: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction (N, d) and codes (N, C)."""
        codes_NC = self.encode(x_Nd)
        return self.decode(codes_NC), codes_NC


def fit(vectors_Nd: Tensor, config: AutoencoderConfig) -> SparseAutoencoder:
    """Train an autoencoder on ``vectors_Nd``; the same seed gives the same result."""
    model = SparseAutoencoder(vectors_Nd.shape[1], config)
    with torch.no_grad():
        model.center_d.copy_(vectors_Nd.mean(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    generator = torch.Generator().manual_seed(config.seed)
    fired_C = torch.zeros(config.codes, dtype=torch.bool)
    scale = vectors_Nd.var(0).sum().clamp_min(1e-12)
    for step in range(config.steps):
        batch = vectors_Nd[torch.randint(len(vectors_Nd), (config.batch,), generator=generator)]
        rebuilt, codes_NC = model(batch)
        loss = (rebuilt - batch).square().sum(1).mean() / scale + config.l1 * codes_NC.abs().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        fired_C |= (codes_NC > 0).any(0)
        with torch.no_grad():
            model.decoder_Cd.copy_(nn.functional.normalize(model.decoder_Cd, dim=1))
            if (step + 1) % config.revive_every == 0 and step < 0.8 * config.steps:
                _revive(model, optimizer, vectors_Nd, ~fired_C)
                fired_C.zero_()
    return model.eval()


def _revive(model: SparseAutoencoder, optimizer: torch.optim.Adam, vectors_Nd: Tensor, dead_C: Tensor) -> None:
    """Point dead codes at the vectors with the largest reconstruction error, and reset their moments."""
    error_N = (model(vectors_Nd)[0] - vectors_Nd).square().sum(1)
    dead = dead_C.nonzero()[:, 0][: len(vectors_Nd)]
    worst = error_N.topk(len(dead)).indices
    direction = nn.functional.normalize(vectors_Nd[worst] - model.center_d, dim=1)
    model.decoder_Cd[dead] = direction
    model.encoder_Cd[dead] = direction
    model.threshold_C[dead] = 0.0
    for parameter in (model.decoder_Cd, model.encoder_Cd, model.threshold_C):
        state = optimizer.state[parameter]
        for moment in ("exp_avg", "exp_avg_sq"):
            state[moment][dead] = 0.0


@torch.inference_mode()
def encode(model: SparseAutoencoder, vectors_Nd: Tensor, batch: int = 8192) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of all vectors as CSR: (N + 1) offsets, code numbers and values of those that are active."""
    parts = [model.encode(chunk) for chunk in torch.split(vectors_Nd, batch)]
    lengths = torch.cat([(part > 0).sum(1) for part in parts])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    where = [part.nonzero() for part in parts]
    values = torch.cat([part[place[:, 0], place[:, 1]] for part, place in zip(parts, where, strict=True)])
    return offsets, torch.cat([place[:, 1] for place in where]), values
