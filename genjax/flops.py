"""Counting a program's floating-point operations from what it is traced to.

Counted are the products: convolutions and matrix products, two operations a multiply-add. The rest
is element-wise, and small beside them. XLA's own count takes the body of a loop once; this one
multiplies by the number of turns.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def count_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Floating-point operations of the products in a call.

    Args:
        function: what to trace; it is not run.
        *arguments: arrays, or their shapes.
    """
    return _jaxpr_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def _jaxpr_flops(jaxpr: core.Jaxpr) -> float:
    """Of all whose result is used: a custom gradient makes those of its constants, too."""
    total = 0.0
    needed = {variable for variable in jaxpr.outvars if isinstance(variable, core.Var)}
    for equation in reversed(jaxpr.eqns):
        if equation.effects or not needed.isdisjoint(equation.outvars):
            total += _equation_flops(equation)
            needed |= {variable for variable in equation.invars if isinstance(variable, core.Var)}
    return total


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _equation_flops(equation: core.JaxprEqn) -> float:
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
        return _convolution_flops(equation)
    if name == "cond":
        # Alternatives for other backends, or for other values: the largest.
        return max(_jaxpr_flops(branch.jaxpr) for branch in params["branches"])
    turns = 1
    if name == "scan":
        turns = params["length"]
    elif name == "shard_map":
        turns = _shards(params)
    elif name == "pallas_call":
        # Blocks that a mask leaves out count too, where the kernel's grid has them.
        turns = math.prod(params["grid_mapping"].grid)
    return turns * sum(_jaxpr_flops(inner) for inner in _inner(params))


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


def _convolution_flops(equation: core.JaxprEqn) -> float:
    """Products with inserted zeros are not counted."""
    params, kernel = equation.params, _shape(equation.invars[1])
    numbers = params["dimension_numbers"]
    features = kernel[numbers.rhs_spec[0]]
    inserted = math.prod(params["lhs_dilation"])
    outputs = math.prod(_shape(equation.outvars[0]))
    return 2.0 * outputs * math.prod(kernel) / features / inserted


def _inner(params: dict[str, Any]) -> list[core.Jaxpr]:
    found = []
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                found.append(one.jaxpr)
            elif isinstance(one, core.Jaxpr):
                found.append(one)
    return found
