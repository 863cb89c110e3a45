"""What a rehearsed step would do on more or fewer chips, by the formulas alone."""

import dataclasses
import math
from collections.abc import Sequence

from tools.rehearsal.collectives import Collective
from tools.rehearsal.rehearsal import Rehearsal
from tools.rehearsal.roofline import collective_seconds, compact_fabric

SIZES = tuple(2**power for power in range(3, 13))
"""8 to 4096 chips."""

ASSUMPTIONS = (
    "each chip keeps its part of the batch, so the batch grows with the chips; compute and memory "
    "times of a chip stay as rehearsed; the larger of the mesh's data and fsdp axes grows, and "
    "only the time of its collectives changes, by the formulas for a compact slice of that size; "
    "beyond the largest slice ({largest}) there are several, over the data centre's network"
)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A step on a number of chips.

    Attributes:
        chips: how many.
        seconds: of the step, were all to overlap.
        seconds_in_turn: were nothing to overlap.
        units: what it works through.
    """

    chips: int
    seconds: float
    seconds_in_turn: float
    units: float


def predict(rehearsal: Rehearsal, sizes: Sequence[int] = SIZES) -> list[Prediction]:
    """The step on other numbers of chips (weak scaling); `ASSUMPTIONS` says by which rules.

    Args:
        rehearsal: of a step that fits.
        sizes: numbers of chips; those that the mesh's other axes do not divide are left out.
    """
    fabric = rehearsal.fabric
    grown = "fsdp" if rehearsal.mesh["fsdp"] > rehearsal.mesh["data"] else "data"
    others = fabric.chips * fabric.cores // rehearsal.mesh[grown]
    unit = next(iter(rehearsal.units.values()), 0)
    found = []
    for chips in sizes:
        if chips * fabric.cores % others or chips * fabric.cores < others:
            continue
        growth = chips / fabric.chips
        bound = in_turn = 0.0
        for one in rehearsal.variants:
            line = one.roofline
            assert line is not None
            network = sum(
                each.count * _grown_seconds(each, rehearsal, grown, chips)
                for each in one.collectives
            )
            bound += one.share * max(line.compute, line.memory, network)
            in_turn += one.share * (line.compute + line.memory + network)
        found.append(Prediction(chips, bound, in_turn, unit * growth))
    return found


def _grown_seconds(one: Collective, rehearsal: Rehearsal, grown: str, chips: int) -> float:
    """A collective's time where its axis has grown with the number of chips."""
    fabric = rehearsal.fabric
    here = collective_seconds(one, fabric)
    if grown not in one.axes or chips == fabric.chips:
        return here
    chip = fabric.chip
    before = max(1, len(one.group) // fabric.cores)
    # An axis that was 1 has no collectives to grow from.
    after = max(1, round(before * chips / fabric.chips))

    def compact(count: int) -> float:
        if count < 2:
            return 0.0
        whole = compact_fabric(chip, count)
        return collective_seconds(
            dataclasses.replace(one, group=tuple(range(len(whole.places)))), whole
        )

    reference = compact(before)
    return here * compact(after) / reference if reference else compact(after)


def assumptions(rehearsals: Sequence[Rehearsal]) -> str:
    """`ASSUMPTIONS` for the chips of rehearsals."""
    chips = dict.fromkeys(one.fabric.chip for one in rehearsals)
    return ASSUMPTIONS.format(
        largest=", ".join(f"{chip.largest} chips of {chip.name}" for chip in chips)
    )


def efficiency(predictions: Sequence[Prediction]) -> list[float]:
    """Each prediction's rate for a chip, as a share of the best of them."""
    rates = [one.units / one.seconds_in_turn / one.chips for one in predictions]
    best = max(rates, default=math.nan)
    return [rate / best for rate in rates]
