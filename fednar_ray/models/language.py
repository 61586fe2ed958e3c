"""Networks that predict the next character of a sequence. Characters are integers of any type, [B, positions]."""

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

WIDTH = 128  # of the transformer's embeddings
HEADS = 4
EMBEDDING = 8  # the width of the LSTM's embeddings


class CharTransformer(nn.Module):
    """The transformer encoder that FedNAR's authors train on Shakespeare.

    Its input is the embedding times √128 plus a learned position. Attention is not causal, and the prediction is made
    at the last position. With 80 positions and 80 characters it has 1,220,432 parameters.

    Args:
        positions: Length of a sequence.
        vocabulary: Number of characters that can occur in inputs.
        outputs: Number of characters that are predicted.
        hidden: Units of the feed-forward layers.
        layers: Number of encoder layers.
        dropout: The probability that a unit is dropped in training.

    Source: Vaswani et al., NeurIPS 2017; Li et al., NeurIPS 2023.
    """

    def __init__(self, positions: int, vocabulary: int, outputs: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Parameter(torch.randn(positions, WIDTH))
        self.layers = nn.ModuleList(EncoderLayer(hidden, dropout) for _ in range(layers))
        self.head = nn.Linear(WIDTH, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps characters [B, positions] to logits [B, outputs]."""
        x = self.embedding(tokens.long()) * sqrt(WIDTH) + self.positions
        *before, last = self.layers
        for layer in before:
            x = layer(x, x)
        outputs: Tensor = self.head(last(x[:, -1:], x)[:, 0])  # only the last position is needed
        return outputs


class EncoderLayer(nn.Module):
    """Attention, then a feed-forward layer with ReLU, each with a residual connection and LayerNorm after it."""

    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.query, self.key_value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.joined = nn.Linear(WIDTH, WIDTH)
        self.first, self.second = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)
        self.attended, self.transformed = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)
        bound = sqrt(6 / (4 * WIDTH))  # Glorot's bound for the three projections as one matrix [3·128, 128]
        for projection in (self.query, self.key_value):
            nn.init.uniform_(projection.weight, -bound, bound)
            nn.init.zeros_(projection.bias)
        nn.init.zeros_(self.joined.bias)

    def forward(self, at: Tensor, x: Tensor) -> Tensor:
        """Computes the layer's outputs at the positions ``at`` [B, p, 128], which attend to x [B, positions, 128]."""
        at = self.attended(at + self.dropout(self._attend(at, x)))
        hidden = self.dropout(self.first(at).relu())
        transformed: Tensor = self.transformed(at + self.dropout(self.second(hidden)))
        return transformed

    def _attend(self, at: Tensor, x: Tensor) -> Tensor:
        query, (key, value) = self.query(at), self.key_value(x).chunk(2, dim=-1)
        share = self.dropout.p if self.training else 0.0
        heads = scaled_dot_product_attention(
            _split_heads(query), _split_heads(key), _split_heads(value), dropout_p=share
        )
        joined: Tensor = self.joined(heads.transpose(1, 2).flatten(2))
        return joined


def _split_heads(x: Tensor) -> Tensor:
    """Reshapes [B, positions, 128] to [B, heads, positions, 128/heads]."""
    return x.view(*x.shape[:-1], HEADS, -1).transpose(1, 2)


class CharLSTM(nn.Module):
    """LEAF's network for Shakespeare: embeddings of width 8 and stacked LSTM layers. The last position predicts.

    With 80 characters, and 2 layers of 256 units, it has 819,920 parameters.

    Args:
        vocabulary: Number of characters that can occur in inputs.
        outputs: Number of characters that are predicted.
        hidden: Units of each layer's state.
        layers: Number of LSTM layers.

    Source: Caldas et al., *LEAF: A Benchmark for Federated Settings*, 2018.
    """

    def __init__(self, vocabulary: int, outputs: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, EMBEDDING)
        self.lstm = nn.LSTM(EMBEDDING, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps characters [B, positions] to logits [B, outputs]."""
        states, _ = self.lstm(self.embedding(tokens.long()))
        outputs: Tensor = self.head(states[:, -1])
        return outputs
