"""Models that predict the character after a sequence of characters [positions], given as whole numbers of any type."""

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

WIDTH = 128  # of the transformer
HEADS = 4
EMBEDDING = 8  # of the LSTM


class CharTransformer(nn.Module):
    """The encoder that FedNAR's authors train on Shakespeare: 1,220,432 parameters for 80 positions and characters.

    Embeddings times √128 plus learned positions; layers that attend everywhere; the last position predicts.
    Vaswani et al., NeurIPS 2017; Li et al., NeurIPS 2023.
    """

    def __init__(self, positions: int, vocabulary: int, outputs: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Parameter(torch.randn(positions, WIDTH))
        self.layers = nn.ModuleList(EncoderLayer(hidden, dropout) for _ in range(layers))
        self.head = nn.Linear(WIDTH, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, positions] → [B, outputs]."""
        x = self.embedding(tokens.long()) * sqrt(WIDTH) + self.positions
        *before, last = self.layers
        for layer in before:
            x = layer(x, x)
        outputs: Tensor = self.head(last(x[:, -1:], x)[:, 0])  # no other position is looked at
        return outputs


class EncoderLayer(nn.Module):
    """Attention, then a hidden layer with ReLU; each is added to what it sees, and the sum normalized."""

    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.query, self.key_value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.joined = nn.Linear(WIDTH, WIDTH)
        self.first, self.second = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)
        self.attended, self.transformed = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)
        bound = sqrt(6 / (4 * WIDTH))  # Glorot's, of the three projections as one matrix [3·128, 128]
        for projection in (self.query, self.key_value):
            nn.init.uniform_(projection.weight, -bound, bound)
            nn.init.zeros_(projection.bias)
        nn.init.zeros_(self.joined.bias)

    def forward(self, at: Tensor, x: Tensor) -> Tensor:
        """The positions ``at`` [B, p, 128], attending to x [B, positions, 128]."""
        at = self.attended(at + self.dropout(self._attention(at, x)))
        hidden = self.dropout(self.first(at).relu())
        transformed: Tensor = self.transformed(at + self.dropout(self.second(hidden)))
        return transformed

    def _attention(self, at: Tensor, x: Tensor) -> Tensor:
        query, (key, value) = self.query(at), self.key_value(x).chunk(2, dim=-1)
        share = self.dropout.p if self.training else 0.0
        heads = scaled_dot_product_attention(_heads(query), _heads(key), _heads(value), dropout_p=share)
        joined: Tensor = self.joined(heads.transpose(1, 2).flatten(2))
        return joined


def _heads(x: Tensor) -> Tensor:
    """[B, positions, 128] → [B, heads, positions, 128/heads]."""
    return x.view(*x.shape[:-1], HEADS, -1).transpose(1, 2)


class CharLSTM(nn.Module):
    """LEAF's network for Shakespeare: embeddings of 8, stacked LSTM layers, the last position predicts.

    819,920 parameters for 80 characters. Caldas et al., *LEAF: A Benchmark for Federated Settings*, 2018.
    """

    def __init__(self, vocabulary: int, outputs: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, EMBEDDING)
        self.lstm = nn.LSTM(EMBEDDING, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, positions] → [B, outputs]."""
        states, _ = self.lstm(self.embedding(tokens.long()))
        outputs: Tensor = self.head(states[:, -1])
        return outputs
