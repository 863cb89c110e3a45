"""Random numbers for data: the same in every version of NumPy.

NumPy fixes the raw stream of its bit generators for good, but not what `Generator` makes of it.

N numbers.
"""

import numpy as np
from jaxtyping import Float, Int, UInt64


def permutation(count: int, *seeds: int) -> Int[np.ndarray, " N"]:
    """The numbers 0 to count - 1 in an order that the seeds decide."""
    return np.argsort(_raw(count, seeds), kind="stable")


def random_integers(bound: int, count: int, *seeds: int) -> Int[np.ndarray, " N"]:
    """Uniform integers from 0 to bound - 1; the modulo bias is below bound / 2**64."""
    return (_raw(count, seeds) % np.uint64(bound)).astype(np.int64)


def standard_normal(count: int, *seeds: int) -> Float[np.ndarray, " N"]:
    """Normal numbers of mean 0 and standard deviation 1, float64 (Box and Muller, 1958)."""
    # 53 bits make a float64 in (0, 1]: the logarithm is finite.
    uniform = ((_raw(2 * count, seeds) >> np.uint64(11)) + np.uint64(1)) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log(uniform[:count]))
    return radius * np.cos(2.0 * np.pi * uniform[count:])


def _raw(count: int, seeds: tuple[int, ...]) -> UInt64[np.ndarray, " N"]:
    return np.random.Philox(np.random.SeedSequence(seeds)).random_raw(count)
