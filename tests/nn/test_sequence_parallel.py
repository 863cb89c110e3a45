"""Attention with time split over devices, against float64 and against one device."""

import functools
import math
import re

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from genjax.nn.attention import attention
from genjax.nn.sequence_parallel import splits_time
from genjax.parallel.mesh import BATCH_AXES, MeshConfig, make_mesh
from genjax.parallel.partition import state_shardings
from genjax.text.transformer import PARTITION_RULES, Transformer

LENGTH = 32
MESHES = {
    "sequence 8": {"sequence": 8},
    "data 2, sequence 4": {"data": 2, "sequence": 4},
    "data 2, tensor 2, sequence 2": {"data": 2, "tensor": 2, "sequence": 2},
    "fsdp 2, tensor 2, sequence 2": {"fsdp": 2, "data": 1, "tensor": 2, "sequence": 2},
}
OTHER_COLLECTIVES = ("all-gather", "all-to-all", "all-reduce", "reduce-scatter")


def mesh_of(name):
    return make_mesh(MeshConfig(**MESHES[name]))


def problem(num_kv_heads, length=LENGTH, num_heads=4, head_dim=8):
    """Queries, keys, values, a cotangent, and ids of segments of several lengths."""
    rng = np.random.default_rng(0)
    query, cotangent = rng.normal(size=(2, 2, length, num_heads, head_dim))
    key, value = rng.normal(size=(2, 2, length, num_kv_heads, head_dim))
    ids = np.stack([np.arange(length) // 7, np.arange(length) >= 20]).astype(np.int32)
    return (query, key, value), cotangent, ids


def reference(arrays, cotangent, causal, ids):
    """Outputs of attention and the gradients of `(outputs * cotangent).sum()`, in float64."""
    query, key, value = arrays
    batch, length, _, head_dim = query.shape
    grouped = (batch, length, key.shape[2], -1, head_dim)
    query, cotangent = query.reshape(grouped), cotangent.reshape(grouped)
    seen = np.tril(np.ones((length, length), bool)) if causal else np.ones((length, length), bool)
    if ids is not None:
        seen = seen & (ids[:, :, None] == ids[:, None, :])[:, None, None]
    scores = np.einsum("btkgd,bskd->bkgts", query, key) / np.sqrt(head_dim)
    weights = np.exp(np.where(seen, scores, -np.inf))
    weights /= weights.sum(-1, keepdims=True)
    outputs = np.einsum("bkgts,bskd->btkgd", weights, value)
    gradient = np.einsum("btkgd,bskd->bkgts", cotangent, value)
    gradient = weights * (gradient - (gradient * weights).sum(-1, keepdims=True))
    gradient /= np.sqrt(head_dim)
    return (
        outputs.reshape(arrays[0].shape),
        np.einsum("bkgts,bskd->btkgd", gradient, key).reshape(arrays[0].shape),
        np.einsum("bkgts,btkgd->bskd", gradient, query),
        np.einsum("bkgts,btkgd->bskd", weights, cotangent),
    )


def collectives(compiled, kind):
    """Shapes of the results of a compiled program's collectives of a kind."""
    found = re.findall(rf"= (.*?) {kind}(?:-start)?\(", compiled.as_text())
    shapes = [shape for results in found for shape in re.findall(r"\w+\[([\d,]*)\]", results)]
    return [tuple(int(size) for size in shape.split(",") if size) for shape in shapes]


@functools.partial(jax.jit, static_argnames="causal")
def attend(arrays, cotangent, ids, causal):
    pair = None if ids is None else (ids, ids)
    outputs, pullback = jax.vjp(
        lambda *arrays: attention(*arrays, causal=causal, segment_ids=pair), *arrays
    )
    return outputs, *pullback(cotangent)


@pytest.mark.parametrize(
    ("mesh", "num_kv_heads", "causal", "packed"),
    [
        ("data 2, tensor 2, sequence 2", 2, True, True),
        ("data 2, sequence 4", 2, False, True),
        pytest.param("sequence 8", 4, True, False, marks=pytest.mark.slow),
        pytest.param("data 2, sequence 4", 1, True, True, marks=pytest.mark.slow),
        # One head of keys cannot be split: devices along the tensor axis do the same.
        pytest.param("data 2, tensor 2, sequence 2", 1, True, False, marks=pytest.mark.slow),
        pytest.param("fsdp 2, tensor 2, sequence 2", 4, False, False, marks=pytest.mark.slow),
        pytest.param("sequence 8", 2, False, False, marks=pytest.mark.slow),
        # A batch of two examples cannot be split eight ways, but time can.
        pytest.param("sequence 8", 2, True, True, marks=pytest.mark.slow),
    ],
)
def test_outputs_and_gradients_match_float64(mesh, num_kv_heads, causal, packed, monkeypatch):
    # Several chunks of queries in each piece of time.
    monkeypatch.setattr("genjax.nn.attention_ring._MAX_CHUNK", 2)
    arrays, cotangent, ids = problem(num_kv_heads)
    expected = reference(arrays, cotangent, causal, ids if packed else None)
    single = jax.tree.map(np.float32, (arrays, cotangent))
    with jax.set_mesh(mesh_of(mesh)):
        assert splits_time(LENGTH, pieces=2)
        arguments = (*single, ids if packed else None)
        compiled = attend.lower(*arguments, causal).compile()
        actual = compiled(*arguments)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert collectives(compiled, "collective-permute")
    assert not any(collectives(compiled, kind) for kind in OTHER_COLLECTIVES)


def test_lengths_and_uses_that_a_ring_cannot_serve_have_ordinary_attention():
    # 12 positions are 4 parts of 3, which do not halve; a cache has another length than queries.
    (query, key, value), cotangent, _ = problem(2, length=12)
    expected = reference((query, key, value), cotangent, True, None)[0]
    arrays = [array.astype(np.float32) for array in (query, key, value)]

    @jax.jit
    def both(query, key, value):
        whole = attention(query, key, value, causal=True)
        return whole, attention(query[:, 5:8], key, value, causal=True, offset=5)

    with jax.set_mesh(mesh_of("data 2, sequence 4")):
        assert splits_time(12)
        assert not splits_time(12, pieces=2)
        text = both.lower(*arrays).as_text()
        whole, cached = both(*arrays)
    assert "collective_permute" not in text
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    np.testing.assert_allclose(cached, expected[:, 5:8], atol=1e-5)


# A whole transformer.

MODEL = Transformer(
    vocab_size=64,
    context_length=LENGTH,
    num_layers=2,
    num_heads=4,
    hidden_size=32,
    num_kv_heads=2,
    position="rope",
    norm="rms_norm",
    activation="swiglu",
    use_bias=False,
    tie_embeddings=False,
    scan_layers=True,
    remat="full",
)


def mean_loss(variables, tokens, segment_ids):
    hidden, _ = MODEL.apply(variables, tokens, segment_ids=segment_ids, method="hidden")
    return MODEL.apply(variables, hidden, tokens, 64, method="losses").mean()


@functools.cache
def transformer_inputs():
    rng = np.random.default_rng(0)
    tokens = rng.integers(64, size=(4, LENGTH), dtype=np.int32)
    ids = (np.arange(LENGTH) // 13 + np.zeros((4, 1))).astype(np.int32) + 1

    @jax.jit
    def first(key, tokens):
        def everything(model, tokens):
            return model.losses(model.hidden(tokens)[0], tokens)

        return MODEL.init(key, tokens, method=everything)

    variables = jax.tree.map(np.asarray, first(jax.random.key(0), tokens))
    return variables, tokens, ids


def compiled_gradient(mesh):
    """The compiled loss and gradient on a mesh, with arguments placed as training places them."""
    variables, tokens, ids = transformer_inputs()
    batch = NamedSharding(mesh, P(BATCH_AXES))
    shardings = state_shardings(variables, PARTITION_RULES, mesh)
    step = jax.jit(
        jax.value_and_grad(mean_loss),
        in_shardings=(shardings, batch, batch),
        out_shardings=(None, shardings),
    )
    with jax.set_mesh(mesh):
        return step.lower(variables, tokens, ids).compile()


def gradient_on(mesh):
    variables, tokens, ids = transformer_inputs()
    compiled = compiled_gradient(mesh)
    arguments = jax.device_put((variables, tokens, ids), compiled.input_shardings[0])
    return compiled, jax.tree.map(np.asarray, compiled(*arguments))


@functools.cache
def gradient_on_one_device():
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    return gradient_on(mesh)[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    ["fsdp 2, tensor 2, sequence 2", "data 2, sequence 4", "data 2, tensor 2, sequence 2"],
)
def test_a_transformer_has_the_gradient_of_one_device(mesh):
    compiled, (loss, gradients) = gradient_on(mesh_of(mesh))
    expected_loss, expected = gradient_on_one_device()
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6, rtol=1e-4)
    # Nothing but kernels is gathered. What moves is pieces of a device's own queries, half of them
    # at a time, and its own keys or values, which have half as many heads.
    assert all(len(shape) == 2 for shape in collectives(compiled, "all-gather"))
    assert collectives(compiled, "all-to-all") == []
    moved = [math.prod(shape) for shape in collectives(compiled, "collective-permute")]
    queries_of_a_device = math.prod(transformer_inputs()[1].shape) * MODEL.hidden_size // 8
    assert max(moved) == queries_of_a_device // 2


@functools.cache
def temporary_bytes(mesh, length):
    """Memory that attention and its gradients need at a time, beside arguments and results."""
    array = jax.ShapeDtypeStruct((1, length, 2, 32), np.float32)
    split = NamedSharding(mesh, P(None, "sequence"))
    jitted = jax.jit(
        lambda *arrays: attend(arrays[:3], arrays[3], None, True),
        in_shardings=split,
        out_shardings=split,
    )
    with jax.set_mesh(mesh):
        return jitted.lower(*(array,) * 4).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory_grows_with_time_and_not_with_its_square():
    mesh = mesh_of("sequence 8")
    all_scores = 2 * 4096 * 4096 * 4
    assert temporary_bytes(mesh, 4096) < all_scores / 16
    # The square of time would take sixteen times as much.
    assert temporary_bytes(mesh, 16384) < 6 * temporary_bytes(mesh, 4096)
