"""Collectives and memory traffic read off programs: written by hand, and made by XLA."""
# ruff: noqa: E501  (lines of programs are as long as XLA writes them)

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from genjax.parallel.mesh import AXES, MeshConfig, make_mesh
from tools.rehearsal.collectives import axes_of, find_collectives, groups_of
from tools.rehearsal.loops import visits
from tools.rehearsal.program_text import parse
from tools.rehearsal.traffic import memory_traffic

MESH = {"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1}

# A loop whose turns stand in the constants: the counter starts at 2, in a copy, and goes up by one
# in a fusion until 9. What the condition compares with is carried along.
LOOP = """
HloModule step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%count_up (at: s32[]) -> s32[] {
  %at = s32[] parameter(0)
  %one = s32[] constant(1)
  ROOT %next = s32[] add(%at, %one)
}

%less (a: s32[], b: s32[]) -> pred[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %lt = pred[] compare(%a, %b), direction=LT
}

%take_layer (layers: f32[7,4,8], at: s32[]) -> f32[4,8] {
  %layers = f32[7,4,8]{2,1,0:T(8,128)} parameter(0)
  %where = s32[] parameter(1)
  %zero = s32[] constant(0)
  %layer = f32[1,4,8]{2,1,0} dynamic-slice(%layers, %where, %zero, %zero), dynamic_slice_sizes={1,4,8}
  ROOT %flat = f32[4,8]{1,0} bitcast(%layer)
}

%body (carried: (s32[], f32[4,8], s32[], f32[7,4,8])) -> (s32[], f32[4,8], s32[], f32[7,4,8]) {
  %carried = (s32[], f32[4,8]{1,0}, s32[], f32[7,4,8]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%carried), index=0
  %array = f32[4,8]{1,0} get-tuple-element(%carried), index=1
  %limit = s32[] get-tuple-element(%carried), index=2
  %all = f32[7,4,8]{2,1,0} get-tuple-element(%carried), index=3
  %mine = f32[4,8]{1,0:T(8,128)S(1)} fusion(%all, %i), kind=kLoop, calls=%take_layer
  %reduced = f32[4,8]{1,0} all-reduce(%array), channel_id=1, replica_groups=[4,2]<=[8], to_apply=%add, metadata={op_name="jit(train_step)/layers/dot_general" stack_frame_id=1}
  %i_next = s32[] fusion(%i), kind=kLoop, calls=%count_up
  ROOT %out = (s32[], f32[4,8]{1,0}, s32[], f32[7,4,8]{2,1,0}) tuple(%i_next, %reduced, %limit, %all)
}, execution_thread="main"

%condition (carried.1: (s32[], f32[4,8], s32[], f32[7,4,8])) -> pred[] {
  %carried.1 = (s32[], f32[4,8]{1,0}, s32[], f32[7,4,8]{2,1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%carried.1), index=0
  %limit.1 = s32[] get-tuple-element(%carried.1), index=2
  ROOT %go = pred[] fusion(%i.1, %limit.1), kind=kLoop, calls=%less
}

ENTRY %main (p: f32[4,8], layers: f32[7,4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %layers.1 = f32[7,4,8]{2,1,0} parameter(1)
  %two = s32[] constant(2)
  %begin = s32[] copy(%two)
  %nine = s32[] constant(9)
  %kernel = f32[4,8]{1,0} custom-call(%p), custom_call_target="tpu_custom_call", backend_config={
}, "more": "of its own text over several lines"
}}, metadata={}
  %start = (s32[], f32[4,8]{1,0}, s32[], f32[7,4,8]{2,1,0}) tuple(%begin, %kernel, %nine, %layers.1)
  %loop = (s32[], f32[4,8]{1,0}, s32[], f32[7,4,8]{2,1,0}) while(%start), condition=%condition, body=%body
  ROOT %result = f32[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""

# What XLA:TPU writes: a gather that is begun in one fusion, goes on in another and ends in a third;
# a sum of which each device keeps its part; pairs that begin and end apart.
SPREAD = """
HloModule step, is_scheduled=true

%begin (a: bf16[4,8]) -> (bf16[4,8], bf16[8,8], u32[]) {
  %a = bf16[4,8]{1,0} parameter(0)
  %gather.1 = bf16[8,8]{1,0} all-gather(%a), channel_id=7, replica_groups=[4,2]<=[4,2], dimensions={0}
  ROOT %started = (bf16[4,8]{1,0}, bf16[8,8]{1,0}, u32[]{:S(2)}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%meanwhile (a.1: bf16[4,8]) -> bf16[8,8] {
  %a.1 = bf16[4,8]{1,0} parameter(0)
  ROOT %gather.2 = bf16[8,8]{1,0} all-gather(%a.1), channel_id=7, replica_groups=[4,2]<=[4,2], dimensions={0}
}

%all-reduce-scatter.3 (b: f32[16,8]) -> f32[2,8] {
  %b = f32[16,8]{1,0} parameter(0)
  %sum = f32[16,8]{1,0} all-reduce(%b), channel_id=8, replica_groups={{0,1,2,3,4,5,6,7}}
  %zero = s32[] constant(0)
  ROOT %part = f32[2,8]{1,0} dynamic-slice(%sum, %zero, %zero), dynamic_slice_sizes={2,8}
}

ENTRY %main (a.2: bf16[4,8], b.1: f32[16,8]) -> f32[2,8] {
  %a.2 = bf16[4,8]{1,0} parameter(0)
  %b.1 = f32[16,8]{1,0} parameter(1)
  %one = (bf16[4,8]{1,0}, bf16[8,8]{1,0}, u32[]{:S(2)}) fusion(%a.2), kind=kCustom, calls=%begin
  %two = bf16[8,8]{1,0} fusion(%a.2), kind=kCustom, calls=%meanwhile
  %send = (bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[], u32[]) collective-permute-start(%a.2), channel_id=9, source_target_pairs={{0,4},{4,0},{1,5},{5,1},{2,2}}
  %sent = bf16[4,8]{1,0} collective-permute-done(%send)
  %alone = f32[16,8]{1,0} all-reduce(%b.1), channel_id=10, replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}
  ROOT %three = f32[2,8]{1,0} fusion(%b.1), kind=kCustom, calls=%all-reduce-scatter.3
}
"""


# Two slices: the parts of a sum within each, and its hosts' sum of a part over both.
SLICES = """
HloModule step, is_scheduled=true

ENTRY %main (part: f32[16,8]) -> f32[16,8] {
  %part = f32[16,8]{1,0} parameter(0)
  %first = token[] after-all()
  %send = (f32[16,8]{1,0}, u32[], token[]) send(%part, %first), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent = token[] send-done(%send), channel_id=3, is_host_transfer=true
  %recv = (f32[16,8]{1,0}, u32[], token[]) recv(%first), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %received = (f32[16,8]{1,0}, token[]) recv-done(%recv), channel_id=2, is_host_transfer=true
  ROOT %sum = f32[16,8]{1,0} get-tuple-element(%received), index=0
}
"""

# A product that takes one of seven layers, in a fusion within its own.
NESTED = """
HloModule step, is_scheduled=true

%take_layer (layers: f32[7,4,8], at: s32[]) -> f32[4,8] {
  %layers = f32[7,4,8]{2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  %layer = f32[1,4,8]{2,1,0} dynamic-slice(%layers, %at, %zero, %zero), dynamic_slice_sizes={1,4,8}
  ROOT %flat = f32[4,8]{1,0} bitcast(%layer)
}

%product (x: f32[2,4], all: f32[7,4,8], i: s32[]) -> f32[2,8] {
  %x = f32[2,4]{1,0} parameter(0)
  %all = f32[7,4,8]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  %mine = f32[4,8]{1,0} fusion(%all, %i), kind=kLoop, calls=%take_layer
  ROOT %dot = f32[2,8]{1,0} convolution(%x, %mine), dim_labels=bf_io->bf
}

ENTRY %main (x.1: f32[2,4], all.1: f32[7,4,8], i.1: s32[]) -> f32[2,8] {
  %x.1 = f32[2,4]{1,0} parameter(0)
  %all.1 = f32[7,4,8]{2,1,0} parameter(1)
  %i.1 = s32[] parameter(2)
  ROOT %out = f32[2,8]{1,0} fusion(%x.1, %all.1, %i.1), kind=kOutput, calls=%product
}
"""


def read(text, mesh=MESH, across=None):
    program = parse(text)
    visited, unknown = visits(program)
    found = find_collectives(program, visited, mesh, across)
    return found, memory_traffic(program, visited), unknown


@pytest.mark.fast
def test_turns_of_a_loop_are_read_off_its_constants():
    (found,), traffic, unknown = read(LOOP)
    assert (found.kind, found.axes, found.size, found.count) == ("all-reduce", ("tensor",), 128, 7)
    assert found.total == 7 * 128 and found.operation == "layers/dot_general"
    assert unknown == 0
    # A turn reads one layer into on-chip memory, and passes the array through; counters and the
    # truth of the comparison are bytes too. Before it a copy, and the kernel once in, once out.
    turn = 128 + 4 + 2 * 128 + 2 * 4
    assert traffic == 7 * (turn + 2 * 4 + 1) + 2 * 4 + 2 * 128


@pytest.mark.fast
def test_slices_within_a_product_count_as_slices():
    _, traffic, _ = read(NESTED)
    assert traffic == 4 * (2 * 4 + 4 * 8 + 1 + 2 * 8)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("kind", "across", "expected"),
    [
        ("ALL_REDUCE", {"data": 2}, ("all-reduce", ("data",), (0, 4), 512)),
        ("ALL_GATHER", {"fsdp": 2}, ("all-gather", ("fsdp",), (0, 2), 1024)),
        ("ONE_TO_ONE", {"data": 2}, ("collective-permute", ("data",), (0, 4), 512)),
    ],
)
def test_what_hosts_send_from_slice_to_slice_counts_once(kind, across, expected):
    (found,), _, _ = read(SLICES.replace("ALL_REDUCE", kind), across=across)
    assert (found.kind, found.axes, found.group, found.size) == expected
    assert found.count == 1


@pytest.mark.fast
def test_a_loop_that_does_not_tell_its_turns_counts_once_and_is_told():
    (found,), _, unknown = read(LOOP.replace("constant(9)", "parameter(2)"))
    assert found.count == 1 and unknown == 1


@pytest.mark.fast
def test_a_written_number_of_turns_goes_first():
    written = 'body=%body, backend_config={"known_trip_count":{"n":"40"}}'
    (found,), _, _ = read(LOOP.replace("body=%body", written))
    assert found.count == 40


@pytest.mark.fast
def test_spread_and_split_collectives_count_once():
    found, _, _ = read(SPREAD)
    assert [(one.kind, one.axes, one.size, one.count) for one in found] == [
        ("reduce-scatter", ("data", "fsdp", "tensor"), 512, 1),
        ("all-gather", ("tensor",), 128, 1),
        ("collective-permute", ("data",), 64, 1),
    ]


@pytest.mark.fast
@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,2},{1,3},{4,6},{5,7}}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("[4,2]<=[8]", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("[2,4]<=[4,2]T(1,0)", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("[4,2]<=[2,2,2]T(0,2,1)", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("mesh['a'=4,'b'=2] {'b'}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("mesh['a'=4,'b'=2] {'a'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("mesh['a'=8] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("{}", [list(range(8))]),
    ],
)
def test_groups_in_every_form(text, groups):
    line = f"  %r = f32[4] all-reduce(%x), replica_groups={text}, to_apply=%add\n"
    program = parse(f"ENTRY %main (x: f32[4]) -> f32[4] {{\n{line}}}\n")
    one = program.computations["main"].instructions["r"]
    assert groups_of(one, 8) == groups


@pytest.mark.fast
def test_axes_are_those_along_which_a_group_differs():
    assert axes_of([[0, 1]], MESH) == ("tensor",)
    assert axes_of([[0, 2, 4, 6]], MESH) == ("data", "fsdp")
    assert axes_of([[0, 3]], MESH) == ("fsdp", "tensor")


@functools.cache
def compiled_scan():
    """Five layers over two kinds of shards, and back: what XLA makes of it on eight devices."""
    mesh = make_mesh(MeshConfig(data=4, tensor=2))

    def loss(weights, x):
        def layer(x, weight):
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ weight), P("data", "tensor")), None

        return jnp.sum(jax.lax.scan(layer, x, weights)[0])

    def shape(*sides, spec):
        return jax.ShapeDtypeStruct(sides, jnp.float32, sharding=NamedSharding(mesh, spec))

    # The second matrix side of each weight is split: x must be gathered along "tensor" each turn.
    weights = shape(5, 16, 16, spec=P(None, None, "tensor"))
    x = shape(8, 16, spec=P("data", "tensor"))
    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(loss)).lower(weights, x).compile().as_text(), dict(mesh.shape)


def test_a_compiled_scan_gathers_in_every_turn():
    text, mesh = compiled_scan()
    assert tuple(mesh) == AXES
    found, traffic, unknown = read(text, mesh)
    assert unknown == 0 and traffic > 0
    gathers = [one for one in found if one.kind == "all-gather" and one.axes == ("tensor",)]
    # [2, 16] on each device after the gather: forward in each of the turns, at least.
    assert sum(one.count for one in gathers if one.size == 2 * 16 * 4) >= 5
    sums = [one for one in found if one.kind == "all-reduce" and one.axes == ("data",)]
    # The gradient of a weight, [16, 8] on each device, in each turn or of all together.
    assert sum(one.total for one in sums) == pytest.approx(5 * 16 * 8 * 4, rel=0.1)
    assert all(one.axes in (("tensor",), ("data",)) for one in found)


def test_a_sum_within_a_scan_is_multiplied():
    mesh = make_mesh(MeshConfig(data=8))

    def summed(x):
        def turn(total, row):
            return total + jax.lax.psum(row, "data"), None

        return jax.lax.scan(turn, jnp.zeros(6), x[0])[0]

    mapped = jax.shard_map(summed, mesh=mesh, in_specs=P("data"), out_specs=P(), check_vma=False)
    x = jax.ShapeDtypeStruct((8, 11, 6), jnp.float32, sharding=NamedSharding(mesh, P("data")))
    text = jax.jit(mapped).lower(x).compile().as_text()
    (found,), _, unknown = read(text, dict(mesh.shape))
    assert (found.kind, found.axes, found.size, found.count) == ("all-reduce", ("data",), 24, 11)
    assert found.group == tuple(range(8)) and unknown == 0
