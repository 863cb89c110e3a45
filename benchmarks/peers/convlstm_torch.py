"""Recurrent predictors of frames in PyTorch, and their training step: the peers to beat.

Written from the papers (ConvLSTM: Shi et al. 2015; PredRNN: Wang et al. 2017) as PyTorch's users
write them: frames cut into patches, one convolution of input and hidden state for all gates, no
biases, a pointwise convolution to the next frame, which is fed back after the known ones; gradients
clipped to a norm, Adam in its fused form.

Modules have the names of genjax's, so that parameters can be copied across.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _convolution(channels: int, features: int, size: int) -> nn.Conv2d:
    return nn.Conv2d(channels, features, size, padding=size // 2, bias=False)


def _moved(cell: Tensor, i: Tensor, f: Tensor, g: Tensor) -> Tensor:
    """A cell state or a memory after a step."""
    return torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)


class ConvLSTM(nn.Module):
    """One time step of stacked ConvLSTM layers, from a frame's patches to the next frame's."""

    def __init__(self, patch_channels: int, features: Sequence[int], kernel_size: int) -> None:
        super().__init__()
        widths = (patch_channels, *features)
        self.layers = nn.ModuleList(
            _convolution(width + own, 4 * own, kernel_size)
            for width, own in zip(widths[:-1], features, strict=True)
        )
        self.output = _convolution(widths[-1], patch_channels, 1)
        self.features = tuple(features)

    def start(self, zeros: Callable[[int], Tensor]) -> Any:
        """The state before the first step."""
        return [(zeros(own), zeros(own)) for own in self.features]

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The next frame's patches, and the state."""
        new = []
        for layer, (hidden, cell) in zip(self.layers, state, strict=True):
            i, f, g, o = layer(torch.cat([x, hidden], 1)).chunk(4, 1)
            cell = _moved(cell, i, f, g)
            x = torch.sigmoid(o) * torch.tanh(cell)
            new.append((x, cell))
        return self.output(x), new


class PredRNN(nn.Module):
    """One time step of PredRNN: layers with cell states of their own, and one memory for all."""

    def __init__(
        self,
        patch_channels: int,
        features: int,
        num_layers: int,
        kernel_size: int,
        forget_bias: float = 1.0,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for index in range(num_layers):
            both = features + (features if index else patch_channels)
            self.layers.append(
                nn.ModuleDict(
                    {
                        "temporal": _convolution(both, 4 * features, kernel_size),
                        "spatial": _convolution(both, 3 * features, kernel_size),
                        "output": _convolution(2 * features, features, kernel_size),
                        "merge": _convolution(2 * features, features, 1),
                    }
                )
            )
        self.output = _convolution(features, patch_channels, 1)
        self.features = features
        self.forget_bias = forget_bias

    def start(self, zeros: Callable[[int], Tensor]) -> Any:
        """The state before the first step."""
        states = [(zeros(self.features), zeros(self.features)) for _ in self.layers]
        return states, zeros(self.features)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The next frame's patches, and the state."""
        states, memory = state
        new = []
        for layer, (hidden, cell) in zip(self.layers, states, strict=True):
            assert isinstance(layer, nn.ModuleDict)
            i, f, g, o = layer["temporal"](torch.cat([x, hidden], 1)).chunk(4, 1)
            cell = _moved(cell, i, f + self.forget_bias, g)
            i, f, g = layer["spatial"](torch.cat([x, memory], 1)).chunk(3, 1)
            memory = _moved(memory, i, f + self.forget_bias, g)
            both = torch.cat([cell, memory], 1)
            x = torch.sigmoid(o + layer["output"](both)) * torch.tanh(layer["merge"](both))
            new.append((x, cell))
        return self.output(x), (new, memory)


def roll_out(
    network: nn.Module,
    clips: Tensor,
    past: int,
    patch_size: int,
    layout: torch.memory_format = torch.contiguous_format,
    compiled: Any = None,
) -> Tensor:
    """All frames but the first, each predicted from those before it.

    Args:
        network: the time step.
        clips: [B, T, C, H, W].
        past: frames that are known; then predictions are read.
        patch_size: side of the patches.
        layout: of what the convolutions read.
        compiled: the time step in a form that runs faster.

    Returns:
        [B, T - 1, C, H, W].
    """
    step = network if compiled is None else compiled
    patches = F.pixel_unshuffle(clips, patch_size)
    truth = [frame.contiguous(memory_format=layout) for frame in patches[:, :past].unbind(1)]
    shape = (truth[0].shape[0], *truth[0].shape[2:])

    def zeros(features: int) -> Tensor:
        empty = truth[0].new_empty(shape[0], features, *shape[1:])
        return torch.zeros_like(empty, memory_format=layout)

    state: Any = network.start(zeros)  # pyright: ignore[reportCallIssue]
    predictions: list[Tensor] = []
    for time in range(clips.shape[1] - 1):
        x = truth[time] if time < past else predictions[-1]
        prediction, state = step(x, state)
        predictions.append(prediction)
    return F.pixel_shuffle(torch.stack(predictions, 1), patch_size)


def loss_of(predicted: Tensor, clips: Tensor, l1: float, l2: float) -> Tensor:
    """The weighted absolute and squared error of all frames but the first."""
    truth = clips[:, 1:]
    return l1 * F.l1_loss(predicted, truth) + l2 * F.mse_loss(predicted, truth)


def make_step(
    network: nn.Module,
    *,
    past: int,
    patch_size: int,
    l1: float,
    l2: float,
    adam: dict[str, Any],
    clip_norm: float,
    channels_last: bool = True,
    compile: bool = False,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Callable[[Tensor], None]:
    """A training step on clips, uint8 [B, T, H, W, C]; it waits for its end."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network.to(device=device, memory_format=layout)  # pyright: ignore[reportCallIssue]
    parameters = list(network.parameters())
    optimizer = torch.optim.Adam(parameters, fused=True, **adam)
    # A time step, not all of them unrolled: that would take minutes.
    compiled = torch.compile(network) if compile else None

    def step(clips: Tensor) -> None:
        scaled = clips.permute(0, 1, 4, 2, 3).to(torch.float32) / 255
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            predicted = roll_out(network, scaled, past, patch_size, layout, compiled)
        loss = loss_of(predicted.float(), scaled, l1, l2)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        if device != "cpu":
            torch.cuda.synchronize()

    return step
