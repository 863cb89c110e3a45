import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.nn.attention import attention, choose_implementation
from genjax.nn.attention_xla import query_blocks


def problem(batch=2, num_queries=6, num_keys=6, num_heads=4, num_kv_heads=4, head_dim=8):
    rng = np.random.default_rng(0)
    query = rng.normal(size=(batch, num_queries, num_heads, head_dim))
    key, value = rng.normal(size=(2, batch, num_keys, num_kv_heads, head_dim))
    return query, key, value


def to_jax(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def reference(query, key, value, allowed):
    """Attention in float64, one query at a time; `allowed` is [B, T, S]."""
    batch, num_queries, num_heads, head_dim = query.shape
    group_size = num_heads // key.shape[2]
    outputs = np.zeros((*query.shape[:3], value.shape[-1]))
    for b in range(batch):
        for t in range(num_queries):
            for h in range(num_heads):
                if not allowed[b, t].any():
                    continue
                keys = key[b, allowed[b, t], h // group_size]
                scores = keys @ query[b, t, h] / np.sqrt(head_dim)
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                outputs[b, t, h] = weights @ value[b, allowed[b, t], h // group_size]
    return outputs


def reference_gradients(query, key, value, allowed, cotangent):
    """Gradients of `(reference(..) * cotangent).sum()` in float64, one query at a time."""
    batch, num_queries, num_heads, head_dim = query.shape
    group_size = num_heads // key.shape[2]
    gradients = [np.zeros_like(x) for x in (query, key, value)]
    for b in range(batch):
        for t in range(num_queries):
            seen = np.flatnonzero(allowed[b, t])
            for h in range(num_heads if len(seen) else 0):
                k = h // group_size
                scores = key[b, seen, k] @ query[b, t, h] / np.sqrt(head_dim)
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                weights_gradient = value[b, seen, k] @ cotangent[b, t, h]
                scores_gradient = weights * (weights_gradient - weights @ weights_gradient)
                scores_gradient /= np.sqrt(head_dim)
                gradients[0][b, t, h] = scores_gradient @ key[b, seen, k]
                gradients[1][b, seen, k] += np.outer(scores_gradient, query[b, t, h])
                gradients[2][b, seen, k] += np.outer(weights, cotangent[b, t, h])
    return gradients


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("causal", [True, False])
def test_matches_float64(causal, num_kv_heads):
    arrays = problem(num_kv_heads=num_kv_heads)
    allowed = np.tril(np.ones((6, 6), bool)) if causal else np.ones((6, 6), bool)
    expected = reference(*arrays, np.broadcast_to(allowed, (2, 6, 6)))
    outputs = attention(*to_jax(*arrays), causal=causal)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_segments_do_not_see_each_other():
    arrays = problem()
    ids = np.array([[1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 3, 3]])
    allowed = (ids[:, :, None] == ids[:, None, :]) & np.tril(np.ones((6, 6), bool))
    expected = reference(*arrays, allowed)
    ids = jnp.asarray(ids, jnp.int32)
    outputs = attention(*to_jax(*arrays), causal=True, segment_ids=(ids, ids))
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_offset_places_queries_among_the_keys_of_a_cache():
    arrays = problem(num_queries=3, num_keys=9)
    allowed = np.arange(9) <= 4 + np.arange(3)[:, None]
    expected = reference(*arrays, np.broadcast_to(allowed, (2, 3, 9)))
    query, key, value = to_jax(*arrays)
    key = key.at[:, 7:].set(1e9)
    attend = jax.jit(lambda *x, offset: attention(*x, causal=True, offset=offset))
    outputs = attend(query, key, value, offset=jnp.int32(4))
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


@pytest.mark.parametrize("num_kv_heads", [2, 4])
def test_gradients_match_finite_differences(num_kv_heads):
    arrays = problem(num_kv_heads=num_kv_heads)
    rng = np.random.default_rng(1)
    weights = rng.normal(size=arrays[0].shape)
    ids = np.array([[1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 1, 1]])
    allowed = (ids[:, :, None] == ids[:, None, :]) & np.tril(np.ones((6, 6), bool))
    ids = jnp.asarray(ids, jnp.int32)

    def total(*arrays):
        outputs = attention(*arrays, causal=True, segment_ids=(ids, ids))
        return (outputs * weights.astype(np.float32)).sum()

    gradients = jax.grad(total, argnums=(0, 1, 2))(*to_jax(*arrays))
    step = 1e-5
    for number, gradient in enumerate(gradients):
        direction = rng.normal(size=gradient.shape)
        both = []
        for sign in (1, -1):
            moved = list(arrays)
            moved[number] = arrays[number] + sign * step * direction
            both.append((reference(*moved, allowed) * weights).sum())
        slope = (both[0] - both[1]) / (2 * step)
        np.testing.assert_allclose((np.asarray(gradient) * direction).sum(), slope, rtol=1e-4)


@pytest.mark.parametrize(
    ("num_queries", "num_keys", "num_kv_heads", "packed"),
    [
        (130, 130, 2, False),
        (130, 130, 1, True),
        (192, 192, 1, True),
        (150, 70, 1, False),
        (100, 170, 1, True),
    ],
)
def test_blocks_of_queries_match_float64(num_queries, num_keys, num_kv_heads, packed):
    arrays = problem(1, num_queries, num_keys, num_heads=2, num_kv_heads=num_kv_heads)
    ids = np.arange(max(num_queries, num_keys))[None] // 50
    query_ids, key_ids = ids[:, :num_queries], ids[:, :num_keys]
    allowed = np.tril(np.ones((1, num_queries, num_keys), bool))
    if packed:
        allowed &= query_ids[:, :, None] == key_ids[:, None, :]
    segment_ids = (jnp.asarray(query_ids, jnp.int32), jnp.asarray(key_ids, jnp.int32))
    weights = np.random.default_rng(1).normal(size=arrays[0].shape)

    def run(*arrays):
        return attention(*arrays, causal=True, segment_ids=segment_ids if packed else None)

    outputs, pullback = jax.vjp(run, *to_jax(*arrays))
    np.testing.assert_allclose(outputs, reference(*arrays, allowed), atol=1e-5)
    expected = reference_gradients(*arrays, allowed, weights)
    for gradient, correct in zip(pullback(to_jax(weights)[0]), expected, strict=True):
        np.testing.assert_allclose(gradient, correct, atol=1e-5)


@pytest.mark.parametrize("num_queries", [1, 64, 65, 130, 512, 513, 2000])
@pytest.mark.parametrize("num_keys", [1, 100, 2000])
def test_blocks_hold_each_query_once_with_all_its_keys(num_queries, num_keys):
    blocks = query_blocks(num_queries, num_keys, triangular=True)
    assert [q for block in blocks for q in range(block.start, block.end)] == [*range(num_queries)]
    assert all(block.num_keys == min(block.end, num_keys) for block in blocks)
    assert len(blocks) <= 8
    assert len(query_blocks(num_queries, num_keys, triangular=False)) == 1


def test_causal_attention_does_less_than_all_the_work():
    arrays = to_jax(*problem(num_queries=512, num_keys=512, head_dim=32))

    def flops(causal):
        attend = jax.jit(lambda *x: attention(*x, causal=causal, implementation="xla"))
        analysis = attend.lower(*arrays).compile().cost_analysis()
        assert analysis is not None
        return analysis["flops"]

    assert flops(True) < 0.7 * flops(False)


def test_softmax_is_float32_for_half_precision():
    arrays = [x.astype(jnp.bfloat16) for x in to_jax(*problem(num_keys=64))]
    outputs = attention(*arrays, causal=False)
    assert outputs.dtype == jnp.bfloat16
    rounded = [np.asarray(x, np.float64) for x in arrays]
    expected = reference(*rounded, np.ones((2, 6, 64), bool))
    np.testing.assert_allclose(np.asarray(outputs, np.float64), expected, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_splash_matches_xla(causal, packed):
    arrays = to_jax(
        *problem(1, num_queries=256, num_keys=256, num_heads=4, num_kv_heads=2, head_dim=128)
    )
    ids = jnp.asarray(np.arange(256)[None] // 100 + 1, jnp.int32)
    segment_ids = (ids, ids) if packed else None

    def run(implementation):
        def outputs(*arrays):
            return attention(
                *arrays,
                causal=causal,
                segment_ids=segment_ids,
                implementation=implementation,
                interpret=True,
            )

        result, pullback = jax.vjp(outputs, *arrays)
        return result, pullback(jnp.cos(jnp.arange(result.size)).reshape(result.shape))

    expected, actual = run("xla"), run("splash")
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize(
    ("backend", "dtype", "head_dim", "length", "packed", "expected"),
    [
        ("cpu", jnp.float32, 64, 128, False, "xla"),
        ("gpu", jnp.bfloat16, 64, 100, False, "cudnn"),
        ("gpu", jnp.float32, 64, 128, False, "xla"),
        ("gpu", jnp.bfloat16, 60, 128, False, "xla"),
        ("gpu", jnp.bfloat16, 64, 128, True, "xla"),
        ("tpu", jnp.bfloat16, 64, 256, True, "splash"),
        ("tpu", jnp.bfloat16, 64, 100, False, "xla"),
    ],
)
def test_auto_takes_what_can_do_the_job(backend, dtype, head_dim, length, packed, expected):
    array = jnp.zeros((1, length, 2, head_dim), dtype)
    chosen = choose_implementation(array, array, causal=True, packed=packed, backend=backend)
    assert chosen == expected


def test_what_an_implementation_cannot_do_is_refused():
    arrays = to_jax(*problem())
    ids = jnp.ones((2, 6), jnp.int32)
    with pytest.raises(UserError, match="float16 or bfloat16, not float32"):
        attention(*arrays, causal=True, implementation="cudnn")
    half = [x.astype(jnp.bfloat16) for x in arrays]
    with pytest.raises(UserError, match="packed segments"):
        attention(*half, causal=True, segment_ids=(ids, ids), implementation="cudnn")
    with pytest.raises(UserError, match="multiples of 128, not 6 and 6"):
        attention(*arrays, causal=True, implementation="splash")
    with pytest.raises(UserError, match="no cache"):
        attention(*arrays, causal=True, offset=2, implementation="splash")
    with pytest.raises(UserError, match="num_heads = 4 must be a multiple of num_kv_heads = 3"):
        attention(*to_jax(*problem(num_kv_heads=3)), causal=True)
