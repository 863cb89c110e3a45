"""Whether both sides of the benchmark compute the same: one set of parameters, one of clips.

Small networks with all the parts of the measured ones, on the CPU, in float64. Compared are the
predicted frames, the loss and its gradient by all parameters. An error is relative to the greatest
number.
"""

from typing import Any

import numpy as np

from benchmarks.image_check import relative_error
from benchmarks.video_steps import Case, make_task, torch_network

TOLERANCE = 1e-12

Figures = dict[str, np.ndarray]

# No layer has 5 features: the XLA of jaxlib 0.10.2 compiles the gradient of a scan over 4x4 pixels
# with 5 features wrongly in float64 on a CPU, right with XLA_FLAGS=--xla_cpu_use_fusion_emitters=0.
BOTH = {"l1": 1.0, "l2": 1.0}
CASES = {
    "ConvLSTM": Case(16, 2, {"kind": "convlstm", "features": [8, 6], "kernel_size": 3}, 4, BOTH),
    "ConvLSTM, remat": Case(
        16, 2, {"kind": "convlstm", "features": [8, 6], "kernel_size": 5, "remat": True}, 4, BOTH
    ),
    "PredRNN": Case(
        16, 2, {"kind": "predrnn", "features": 6, "num_layers": 2, "kernel_size": 3}, 4, BOTH
    ),
}


def check_case(case: Case) -> dict[str, float]:
    """The error of each figure of genjax's step against PyTorch's."""
    ours, params = _genjax_figures(case)
    theirs = _torch_figures(case, params)
    return {name: relative_error(ours[name], theirs[name]) for name in theirs}


def _genjax_figures(case: Case) -> tuple[Figures, dict[str, np.ndarray]]:
    import jax
    import jax.numpy as jnp

    task = make_task(case)
    network = task.network.clone(dtype=jnp.float64)
    params = jax.jit(task.init)(jax.random.key(0)).params["predictor"]
    params = {name: np.asarray(value, np.float64) for name, value in params.items()}
    counted = np.array(task._trained_frames())

    def loss(params: Any, clips: Any) -> tuple[Any, Any]:
        predicted = network.apply({"params": params}, clips, train=True)[:, counted]
        return task._error(predicted, clips[:, counted], None), predicted

    with jax.enable_x64(True):
        differentiated = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (value, predicted), gradient = differentiated(params, jnp.asarray(case.clips() / 255))
        figures = {"frames": predicted, "loss": value}
        figures |= {f"gradient of {name}": gradient[name] for name in params}
        return {name: np.asarray(figure) for name, figure in figures.items()}, params


def _torch_figures(case: Case, params: dict[str, np.ndarray]) -> Figures:
    import torch

    from benchmarks.peers.convlstm_torch import loss_of, roll_out

    network = torch_network(case).double()
    parameters = dict(network.named_parameters())
    names = {name: f"{name.removesuffix('_kernel').replace('_', '.')}.weight" for name in params}
    assert set(names.values()) == parameters.keys()
    for name, value in params.items():
        with torch.no_grad():
            # From [K, K, C, F] to [F, C, K, K].
            parameters[names[name]].copy_(torch.from_numpy(value.transpose(3, 2, 0, 1).copy()))
    clips = torch.from_numpy(case.clips() / 255).permute(0, 1, 4, 2, 3)
    predicted = roll_out(network, clips, case.past, case.model.get("patch_size", 4))
    loss = loss_of(predicted, clips, case.objective["l1"], case.objective["l2"])
    loss.backward()
    figures = {"frames": predicted.permute(0, 1, 3, 4, 2), "loss": loss}
    for name in params:
        gradient = parameters[names[name]].grad
        assert gradient is not None
        figures[f"gradient of {name}"] = gradient.permute(2, 3, 1, 0)
    return {name: figure.detach().numpy() for name, figure in figures.items()}
