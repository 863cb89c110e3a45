"""Least times by hand: rings, slices, and what is predicted for other numbers of chips."""

import dataclasses
import math
import types

import pytest

from genjax.errors import UserError
from tools.rehearsal.chips import CHIPS, HOP_SECONDS, chip_of
from tools.rehearsal.collectives import Collective
from tools.rehearsal.compilation import Memory, refused_memory
from tools.rehearsal.plot import draw
from tools.rehearsal.rehearsal import Rehearsal, Variant
from tools.rehearsal.roofline import (
    Fabric,
    Place,
    collective_seconds,
    compact_fabric,
    fabric_of,
    roofline,
)
from tools.rehearsal.scaling import efficiency, predict
from tools.rehearsal.tables import collective_rows, values

pytestmark = pytest.mark.fast

GIGABYTE = 10**9
LINK, FAST_LINK = 4.5e10, 9e10


def seconds(kind, fabric, group=None, size=GIGABYTE):
    group = tuple(range(len(fabric.places)) if group is None else group)
    return collective_seconds(Collective(kind, ("fsdp",), group, size, 1.0), fabric)


def test_rings_close_on_whole_sides_only():
    whole, part = compact_fabric(CHIPS["v5e"], 256), compact_fabric(CHIPS["v5e"], 16)
    assert (whole.sides, part.sides) == ((16, 16), (4, 4))
    # Two directions, both ways round; on a part of the pod the ends of each line have one link.
    assert seconds("all-gather", whole) == pytest.approx(GIGABYTE * 255 / 256 / (4 * LINK))
    assert seconds("all-gather", part) == pytest.approx(GIGABYTE * 15 / 16 / (2 * LINK))
    cube, small = compact_fabric(CHIPS["v5p"], 64), compact_fabric(CHIPS["v5p"], 8)
    assert seconds("reduce-scatter", cube) == pytest.approx(GIGABYTE * 63 / 64 / (6 * FAST_LINK))
    assert seconds("reduce-scatter", small) == pytest.approx(GIGABYTE * 7 / 8 / (3 * FAST_LINK))


def test_a_sum_goes_round_twice():
    fabric = compact_fabric(CHIPS["v6e"], 256)
    assert seconds("all-reduce", fabric) == pytest.approx(2 * seconds("all-gather", fabric))


def test_a_group_has_the_links_of_the_directions_that_it_spans():
    fabric = compact_fabric(CHIPS["v5e"], 256)
    row, quarter = range(16), range(4)
    assert seconds("all-gather", fabric, row) == pytest.approx(GIGABYTE * 15 / 16 / (2 * LINK))
    assert seconds("all-gather", fabric, quarter) == pytest.approx(GIGABYTE * 3 / 4 / LINK)
    # Every fourth chip of the ring: four such groups share its links.
    spread = range(0, 16, 4)
    assert seconds("all-gather", fabric, spread) == pytest.approx(GIGABYTE * 3 / 4 / (2 * LINK / 4))
    # Three chips round a corner are a chain.
    assert seconds("all-gather", fabric, (0, 1, 17)) == pytest.approx(GIGABYTE * 2 / 3 / LINK)


def test_the_middle_decides_an_all_to_all_and_neighbours_a_permutation():
    fabric = compact_fabric(CHIPS["v5e"], 256)
    row = range(16)
    assert seconds("all-to-all", fabric, row) == pytest.approx(16 * GIGABYTE / 4 / (2 * LINK))
    assert seconds("collective-permute", fabric, row) == pytest.approx(GIGABYTE / LINK)


def test_small_messages_take_a_microsecond_a_hop():
    fabric = compact_fabric(CHIPS["v5e"], 256)
    assert seconds("all-gather", fabric, range(16), size=8) == pytest.approx(8 * HOP_SECONDS)
    assert seconds("all-gather", fabric, range(4), size=8) == pytest.approx(3 * HOP_SECONDS)
    assert seconds("all-reduce", fabric, range(16), size=8) == pytest.approx(16 * HOP_SECONDS)


def test_slices_exchange_their_parts_over_the_data_centre():
    chip = CHIPS["v5e"]
    both, one = compact_fabric(chip, 512), compact_fabric(chip, 256)
    within = seconds("all-reduce", one)
    assert seconds("all-reduce", both) == pytest.approx(
        within + 2 * GIGABYTE / 256 / 2 / chip.dcn_bandwidth
    )
    # Axes that lie across slices alone have no other way.
    pair = (0, 256)
    assert seconds("all-reduce", both, pair) == pytest.approx(GIGABYTE / chip.dcn_bandwidth)


def test_devices_of_two_cores_are_one_chip():
    devices = [
        types.SimpleNamespace(coords=[x, y, 0], core_on_chip=core, slice_index=None)
        for x in range(2)
        for y in range(2)
        for core in range(2)
    ]
    fabric = fabric_of(devices, CHIPS["tpu7x"])
    assert (fabric.chips, fabric.cores, fabric.sides) == (4, 2, (2, 2, 1))
    line = roofline(8e15, 7.38e12, [], fabric)
    assert line.compute == pytest.approx(8e15 / 4 / 2307e12)
    assert line.memory == pytest.approx(2.0)
    # Groups of the first cores share the links with those of the second.
    alone = seconds("all-gather", fabric, range(0, 8, 2))
    assert alone == pytest.approx(GIGABYTE * 3 / 4 / (2 * FAST_LINK / 2))


def test_chips_are_known_by_name():
    assert chip_of("v5p:8x8x8").hbm == 95 * 2**30
    with pytest.raises(UserError, match=r"v5litepod.*v5e"):
        chip_of("v5litepod-16")


def rehearsal(chips, collectives=(), variants=1):
    """A step of 1 s of compute on v5e, whose larger axis is fsdp."""
    fabric = compact_fabric(CHIPS["v5e"], chips)
    flops = chips * CHIPS["v5e"].flops
    memory = Memory(4e9, 16e9, 1e9, 1e9, 2e9, 0.0)
    variant = Variant(
        name="",
        share=1 / variants,
        memory=memory,
        flops=flops,
        traffic=0.5 * 8.19e11,
        collectives=tuple(collectives),
        roofline=roofline(flops, 0.5 * 8.19e11, collectives, fabric),
    )
    return Rehearsal(
        topology=f"v5e:{fabric.sides[0]}x{fabric.sides[1]}",
        mesh={"data": 1, "fsdp": chips, "tensor": 1, "sequence": 1},
        fabric=fabric,
        variants=(variant,) * variants,
        model_flops=flops / 2,
        units={"tokens": 1000 * chips},
        steps=7200,
        batch={"inputs": "int32 [8, 4]"},
    )


def gather(chips, size=90 * GIGABYTE):
    return Collective("all-gather", ("fsdp",), tuple(range(chips)), size, 2.0)


def test_a_step_takes_the_longest_of_its_times():
    one = rehearsal(64, [gather(64)])
    line = one.roofline
    assert line is not None
    # 8 x 8 chips have no rings: two links.
    assert line.network == pytest.approx(2 * 90 * GIGABYTE * 63 / 64 / (2 * LINK))
    assert (line.compute, line.memory) == pytest.approx((1.0, 0.5))
    assert line.limit == "network" and line.bound == line.network
    bound, in_turn = one.seconds()
    assert (bound, in_turn) == pytest.approx((line.network, line.network + 1.5))
    assert one.utilisation(1.0) == pytest.approx(0.5)
    assert one.chip_hours(1.0) == pytest.approx(7200 * 64 / 3600)


def test_variants_weigh_by_their_share():
    one = rehearsal(64, [gather(64)], variants=2)
    lazy = dataclasses.replace(
        one.variants[0],
        share=0.25,
        roofline=dataclasses.replace(one.variants[0].roofline, memory=9),
    )
    plain = dataclasses.replace(one.variants[0], share=0.75)
    both = dataclasses.replace(one, variants=(plain, lazy))
    network = plain.roofline.network
    assert both.seconds()[0] == pytest.approx(0.75 * network + 0.25 * 9)
    assert both.roofline.memory == pytest.approx(0.75 * 0.5 + 0.25 * 9)
    (row,) = collective_rows(both)
    assert row["count"] == 2.0 and row["bytes"] == 2 * 90 * GIGABYTE


def test_one_variant_that_does_not_fit_is_enough():
    one = rehearsal(64, variants=2)
    full = Memory(20e9, 16e9, 1e9, 1e9, 18e9, 0.0)
    refused = dataclasses.replace(one.variants[0], memory=full, roofline=None)
    both = dataclasses.replace(one, variants=(one.variants[0], refused))
    assert not both.fits and both.seconds() is None and both.memory is full
    assert values(both)["hbm"]["used"] == 20e9 and "step_seconds" not in values(both)


def test_predictions_meet_the_rehearsal_and_keep_the_work_of_a_chip():
    one = rehearsal(64, [gather(64, 180 * GIGABYTE)])
    by_chips = {point.chips: point for point in predict(one)}
    assert sorted(by_chips) == [2**power for power in range(3, 13)]
    bound, in_turn = one.seconds()
    here = by_chips[64]
    assert (here.seconds, here.seconds_in_turn, here.units) == (bound, in_turn, 64_000)
    # At 256 chips both rings are closed, and each has two links: half the time for the same array.
    whole = by_chips[256]
    assert whole.seconds == pytest.approx(2 * 180 * GIGABYTE * 255 / 256 / (4 * LINK))
    # Beyond, parts cross the data centre: never free.
    assert by_chips[512].seconds > whole.seconds
    assert by_chips[4096].units == 64 * here.units


def test_a_step_without_a_network_scales_perfectly():
    assert efficiency(predict(rehearsal(8))) == [1.0] * 10


def test_sizes_that_the_other_axes_do_not_divide_are_left_out():
    one = dataclasses.replace(
        rehearsal(64), mesh={"data": 1, "fsdp": 4, "tensor": 16, "sequence": 1}
    )
    assert min(point.chips for point in predict(one)) == 16


def test_the_plot_shows_each_slice():
    drawn = draw("a <run>", 7200, [rehearsal(8), rehearsal(64)])
    assert drawn.startswith("<svg") and drawn.count('class="band"') == 2
    assert "a &lt;run&gt;" in drawn and "tokens a second" in drawn and "nan" not in drawn


CHIP = CHIPS["v5e"]


@pytest.mark.parametrize(
    ("message", "used", "available"),
    [
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total "
            "memory required for HLO temporaries (20.5G) exceeds available HBM (15.75G). HLO",
            23.5,
            15.75,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 16.20G of 15.75G hbm. Exceeded hbm capacity by 461.50M.",
            16.2,
            15.75,
        ),
    ],
)
def test_refusals_tell_what_is_needed(message, used, available):
    memory = refused_memory(message, 2 * 2**30, 2**30, chip=CHIP, cores=1)
    assert memory is not None and not memory.fits
    assert memory.used / 2**30 == pytest.approx(used)
    assert memory.available / 2**30 == pytest.approx(available)


def test_other_refusals_are_told_apart():
    assert refused_memory("INTERNAL: a bug", 0, 0, chip=CHIP, cores=1) is None
    unknown = refused_memory("RESOURCE_EXHAUSTED: of something", 0, 0, chip=CHIP, cores=1)
    assert unknown is not None and math.isinf(unknown.used) and not unknown.fits


def test_a_fabric_counts_chips_by_place():
    places = (Place(0, (0, 0)), Place(0, (0, 1)), Place(1, (0, 0)))
    assert Fabric(CHIP, places, (1, 2)).chips == 3
