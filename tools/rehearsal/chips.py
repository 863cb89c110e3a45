"""Published peaks of TPU chips, which a roofline is drawn from.

Sources, all read in November 2026:

- [1] docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e and /tpu7x, "System architecture": peak
  compute, memory and its bandwidth, links; of v5p, v6e and tpu7x also the data centre network (50,
  100 and 100 Gbit/s a chip), of v5e 6.4 Tbit/s a pod of 256.
- [2] jax-ml.github.io/scaling-book/tpus, "TPU Specs": what a link carries one way (4.5e10 B/s for
  v4 and v5e, 9e10 for v5p and v6e: less than the pages' nominal figure), 6.25e9 B/s of the data
  centre network for a v4 chip, one microsecond a hop, and which slices close their rings: sides
  that are multiples of 4 (v4, v5p, tpu7x) or 16 (v5e, v6e).

For tpu7x no measured figure of a link is published: nine tenths of the nominal 100 GB/s (1200 GB/s
over six links and both ways) is taken, as for its predecessor.
"""

import dataclasses
import math

from genjax.errors import UserError

HOP_SECONDS = 1e-6
"""The time from a chip to its neighbour [2]."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """The peaks of a chip.

    Attributes:
        name: as topologies call it, such as "v5e".
        flops: bfloat16 operations a second.
        hbm: bytes of high-bandwidth memory.
        hbm_bandwidth: bytes a second.
        link_bandwidth: bytes a second over a link to a neighbour, one way.
        dcn_bandwidth: bytes a second from chip to chip of another slice.
        dimensions: of the torus: 2 or 3.
        ring: sides of a slice that are multiples of it have their ends connected.
        largest: chips of the largest slice that is rehearsed.
    """

    name: str
    flops: float
    hbm: int
    hbm_bandwidth: float
    link_bandwidth: float
    dcn_bandwidth: float
    dimensions: int
    ring: int
    largest: int

    def slice_shape(self, chips: int) -> tuple[int, ...]:
        """The sides of a compact slice of so many chips, each a power of two but perhaps one."""
        sides = [1] * self.dimensions
        rest = chips
        while rest % 2 == 0 and rest > 1:
            smallest = sides.index(min(sides))
            sides[smallest] *= 2
            rest //= 2
        sides[sides.index(min(sides))] *= rest
        assert math.prod(sides) == chips
        return tuple(sorted(sides))


GIB = 2**30

CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32 * GIB, 1.2e12, 4.5e10, 6.25e9, 3, 4, 4096),
        Chip("v5e", 197e12, 16 * GIB, 8.19e11, 4.5e10, 3.125e9, 2, 16, 256),
        Chip("v5p", 459e12, 95 * GIB, 2.765e12, 9e10, 6.25e9, 3, 4, 4096),
        Chip("v6e", 918e12, 32 * GIB, 1.638e12, 9e10, 12.5e9, 2, 16, 256),
        Chip("tpu7x", 2307e12, 192 * GIB, 7.38e12, 9e10, 12.5e9, 3, 4, 4096),
    )
}
"""By the name that a topology begins with."""


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as "v5e:16x16".

    Raises:
        UserError: there is none of that name.
    """
    name = topology.partition(":")[0]
    if name not in CHIPS:
        raise UserError(
            f"--topology {topology}: no peaks are known of {name!r}; one of {', '.join(CHIPS)}, "
            "with a shape, such as v5e:16x16"
        )
    return CHIPS[name]
