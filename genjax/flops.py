"""Counting a program's floating-point operations from what it is traced to.

Counted are the products: convolutions and matrix products, two operations a multiply-add. The rest
is element-wise, and small beside them. XLA's own count takes the body of a loop once; this one
multiplies by the number of turns.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core


def count_flops(function: Callable[..., Any], *arguments: Any, borders: bool = True) -> float:
    """Floating-point operations of the products in a call.

    Args:
        function: what to trace; it is not run.
        *arguments: arrays, or their shapes.
        borders: whether a convolution's products with the zeros around an image count, as they do
            in published figures. XLA's own count leaves them out, which for images of a few pixels
            is up to a half.
    """
    return _whole(jax.make_jaxpr(function)(*arguments).jaxpr, borders)


_CALLS = ("jit", "closed_call", "checkpoint", "custom_jvp_call", "custom_vjp_call")
"""Primitives that do no more than call a function of their own inputs."""


def _count(jaxpr: core.Jaxpr, wanted: Sequence[bool], borders: bool) -> tuple[float, list[bool]]:
    """Operations behind the wanted results, and which inputs these read.

    A custom gradient makes those of constants too, and the value of a linear function comes with
    its transpose: nobody uses them, and XLA leaves them out.
    """
    total = 0.0
    needed = {
        variable
        for variable, want in zip(jaxpr.outvars, wanted, strict=True)
        if want and isinstance(variable, core.Var)
    }
    for equation in reversed(jaxpr.eqns):
        acts = bool(equation.effects)
        used = [acts or result in needed for result in equation.outvars]
        # What writes into memory, as kernels do, may have no result.
        if not acts and not any(used):
            continue
        read = [True] * len(equation.invars)
        inner = _inner(equation.params)
        if equation.primitive.name in _CALLS and len(inner) == 1:
            flops, read = _count(inner[0], used, borders)
        else:
            flops = _equation_flops(equation, borders)
        total += flops
        needed |= {
            variable
            for variable, reads in zip(equation.invars, read, strict=True)
            if reads and isinstance(variable, core.Var)
        }
    return total, [variable in needed for variable in jaxpr.invars]


def _whole(jaxpr: core.Jaxpr, borders: bool) -> float:
    return _count(jaxpr, [True] * len(jaxpr.outvars), borders)[0]


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _equation_flops(equation: core.JaxprEqn, borders: bool) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = _shape(equation.invars[0])
        return (
            2.0
            * math.prod(_shape(equation.outvars[0]))
            * math.prod(left[dimension] for dimension in contracted)
        )
    if name == "conv_general_dilated":
        return _convolution_flops(equation, borders)
    if name == "cond":
        # Alternatives for other backends, or for other values: the largest.
        return max(_whole(branch.jaxpr, borders) for branch in params["branches"])
    turns = 1
    if name == "scan":
        turns = params["length"]
    elif name == "shard_map":
        turns = _shards(params)
    elif name == "pallas_call":
        # Blocks that a mask leaves out count too, where the kernel's grid has them.
        turns = math.prod(params["grid_mapping"].grid)
    return turns * sum(_whole(inner, borders) for inner in _inner(params))


def _shards(params: dict[str, Any]) -> int:
    """In how many parts a hand-split piece works, each of which it is traced for."""
    specs = (*params["in_specs"], *params["out_specs"])
    axes = {
        axis
        for spec in specs
        for entry in spec
        for axis in ((entry,) if isinstance(entry, str) else entry or ())
    }
    return math.prod(params["mesh"].shape[axis] for axis in axes)


def _convolution_flops(equation: core.JaxprEqn, borders: bool) -> float:
    """Products with inserted zeros are never counted."""
    params, kernel = equation.params, _shape(equation.invars[1])
    numbers = params["dimension_numbers"]
    features = kernel[numbers.rhs_spec[0]]
    outputs = _shape(equation.outvars[0])
    if borders:
        inserted = math.prod(params["lhs_dilation"])
        return 2.0 * math.prod(outputs) * math.prod(kernel) / features / inserted
    spatial = (numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:])
    read = math.prod(
        _products(
            *(_shape(equation.invars[0])[image], kernel[tap], outputs[output]),
            *(params["window_strides"][n], params["padding"][n][0]),
            *(params["lhs_dilation"][n], params["rhs_dilation"][n]),
        )
        for n, (image, tap, output) in enumerate(zip(*spatial, strict=True))
    )
    batch = outputs[numbers.out_spec[0]]
    return 2.0 * batch * features * kernel[numbers.rhs_spec[1]] * read


def _products(
    size: int, taps: int, outputs: int, stride: int, before: int, inserted: int, spread: int
) -> int:
    """How often along one axis a tap of an output meets a pixel, no border or inserted zero."""
    places = (
        output * stride + tap * spread - before for output in range(outputs) for tap in range(taps)
    )
    return sum(place % inserted == 0 and 0 <= place < size * inserted for place in places)


def _inner(params: dict[str, Any]) -> list[core.Jaxpr]:
    found = []
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                found.append(one.jaxpr)
            elif isinstance(one, core.Jaxpr):
                found.append(one)
    return found
