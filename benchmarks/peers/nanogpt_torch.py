"""A GPT-2 training step in PyTorch, as a CPU user of nanoGPT would run it: the peer to beat.

Written from the GPT-2 paper with nanoGPT's choices for a CPU: learned positions, normalisation
before each sub-layer, no biases, output layer tied to the token embedding, exact GELU, fused
scaled dot-product attention, gradient clipping and AdamW with its default implementation.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F


class Layer(nn.Module):
    """Attention, then feed-forward, each normalised before and added after."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(hidden_size, bias=False)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.projection = nn.Linear(hidden_size, hidden_size, bias=False)
        self.feed_forward_norm = nn.LayerNorm(hidden_size, bias=False)
        self.up = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.down = nn.Linear(4 * hidden_size, hidden_size, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Apply the layer to [B, T, D]."""
        batch, length, features = inputs.shape
        qkv = self.qkv(self.attention_norm(inputs)).split(features, dim=2)
        query, key, value = (x.view(batch, length, self.num_heads, -1).transpose(1, 2) for x in qkv)
        outputs = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        outputs = outputs.transpose(1, 2).reshape(batch, length, features)
        inputs = inputs + self.projection(outputs)
        return inputs + self.down(F.gelu(self.up(self.feed_forward_norm(inputs))))


class Model(nn.Module):
    """The language model; returns the mean cross-entropy of the targets."""

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        num_layers: int,
        num_heads: int,
        hidden_size: int,
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, hidden_size)
        self.position_embedding = nn.Embedding(context_length, hidden_size)
        self.layers = nn.ModuleList(Layer(hidden_size, num_heads) for _ in range(num_layers))
        self.final_norm = nn.LayerNorm(hidden_size, bias=False)
        self.output = nn.Linear(hidden_size, vocab_size, bias=False)
        self.output.weight = self.token_embedding.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith(("projection.weight", "down.weight"))
                scale = (2 * num_layers) ** -0.5 if residual else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean loss in nats of `targets` [B, T] after `tokens` [B, T]."""
        positions = torch.arange(tokens.shape[1])
        hidden = self.token_embedding(tokens) + self.position_embedding(positions)
        for layer in self.layers:
            hidden = layer(hidden)
        logits = self.output(self.final_norm(hidden))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def make_step(
    vocab_size: int,
    context_length: int,
    num_layers: int,
    num_heads: int,
    hidden_size: int,
    compile: bool = False,
) -> Callable[[torch.Tensor, torch.Tensor], float]:
    """A training step that takes tokens and targets, [B, T] int64, and returns the loss."""
    torch.manual_seed(0)
    model = Model(vocab_size, context_length, num_layers, num_heads, hidden_size)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=1e-3,
        betas=(0.9, 0.99),
        fused=False,
    )
    forward = torch.compile(model) if compile else model

    def step(tokens: torch.Tensor, targets: torch.Tensor) -> float:
        loss = forward(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step
