"""DCGAN's training step in PyTorch: the peer to beat.

Written from the paper (Radford et al. 2016) as PyTorch's users write it: transposed convolutions,
batch normalisation in both networks, the discriminator on real and on generated images apart, Adam
in its fused form. It wastes nothing: no gradients of the discriminator's parameters in the
generator's step, none of the generator's in the discriminator's.

Modules have the names of genjax's, so that parameters can be copied across.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class Generator(nn.Module):
    """Latents [B, Z] to images [B, C, H, W] of a power-of-two size."""

    def __init__(self, size: int, channels: int, latent_size: int, base_channels: int) -> None:
        super().__init__()
        count = size.bit_length() - 3  # doublings of 4x4
        widths = [min(base_channels << level, 512) for level in range(count)][::-1]
        self.input = nn.Linear(latent_size, 16 * widths[0], bias=False)
        self.norm_0 = nn.BatchNorm2d(widths[0])
        for level in range(count - 1):
            up = nn.ConvTranspose2d(widths[level], widths[level + 1], 4, 2, 1, bias=False)
            self.add_module(f"up_{level}", up)
            self.add_module(f"norm_{level + 1}", nn.BatchNorm2d(widths[level + 1]))
        self.output = nn.ConvTranspose2d(widths[-1], channels, 4, 2, 1)
        self.count = count

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Images in [-1, 1]."""
        # In the layout of the convolutions' kernels, whatever it is.
        layout = torch.channels_last if _is_channels_last(self.output) else torch.contiguous_format
        hidden = self.input(latents).view(len(latents), 4, 4, -1).permute(0, 3, 1, 2)
        hidden = F.relu(self.norm_0(hidden.contiguous(memory_format=layout)))
        for level in range(self.count - 1):
            hidden = self.get_submodule(f"up_{level}")(hidden)
            hidden = F.relu(self.get_submodule(f"norm_{level + 1}")(hidden))
        return torch.tanh(self.output(hidden))


class Discriminator(nn.Module):
    """Images [B, C, H, W] to logits [B]."""

    def __init__(self, size: int, channels: int, base_channels: int) -> None:
        super().__init__()
        self.count = size.bit_length() - 3
        width = channels
        for level in range(self.count):
            after = min(base_channels << level, 512)
            self.add_module(f"down_{level}", nn.Conv2d(width, after, 4, 2, 1, bias=level == 0))
            if level:
                self.add_module(f"norm_{level}", nn.BatchNorm2d(after))
            width = after
        self.output = nn.Linear(16 * width, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        hidden = images
        for level in range(self.count):
            hidden = self.get_submodule(f"down_{level}")(hidden)
            if level:
                hidden = self.get_submodule(f"norm_{level}")(hidden)
            hidden = F.leaky_relu(hidden, 0.2)
        return self.output(hidden.permute(0, 2, 3, 1).flatten(1))[:, 0]


def _is_channels_last(convolution: nn.ConvTranspose2d) -> bool:
    return convolution.weight.is_contiguous(memory_format=torch.channels_last)


def make_networks(
    size: int, channels: int = 3, latent_size: int = 100, base_channels: int = 64
) -> tuple[Generator, Discriminator]:
    """Both networks, initialised as the paper does it."""
    networks = (
        Generator(size, channels, latent_size, base_channels),
        Discriminator(size, channels, base_channels),
    )
    for network in networks:
        for name, parameter in network.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.02)
            else:
                nn.init.zeros_(parameter)
    return networks


def make_step(
    networks: tuple[Generator, Discriminator],
    *,
    latent_size: int = 100,
    channels_last: bool = True,
    compile: bool = False,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Callable[[torch.Tensor], None]:
    """A step of both networks on real images, uint8 [B, H, W, C]; it waits for its end."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    generator, discriminator = networks
    for network in networks:
        network.to(device=device, memory_format=layout)  # pyright: ignore[reportCallIssue]
    optimizers = [
        torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=True)
        for network in networks
    ]
    generate: Any = torch.compile(generator) if compile else generator
    judge: Any = torch.compile(discriminator) if compile else discriminator

    def latents(count: int) -> torch.Tensor:
        return torch.randn(count, latent_size, device=device)

    def precision() -> Any:
        return torch.autocast(device, dtype, enabled=dtype != torch.float32)

    def step(images: torch.Tensor) -> None:
        real = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=layout) / 127.5 - 1
        discriminator.requires_grad_(True)
        with precision():
            with torch.no_grad():
                fake = generate(latents(len(real)))
            loss = F.softplus(-judge(real)).mean() + F.softplus(judge(fake)).mean()
        loss.backward()
        optimizers[1].step()
        optimizers[1].zero_grad()
        discriminator.requires_grad_(False)
        with precision():
            loss = F.softplus(-judge(generate(latents(len(real))))).mean()
        loss.backward()
        optimizers[0].step()
        optimizers[0].zero_grad()
        loss.item()
        if device != "cpu":
            torch.cuda.synchronize()

    return step
