"""Recurrent predictors of frames: stacks of ConvLSTM layers, and PredRNN.

Letters: B batch, T time, S steps, F the last of them, H height, W width, C channels; h, w height
and width in patches, P channels of a patch.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from genjax.errors import UserError
from genjax.nn.convolutional_recurrence import (
    conv_lstm,
    conv_lstm_step,
    convolve,
    convolve_sequence,
    gates_apart,
    gates_joined,
    kernel_init,
    spatiotemporal_lstm_kernels,
    spatiotemporal_lstm_step,
    zero_state,
)
from genjax.nn.layout import gathered
from genjax.nn.split_by_hand import each_device_its_part
from genjax.video.conditioning import Known
from genjax.video.roll_out import (
    Plan,
    StepFunction,
    hints,
    make_plan,
    patchify,
    roll_out,
    steps_feed,
    unpatchify,
)

Clips = Float[Array, "B T H W C"]
Mask = Float[Array, "B T H W 1"] | None
Feed = Bool[Array, "B F"] | None


class ConvLSTMPredictor(nn.Module):
    """Stacked ConvLSTM layers on patches, with a pointwise convolution to the next frame.

    Shi et al. 2015, "Convolutional LSTM network", in the form that later work compares with: no
    peepholes, no biases, the predicted frame fed back.

    Attributes:
        known: which frames of a clip are known; see `genjax.video.conditioning`.
        partial: whether those are known in part only.
        features: channels of each layer.
        kernel_size: of the gates' convolutions, odd.
        patch_size: side of the patches that frames are cut into.
        forget_bias: added to forget gates.
        remat: compute steps again in the backward pass instead of keeping their gates.
        dtype: of the convolutions' inputs. Parameters and states are float32.
    """

    known: Known
    partial: bool = False
    features: tuple[int, ...] = (128, 128, 128, 128)
    kernel_size: int = 5
    patch_size: int = 4
    forget_bias: float = 0.0
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, clips: Clips, mask: Mask = None, feed: Feed = None, *, train: bool = False
    ) -> Clips:
        """Predict each frame from those before it.

        Args:
            clips: the clips, in [0, 1]; what is unknown is not looked at unless `feed` says so.
            mask: 1 for known pixels, if `partial`.
            feed: for the last F steps, whether they read the true frame.
            train: makes no difference here.

        Returns:
            The predictions. Frames that are not predicted (the first one, and known ones at the
            end) are those of the input.
        """
        del train
        _check(self, clips, mask)
        width, pixels = _widths(self, clips.shape[-1])
        shape = (self.kernel_size, self.kernel_size)
        kernels = []
        for index, features in enumerate(self.features):
            kernel_shape = (*shape, width + features, 4 * features)
            kernels.append(self.param(f"layers_{index}_kernel", kernel_init, kernel_shape))
            width = features
        output = self.param("output_kernel", kernel_init, (1, 1, width, pixels))
        kernels = [gates_apart(kernel, 4) for kernel in gathered(kernels)]
        return each_device_its_part(
            self._predict, kernels, output, (clips, mask), feed, unit=self.patch_size
        )

    def _predict(
        self, kernels: list[Array], output: Array, seen: tuple[Clips, Mask], feed: Feed
    ) -> Clips:
        clips, mask = seen
        plan, truth, ahead = _prepare(self, clips, mask)
        # What a device has of a layer's features is what it has of the kernel's.
        state: Any = [
            tuple(zero_state(truth[0], count, self.dtype) for count in (features, kernel.shape[-1]))
            for features, kernel in zip(self.features, kernels, strict=True)
        ]
        kernels = [gates_joined(kernel) for kernel in kernels]
        settings: dict[str, Any] = {"forget_bias": self.forget_bias, "dtype": self.dtype}

        def step(state: Any, x: Array) -> tuple[Any, Array]:
            new = []
            for kernel, layer in zip(kernels, state, strict=True):
                new.append(conv_lstm_step(kernel, 0.0, layer, x, **settings))
                x = new[-1][0]
            return new, convolve(x, output, self.dtype)

        drawn = 0 if feed is None else feed.shape[1]
        leading = min(plan.leading, len(plan.targets) - drawn)
        predictions = []
        if leading > 1 and not self.remat:
            # Known inputs: layer by layer over all steps, the inputs' convolutions taken at once.
            xs = truth[:leading]
            xs = xs if ahead is None else jnp.concatenate([xs, ahead[:leading]], -1)
            for index, kernel in enumerate(kernels):
                state[index], xs = conv_lstm(kernel, 0.0, state[index], xs, **settings)
            predictions.append(convolve_sequence(xs, output, self.dtype))
        return _finish(self, step, state, clips, mask, feed, (plan, truth, ahead), predictions)


class PredRNNPredictor(nn.Module):
    """PredRNN: layers with cell states of their own and one memory that goes through all of them.

    Wang et al. 2017, "PredRNN: Recurrent neural networks for predictive learning using
    spatiotemporal LSTMs".

    Attributes:
        known: which frames of a clip are known; see `genjax.video.conditioning`.
        partial: whether those are known in part only.
        features: channels of each layer, the same for all, since they share the memory.
        num_layers: number of layers.
        kernel_size: of the gates' convolutions, odd.
        patch_size: side of the patches that frames are cut into.
        forget_bias: added to forget gates.
        remat: compute steps again in the backward pass instead of keeping their gates.
        dtype: of the convolutions' inputs. Parameters and states are float32.
    """

    known: Known
    partial: bool = False
    features: int = 128
    num_layers: int = 4
    kernel_size: int = 5
    patch_size: int = 4
    forget_bias: float = 1.0
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, clips: Clips, mask: Mask = None, feed: Feed = None, *, train: bool = False
    ) -> Clips:
        """Predict each frame from those before it; see `ConvLSTMPredictor`."""
        del train
        _check(self, clips, mask)
        width, pixels = _widths(self, clips.shape[-1])
        layers = []
        for index in range(self.num_layers):
            kernels = spatiotemporal_lstm_kernels(
                self, width, self.features, self.kernel_size, f"layers_{index}_"
            )
            layers.append(
                {
                    name: gates_apart(kernel, kernel.shape[-1] // self.features)
                    for name, kernel in gathered(kernels).items()
                }
            )
            width = self.features
        output = self.param("output_kernel", kernel_init, (1, 1, width, pixels))
        return each_device_its_part(
            self._predict, layers, output, (clips, mask), feed, unit=self.patch_size
        )

    def _predict(
        self,
        layers: list[dict[str, Array]],
        output: Array,
        seen: tuple[Clips, Mask],
        feed: Feed,
    ) -> Clips:
        clips, mask = seen
        plan, truth, ahead = _prepare(self, clips, mask)
        own = layers[0]["temporal"].shape[-1]
        zero, cell = (zero_state(truth[0], n, self.dtype) for n in (self.features, own))
        state = ([(zero, cell)] * self.num_layers, zero)
        layers = [{name: gates_joined(k) for name, k in layer.items()} for layer in layers]

        def step(state: Any, x: Array) -> tuple[Any, Array]:
            states, memory = state
            new = []
            for kernels, layer in zip(layers, states, strict=True):
                layer, memory = spatiotemporal_lstm_step(
                    kernels, layer, memory, x, forget_bias=self.forget_bias, dtype=self.dtype
                )
                new.append(layer)
                x = layer[0]
            return (new, memory), convolve(x, output, self.dtype)

        return _finish(self, step, state, clips, mask, feed, (plan, truth, ahead), [])


def _widths(module: Any, channels: int) -> tuple[int, int]:
    """Channels of what a step reads, hints included, and of a frame's patches."""
    plan, area = make_plan(module.known, module.partial), module.patch_size**2
    hinted = (channels + 1 + module.partial) if plan.has_hints else 0
    return area * (channels + hinted), area * channels


Prepared = tuple[Plan, Float[Array, "S B h w P"], Float[Array, "S B h w _"] | None]


def _prepare(module: Any, clips: Clips, mask: Mask) -> Prepared:
    """The plan of a roll-out, the patches that its steps may read, and those of its hints."""
    plan = make_plan(module.known, module.partial)
    read = [target - 1 for target in plan.targets]
    frames = clips[:, max(read[0], 0) : read[-1] + 1]
    if read[0] < 0:
        frames = jnp.concatenate([jnp.zeros_like(clips[:, :1]), frames], 1)
    ahead = hints(clips, mask, plan)
    return (
        plan,
        patchify(jnp.moveaxis(frames, 1, 0), module.patch_size),
        None if ahead is None else patchify(ahead, module.patch_size),
    )


def _check(module: Any, clips: Clips, mask: Mask) -> None:
    height, width = clips.shape[2:4]
    if height % module.patch_size or width % module.patch_size:
        raise UserError(
            f"frames of {height} x {width} pixels do not divide into patches of side "
            f"{module.patch_size}; change model.patch_size, or data.source.size"
        )
    if clips.shape[1] != len(module.known):
        raise UserError(
            f"clips of {clips.shape[1]} frames do not fit known, of {len(module.known)} frames"
        )
    if not module.known[0] or (all(module.known) and not module.partial):
        raise UserError(
            f"known = {module.known}: the first frame must be known, and something be left to "
            "predict"
        )
    if (mask is not None) != module.partial:
        raise UserError(
            "partial = true needs a mask of the known pixels"
            if module.partial
            else "partial = false takes no mask; set partial, or leave the mask out"
        )


def _finish(
    module: Any,
    step: StepFunction,
    state: Any,
    clips: Clips,
    mask: Mask,
    feed: Feed,
    prepared: Prepared,
    predictions: list[Array],
) -> Clips:
    """Roll out the steps that are left, and put the predicted frames in their places."""
    plan, truth, ahead = prepared
    reads = steps_feed(module.known, plan, mask, feed, len(clips))
    if mask is not None:
        # Each pixel of a patch with the mask of its own, for all channels of it.
        pixels = jnp.broadcast_to(reads, (*reads.shape[:-1], clips.shape[-1]))
        reads = patchify(pixels, module.patch_size)
    done = len(predictions[0]) if predictions else 0
    last = predictions[0][-1] if predictions else jnp.zeros_like(truth[0])
    if done < len(truth):
        _, rest = roll_out(
            step,
            state,
            truth[done:],
            reads[done:],
            None if ahead is None else ahead[done:],
            last.astype(truth.dtype),
            remat=module.remat,
        )
        predictions = [*predictions, rest]
    frames = unpatchify(jnp.concatenate(predictions), module.patch_size)
    frames = jnp.moveaxis(frames, 0, 1).astype(clips.dtype)
    first = plan.targets[0]
    return jnp.concatenate([clips[:, :first], frames, clips[:, first + len(frames[0]) :]], 1)
