"""Where the arrays of a train state lie on a mesh of eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from genjax.optim import AdafactorConfig, AdamWConfig, LionConfig, MuonConfig, make_optimizer
from genjax.parallel.mesh import MeshConfig, make_mesh
from genjax.parallel.partition import (
    FSDP_MINIMUM_SIZE,
    batch_sharding,
    partition_spec,
    path_name,
    state_shardings,
    unsharded_share,
)
from genjax.task import TrainState
from genjax.text.transformer import PARTITION_RULES, Transformer

RULES = ((r"up/kernel$", ("fsdp", "tensor")), (r"up/bias$", ("tensor",)), (r"kernel$", (None,)))
LARGE = FSDP_MINIMUM_SIZE


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


@pytest.fixture(scope="module")
def fsdp_mesh():
    return make_mesh(MeshConfig(data=2, fsdp=4))


# Rules


@pytest.mark.fast
@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("params/net/up/kernel", (4, 6), P("fsdp", "tensor")),
        ("params/net/up/kernel", (12, 4, 6), P(None, "fsdp", "tensor")),
        ("params/net/up/kernel", (3, 12, 4, 6), P(None, None, "fsdp", "tensor")),
        ("params/net/up/bias", (12, 6), P(None, "tensor")),
        # An axis that does not divide its dimension is left out, and only that axis.
        ("params/net/up/kernel", (5, 6), P(None, "tensor")),
        ("params/net/up/kernel", (4, 7), P("fsdp", None)),
        # The first match decides, though the fallback would shard this large array.
        ("params/net/down/kernel", (256, 256), P(None, None)),
        # A rule for more dimensions than the array has is no rule for it.
        ("params/net/up/kernel", (4,), P(None)),
        ("params/net/up/bias", (), P()),
    ],
)
def test_rules_name_the_axes_of_trailing_dimensions(mesh, name, shape, expected):
    assert partition_spec(name, shape, RULES, mesh) == expected


@pytest.mark.fast
def test_a_rule_may_name_several_axes_for_a_dimension(mesh):
    rules = ((r"^carry/", (("data", "fsdp"), None)),)
    assert partition_spec("carry/net", (8, 3), rules, mesh) == P(("data", "fsdp"), None)
    assert partition_spec("carry/net", (6, 3), rules, mesh) == P(None, None)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((LARGE // 4, 4), P("fsdp", None)),
        ((4, LARGE // 4), P(None, "fsdp")),
        ((3, 3, 64, 512), P(None, None, None, "fsdp")),
        # The largest dimension that four divides: neither 513 nor 511.
        ((513, 64), P(None, "fsdp")),
        ((511, 128, 4), P(None, "fsdp", None)),
        ((129, 129), P()),
        ((LARGE - 4,), P()),
        ((LARGE,), P("fsdp")),
        ((), P()),
        # Taps of a convolution are never split, however many, but its channels.
        ((8, 8, 513, 12), P(None, None, None, "fsdp")),
        ((64, 64, 8, 4), P(None, None, "fsdp", None)),
        ((4, 4, 4, 64, 32), P(None, None, None, "fsdp", None)),
        ((64, 64, 3, 5), P()),
    ],
)
def test_the_fallback_splits_the_larger_feature_dimension_of_large_arrays(
    fsdp_mesh, shape, expected
):
    assert partition_spec("params/net/anything", shape, (), fsdp_mesh) == expected


@pytest.mark.fast
@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        # Layers, rows, columns: more layers than features do not change it.
        ((1024, 4, 8), P(None, None, "fsdp")),
        ((64, 128, 512), P(None, None, "fsdp")),
        # Norms and biases of a stack.
        ((1024, 32), P(None, "fsdp")),
        ((1024, 33), P()),
        ((LARGE,), P()),
    ],
)
@pytest.mark.parametrize("part", ["params", "opt_state", "ema"])
def test_the_fallback_never_splits_a_stack_by_its_layers(fsdp_mesh, part, shape, expected):
    assert partition_spec(f"{part}/net/layers/anything", shape, (), fsdp_mesh) == expected
    # Layers by number are no stack.
    if len(shape) == 2:
        unstacked = partition_spec(f"{part}/net/layers_0/anything", shape, (), fsdp_mesh)
        assert unstacked == P("fsdp", None)


@pytest.mark.fast
def test_without_an_fsdp_axis_the_fallback_splits_nothing():
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    assert partition_spec("params/net/anything", (512, 512), (), mesh) == P()


# States of a small transformer


def transformer(scan_layers):
    return Transformer(
        vocab_size=128,
        context_length=8,
        num_layers=2,
        num_heads=2,
        hidden_size=128,
        tie_embeddings=False,
        scan_layers=scan_layers,
    )


def make_state(optimizer, scan_layers, key):
    params = transformer(scan_layers).init(key, jnp.zeros((1, 4), jnp.int32))["params"]
    return TrainState(
        step=jnp.int32(0),
        params={"language_model": params},
        opt_state={"language_model": optimizer.init(params)},
        ema={"language_model": jax.tree.map(jnp.copy, params)},
        carry={},
        key=key,
    )


def layout(optimizer, scan_layers, mesh):
    """Shape and partition of every array of a state, by path."""
    shapes = jax.eval_shape(lambda: make_state(optimizer, scan_layers, jax.random.key(0)))
    shardings = state_shardings(shapes, PARTITION_RULES, mesh)
    shapes = {path_name(p): leaf.shape for p, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    specs = {path_name(p): s.spec for p, s in jax.tree_util.tree_leaves_with_path(shardings)}
    assert shapes.keys() == specs.keys()
    return {name: (shapes[name], specs[name]) for name in shapes}


def parameter_of(name, parameters):
    """The parameter that an array of the optimizer or the average belongs to."""
    return next((p for p in parameters if name.endswith("/" + p)), None)


OPTIMIZERS = {
    "adamw": optax.adamw(1e-3),
    "house_adamw": make_optimizer(AdamWConfig(), 10),
    "muon": make_optimizer(MuonConfig(), 10),
    "adafactor": make_optimizer(AdafactorConfig(), 10),
    "lion": make_optimizer(LionConfig(), 10),
}


@pytest.mark.fast
@pytest.mark.parametrize("scan_layers", [False, True], ids=["layers", "scanned"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizer_states_and_averages_shard_like_their_parameters(mesh, kind, scan_layers):
    arrays = layout(OPTIMIZERS[kind], scan_layers, mesh)
    prefix = "params/language_model/"
    parameters = {
        name.removeprefix(prefix): value
        for name, value in arrays.items()
        if name.startswith(prefix)
    }
    copies = {"ema": 0, "opt_state": 0}
    for name, (shape, spec) in arrays.items():
        parameter = parameter_of(name, parameters)
        if name.startswith("params/") or parameter is None:
            continue
        if shape == parameters[parameter][0]:
            assert spec == parameters[parameter][1], name
            copies[name.partition("/")[0]] += 1
        else:
            assert kind == "adafactor"
            # Means over rows or columns: too small here for the fallback.
            assert spec == P(), name
    assert copies["ema"] == len(parameters)
    if kind != "adafactor":
        assert copies["opt_state"] >= len(parameters)


@pytest.mark.fast
def test_the_rules_of_the_transformer_reach_its_kernels(mesh):
    arrays = layout(OPTIMIZERS["adamw"], True, mesh)
    specs = {name: spec for name, (_, spec) in arrays.items()}
    kernels = "params/language_model/layers"
    assert specs[f"{kernels}/attention/qkv/kernel"] == P(None, "fsdp", "tensor")
    assert specs[f"{kernels}/attention/qkv/bias"] == P(None, "tensor")
    assert specs[f"{kernels}/feed_forward/down/kernel"] == P(None, "tensor", "fsdp")
    assert specs["params/language_model/token_embedding"] == P("tensor", "fsdp")
    assert specs["params/language_model/output/kernel"] == P("fsdp", "tensor")
    assert specs["step"] == specs["key"] == P()


def test_large_row_means_of_adafactor_fall_back_to_fsdp(fsdp_mesh):
    kernel = jax.ShapeDtypeStruct((64, 128, 512), jnp.float32)
    shapes = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params={"net": {"up": {"kernel": kernel}}},
        opt_state={"net": jax.eval_shape(OPTIMIZERS["adafactor"].init, {"up": {"kernel": kernel}})},
        ema={},
        carry={},
        key=jax.ShapeDtypeStruct((), jnp.uint32),
    )
    shardings = state_shardings(shapes, RULES, fsdp_mesh)
    found = {
        leaf.shape: sharding.spec
        for leaf, sharding in zip(
            jax.tree.leaves(shapes.opt_state), jax.tree.leaves(shardings.opt_state), strict=True
        )
    }
    # The kernel's rule, laid on its means [layers, in], would have split the layers.
    assert found[64, 512] == P(None, "fsdp")
    assert found[64, 128] == P()


@pytest.mark.parametrize("kind", ["adafactor", "muon"])
def test_an_update_in_its_layout_gives_what_it_gives_on_one_device(mesh, kind):
    optimizer = OPTIMIZERS[kind]
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(2, 128, 130)).astype(np.float32)
    params = {"net": {"up": {"kernel": kernel, "bias": kernel[:, 0]}}}

    def update(params, opt_state):
        updates, opt_state = optimizer.update(params["net"], opt_state["net"], params["net"])
        return {"net": optax.apply_updates(params["net"], updates)}, {"net": opt_state}

    opt_state = {"net": optimizer.init(params["net"])}
    whole = {"params": params, "opt_state": opt_state}
    expected, _ = jax.jit(update)(params, opt_state)
    shardings = state_shardings(whole, RULES, mesh)
    sharded = jax.device_put(whole, shardings)
    with jax.set_mesh(mesh):
        result, _ = jax.jit(update, out_shardings=(shardings["params"], shardings["opt_state"]))(
            sharded["params"], sharded["opt_state"]
        )
    assert result["net"]["up"]["kernel"].sharding.spec == P(None, "fsdp", "tensor")
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(
            result["net"]["up"][name], expected["net"]["up"][name], rtol=1e-4, atol=1e-5
        )


# Shares and batches


@pytest.mark.fast
def test_the_unsharded_share_counts_bytes_that_every_device_holds(mesh):
    shapes = {
        "split": jax.ShapeDtypeStruct((30,), jnp.float32),
        "partly": jax.ShapeDtypeStruct((10, 2), jnp.float32),
        "whole": jax.ShapeDtypeStruct((100,), jnp.bfloat16),
    }
    specs = {"split": P("fsdp"), "partly": P(None, "tensor"), "whole": P()}
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    assert unsharded_share(shapes, shardings) == pytest.approx(200 / (120 + 80 + 200))
    assert unsharded_share({}, {}) == 0.0


@pytest.mark.fast
def test_almost_all_of_a_transformer_is_sharded_under_fsdp(fsdp_mesh):
    shapes = jax.eval_shape(lambda: make_state(OPTIMIZERS["adamw"], True, jax.random.key(0))).params
    shardings = state_shardings({"params": shapes}, PARTITION_RULES, fsdp_mesh)["params"]
    assert 0.0 < unsharded_share(shapes, shardings) < 0.02


@pytest.mark.fast
def test_a_batch_splits_over_data_and_fsdp_and_is_whole_otherwise(mesh):
    batch = jax.device_put(np.arange(24).reshape(8, 3), batch_sharding(mesh))
    assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 3)}
    rows = {int(shard.data[0, 0]) // 3 for shard in batch.addressable_shards}
    assert rows == {0, 2, 4, 6}
    np.testing.assert_array_equal(np.asarray(batch), np.arange(24).reshape(8, 3))


@pytest.mark.fast
def test_path_names_join_keys_attributes_and_indices():
    state = make_optimizer(AdamWConfig(), 10).init({"up": {"kernel": jnp.zeros(2)}})
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path({"a": state})]
    assert any(name.startswith("a/") and name.endswith("/mu/up/kernel") for name in names)
