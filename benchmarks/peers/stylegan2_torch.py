"""StyleGAN2's training step in plain PyTorch: the peer to beat.

Written from the papers' equations (Karras et al. 2019, 2020), without kernels of its own. Where
there is a choice it takes what was measured to be the fastest on CPUs, forward and backward:
resampling filters as depthwise convolutions; Adam fused; the average of the parameters in one call
for all of them.

Skip generator, residual discriminator. Modules have the names of genjax's, so that parameters can
be copied across; kernels are [F, C, K, K] here.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

SQRT2 = math.sqrt(2.0)


def leaky_relu(inputs: torch.Tensor, gain: float = SQRT2) -> torch.Tensor:
    """Leaky ReLU that keeps the variance."""
    return F.leaky_relu(inputs, 0.2) * gain


def low_pass(images: torch.Tensor, padding: int, down: int = 1, gain: float = 1.0) -> torch.Tensor:
    """Filter with (1, 3, 3, 1) in both directions, after padding, and keep every n-th pixel."""
    kernel = _taps(images, gain)
    return F.conv2d(images, kernel, stride=down, padding=padding, groups=images.shape[1])


def upsample(images: torch.Tensor) -> torch.Tensor:
    """Double the size through the same filter."""
    kernel = _taps(images, 4.0)
    return F.conv_transpose2d(images, kernel, stride=2, padding=1, groups=images.shape[1])


def _taps(images: torch.Tensor, gain: float) -> torch.Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=images.device, dtype=images.dtype) / 8
    return (gain * torch.outer(taps, taps)).expand(images.shape[1], 1, 4, 4)


class Dense(nn.Module):
    """A dense layer with equalised learning rate."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        multiplier: float = 1.0,
        bias: float = 0.0,
        activate: bool = False,
    ) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(outputs, inputs) / multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.multiplier, self.activate = multiplier, activate
        self.scale = multiplier / math.sqrt(inputs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map [B, C] to [B, F]."""
        outputs = F.linear(inputs, self.kernel * self.scale, self.bias * self.multiplier)
        return leaky_relu(outputs) if self.activate else outputs


class Conv(nn.Module):
    """A convolution with equalised learning rate that may halve the size."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        down: int = 1,
        gain: float = 1.0,
        activate: bool = True,
    ) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs)) if activate else None
        self.size, self.down, self.gain, self.activate = size, down, gain, activate
        self.scale = (1.0 if activate else gain) / math.sqrt(inputs * size**2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] to [B, F, H / down, W / down]."""
        kernel, half = self.kernel * self.scale, self.size // 2
        if self.down == 1:
            outputs = F.conv2d(images, kernel, self.bias, padding=half)
        elif self.size == 1:
            outputs = F.conv2d(low_pass(images, 1, down=2), kernel, self.bias)
        else:
            outputs = F.conv2d(low_pass(images, 2), kernel, self.bias, stride=2)
        return leaky_relu(outputs, SQRT2 * self.gain) if self.activate else outputs


class Modulated(nn.Module):
    """A modulated convolution; with noise and leaky ReLU if it is demodulated."""

    def __init__(self, inputs: int, outputs: int, size: int, style_size: int, up: int = 1) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.affine = Dense(style_size, inputs, bias=1.0)
        self.up, self.is_image = up, size == 1
        if not self.is_image:
            self.noise_strength = nn.Parameter(torch.zeros(()))

    def forward(self, images: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] and a style [B, D] to [B, F, H up, W up]."""
        styles = self.affine(style)
        if self.is_image:
            styles = styles / math.sqrt(styles.shape[1])
            outputs = F.conv2d(images * styles[:, :, None, None], self.kernel)
            return outputs + self.bias[:, None, None]
        # Scaled images and one shared kernel: a kernel for each example, with the batch as groups
        # of one convolution, takes 1.2 times as long on CPUs.
        images = images * styles[:, :, None, None]
        if self.up == 2:
            outputs = F.conv_transpose2d(images, self.kernel.transpose(0, 1), stride=2)
            outputs = low_pass(outputs, 1, gain=4.0)
        else:
            outputs = F.conv2d(images, self.kernel, padding=1)
        norms = torch.rsqrt(styles.square() @ self.kernel.square().sum((2, 3)).T + 1e-8)
        outputs = outputs * norms[:, :, None, None]
        batch, _, height, width = outputs.shape
        noise = torch.randn(batch, 1, height, width, device=outputs.device, dtype=outputs.dtype)
        return leaky_relu(outputs + self.noise_strength * noise + self.bias[:, None, None])


class Mapping(nn.Module):
    """Latents to styles."""

    def __init__(self, latent_size: int, style_size: int, layers: int) -> None:
        super().__init__()
        sizes = [latent_size] + [style_size] * layers
        for number in range(layers):
            layer = Dense(sizes[number], style_size, multiplier=0.01, activate=True)
            self.add_module(f"layers_{number}", layer)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Map [B, Z] to [B, D]."""
        hidden = latents * torch.rsqrt(latents.square().mean(1, keepdim=True) + 1e-8)
        for layer in self.children():
            hidden = layer(hidden)
        return hidden


class Synthesis(nn.Module):
    """Styles to images."""

    def __init__(
        self, size: int, channel_base: int, channel_max: int, style_size: int, channels: int = 3
    ) -> None:
        super().__init__()
        self.sizes = [4 << n for n in range(size.bit_length() - 2)]
        before = 0
        for size in self.sizes:
            after = min(channel_base // size, channel_max)
            name = f"{size}x{size}"
            if not before:
                self.constant = nn.Parameter(torch.randn(after, size, size))
            else:
                self.add_module(f"{name}_conv0", Modulated(before, after, 3, style_size, up=2))
            self.add_module(f"{name}_conv1", Modulated(after, after, 3, style_size))
            self.add_module(f"{name}_image", Modulated(after, channels, 1, style_size))
            before = after

    def forward(self, styles: torch.Tensor) -> torch.Tensor:
        """Map [B, L, D] to [B, C, H, W]."""
        hidden = self.constant.expand(len(styles), *self.constant.shape)
        kernel = self.get_parameter("4x4_conv1.kernel")
        if kernel.is_contiguous(memory_format=torch.channels_last):
            hidden = hidden.contiguous(memory_format=torch.channels_last)
        image, layer = None, 0
        for size in self.sizes:
            for part in ("conv0", "conv1"):
                if size > 4 or part == "conv1":
                    hidden = self.get_submodule(f"{size}x{size}_{part}")(hidden, styles[:, layer])
                    layer += 1
            new = self.get_submodule(f"{size}x{size}_image")(hidden, styles[:, layer])
            image = new if image is None else new + upsample(image)
        assert image is not None
        return image


class Generator(nn.Module):
    """Mapping and synthesis."""

    w_average: torch.Tensor

    def __init__(
        self,
        size: int,
        channel_base: int,
        channel_max: int,
        latent_size: int = 512,
        style_size: int = 512,
        layers: int = 8,
    ) -> None:
        super().__init__()
        self.mapping_network = Mapping(latent_size, style_size, layers)
        self.synthesis_network = Synthesis(size, channel_base, channel_max, style_size)
        self.num_styles = 2 * len(self.synthesis_network.sizes)
        self.register_buffer("w_average", torch.zeros(style_size))

    def styles(self, latents: torch.Tensor, mixing: float, move: bool = False) -> torch.Tensor:
        """Styles [B, L, D], from a random layer on those of other latents; may move the average."""
        style = self.mapping_network(latents)
        if move:
            self.w_average.lerp_(style.detach().float().mean(0), 0.005)
        styles = style[:, None].expand(-1, self.num_styles, -1)
        if mixing:
            other = self.mapping_network(torch.randn_like(latents))[:, None]
            first = int(torch.randint(1, self.num_styles, ()))
            if float(torch.rand(())) >= mixing:
                first = self.num_styles
            other = other.expand(-1, self.num_styles - first, -1)
            styles = torch.cat([styles[:, :first], other], 1)
        return styles


class Discriminator(nn.Module):
    """Images [B, C, H, W] to logits [B]."""

    def __init__(
        self,
        size: int,
        channel_base: int,
        channel_max: int,
        channels: int = 3,
        group_size: int = 4,
    ) -> None:
        super().__init__()
        self.size, self.group_size, half = size, group_size, math.sqrt(0.5)
        while size > 4:
            before, after = (min(channel_base // n, channel_max) for n in (size, size // 2))
            name = f"{size}x{size}"
            if size == self.size:
                self.add_module(f"{name}_image", Conv(channels, before, 1))
            shortcut = Conv(before, after, 1, down=2, gain=half, activate=False)
            self.add_module(f"{name}_shortcut", shortcut)
            self.add_module(f"{name}_conv0", Conv(before, before, 3))
            self.add_module(f"{name}_conv1", Conv(before, after, 3, down=2, gain=half))
            size //= 2
        features = min(channel_base // 4, channel_max)
        self.add_module("4x4_conv", Conv(features + 1, features, 3))
        self.dense = Dense(16 * features, features, activate=True)
        self.output = Dense(features, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        size = self.size
        hidden = self.get_submodule(f"{size}x{size}_image")(images)
        while size > 4:
            name = f"{size}x{size}"
            shortcut = self.get_submodule(f"{name}_shortcut")(hidden)
            hidden = self.get_submodule(f"{name}_conv0")(hidden)
            hidden = self.get_submodule(f"{name}_conv1")(hidden) + shortcut
            size //= 2
        groups = hidden.unflatten(0, (-1, self.group_size))
        deviation = torch.sqrt(groups.var(1, unbiased=False) + 1e-8).mean((1, 2, 3))
        deviation = deviation.repeat_interleave(self.group_size)[:, None, None, None]
        hidden = torch.cat([hidden, deviation.expand(-1, 1, 4, 4)], 1)
        hidden = self.get_submodule("4x4_conv")(hidden)
        return self.output(self.dense(hidden.permute(0, 2, 3, 1).flatten(1)))[:, 0]


def make_networks(
    size: int, channel_base: int, channel_max: int, latent_size: int = 512
) -> tuple[Generator, Discriminator]:
    """Both networks."""
    return (
        Generator(size, channel_base, channel_max, latent_size),
        Discriminator(size, channel_base, channel_max),
    )


def make_step(
    networks: tuple[Generator, Discriminator],
    *,
    latent_size: int = 512,
    channels_last: bool = True,
    compile: bool = False,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    r1_gamma: float = 0.3,
    penalty_interval: int = 16,
    path_length_interval: int = 4,
    path_length_share: int = 2,
    mixing: float = 0.9,
) -> Callable[[torch.Tensor, bool, bool], None]:
    """A step on real images, uint8 [B, H, W, C], with or without R1 and path lengths.

    It waits for its end. Compiled are the networks in the plain part of the step: PyTorch's
    compiler has no second derivatives.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    generator, discriminator = networks
    for network in networks:
        network.to(device=device, memory_format=layout)  # pyright: ignore[reportCallIssue]
    average = copy.deepcopy(generator).requires_grad_(False)
    averaged: list[torch.Tensor] = list(average.parameters())
    current: list[torch.Tensor] = list(generator.parameters())

    def adam(network: nn.Module, interval: int) -> torch.optim.Optimizer:
        part = interval / (interval + 1)
        betas = (0.0, 0.99**part)
        return torch.optim.Adam(network.parameters(), lr=2e-3 * part, betas=betas, fused=True)

    generator_optimizer = adam(generator, path_length_interval)
    discriminator_optimizer = adam(discriminator, penalty_interval)
    synthesize: Any = generator.synthesis_network
    judge: Any = discriminator
    if compile:
        synthesize, judge = torch.compile(synthesize), torch.compile(judge)
    path_mean = torch.zeros((), device=device)

    def styles(count: int, move: bool = False) -> torch.Tensor:
        return generator.styles(torch.randn(count, latent_size, device=device), mixing, move)

    def precision() -> Any:
        return torch.autocast(device, dtype, enabled=dtype != torch.float32)

    def update(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def step(images: torch.Tensor, penalties: bool, path_length: bool) -> None:
        real = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=layout) / 127.5 - 1
        discriminator.requires_grad_(True)
        generator.requires_grad_(False)
        with precision():
            fake = synthesize(styles(len(real)))
            loss = F.softplus(-judge(real)).mean() + F.softplus(judge(fake)).mean()
        update(discriminator_optimizer, loss)
        if penalties:
            real.requires_grad_(True)
            with precision():
                logits = discriminator(real)
            (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
            penalty = gradient.square().sum((1, 2, 3)).mean()
            update(discriminator_optimizer, penalty * (0.5 * r1_gamma * penalty_interval))
            real.requires_grad_(False)
        discriminator.requires_grad_(False)
        generator.requires_grad_(True)
        with precision():
            loss = F.softplus(-judge(synthesize(styles(len(real), move=True)))).mean()
        update(generator_optimizer, loss)
        if path_length:
            with precision():
                chosen = styles(len(real) // path_length_share)
                fake = generator.synthesis_network(chosen)
                noise = torch.randn_like(fake, dtype=torch.float32) / math.sqrt(
                    fake.shape[2] * fake.shape[3]
                )
            (gradient,) = torch.autograd.grad((fake * noise).sum(), chosen, create_graph=True)
            lengths = gradient.float().square().sum(2).mean(1).sqrt()
            path_mean.lerp_(lengths.detach().mean(), 0.01)
            penalty = (lengths - path_mean).square().mean()
            update(generator_optimizer, penalty * (2.0 * path_length_interval))
        with torch.no_grad():
            torch._foreach_lerp_(averaged, current, 0.001)  # pyright: ignore[reportPrivateImportUsage]
        loss.item()
        if device != "cpu":
            torch.cuda.synchronize()

    return step
