import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.flops import count_flops
from genjax.text.transformer import PARTITION_RULES, Transformer

GPT2 = Transformer(
    vocab_size=11,
    context_length=16,
    num_layers=2,
    num_heads=4,
    hidden_size=16,
    use_bias=True,
    activation="gelu",
)
MODERN = Transformer(
    vocab_size=11,
    context_length=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    hidden_size=16,
    position="rope",
    norm="rms_norm",
    activation="swiglu",
    use_bias=False,
    tie_embeddings=False,
)
FORMS = pytest.mark.parametrize("model", [GPT2, MODERN], ids=["gpt2", "modern"])


def example(model, batch=2, length=9, seed=0):
    tokens = np.random.default_rng(seed).integers(model.vocab_size, size=(batch, length))
    tokens = jnp.asarray(tokens, jnp.int32)
    params = jax.jit(model.init)(jax.random.key(seed), tokens)["params"]
    # Larger than at the start of training, so that every part of the model matters to the result.
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    leaves = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(treedef, leaves), tokens


def run(model, params, tokens, carry=None, **kwargs):
    @jax.jit
    def apply(params, tokens, carry, kwargs):
        return model.apply({"params": params}, tokens, carry, **kwargs)

    return apply(params, tokens, carry, kwargs)


# The model in float64, written from the equations.


def normalize(model, x, params):
    if model.norm == "layer_norm":
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + model.norm_epsilon)
    return x * params["scale"] + params.get("bias", 0)


def linear(x, params):
    return x @ params["kernel"] + params.get("bias", 0)


def turn(x, theta):
    """Rotary position embedding by complex numbers, x [B, T, D]."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-np.arange(half) / half)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(
        1j * np.arange(x.shape[1])[:, None] * frequencies
    )
    return np.concatenate([turned.real, turned.imag], -1)


def activate(x, activation):
    if activation == "gelu":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def reference(model, params, tokens):
    """Logits [B, T, V] in float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    tokens = np.asarray(tokens)
    length = tokens.shape[1]
    x = params["token_embedding"][tokens]
    if model.position == "learned":
        x = x + params["position_embedding"][:length]
    num_kv_heads = model.num_kv_heads or model.num_heads
    group_size = model.num_heads // num_kv_heads
    head_dim = model.hidden_size // model.num_heads
    future = np.triu(np.ones((length, length), bool), 1)
    for number in range(model.num_layers):
        layer = params[f"layers_{number}"]
        columns = linear(normalize(model, x, layer["attention_norm"]), layer["attention"]["qkv"])
        columns = np.split(columns, num_kv_heads * (group_size + 2), axis=-1)
        heads = []
        for group in range(num_kv_heads):
            *queries, key, value = columns[group * (group_size + 2) :][: group_size + 2]
            for query in queries:
                turned = [query, key]
                if model.position == "rope":
                    turned = [turn(y, model.rope_theta) for y in turned]
                scores = turned[0] @ turned[1].swapaxes(1, 2) / np.sqrt(head_dim)
                weights = np.exp(np.where(future, -np.inf, scores))
                heads.append(weights / weights.sum(-1, keepdims=True) @ value)
        x = x + linear(np.concatenate(heads, -1), layer["attention"]["projection"])
        hidden = normalize(model, x, layer["feed_forward_norm"])
        feed_forward = layer["feed_forward"]
        if model.activation == "swiglu":
            gate = linear(hidden, feed_forward["gate"])
            hidden = gate / (1 + np.exp(-gate)) * linear(hidden, feed_forward["up"])
        else:
            hidden = activate(linear(hidden, feed_forward["up"]), model.activation)
        x = x + linear(hidden, feed_forward["down"])
    x = normalize(model, x, params["final_norm"])
    return x @ (params["token_embedding"].T if model.tie_embeddings else params["output"]["kernel"])


def reference_loss(model, params, tokens, targets):
    logits = reference(model, params, tokens)
    normalizer = np.log(np.exp(logits).sum(-1))
    return (
        normalizer - np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0]
    ).mean()


@pytest.mark.parametrize(
    "model",
    [GPT2, MODERN, dataclasses.replace(GPT2, activation="gelu_exact", use_bias=False)],
    ids=["gpt2", "modern", "nanogpt"],
)
def test_logits_match_float64(model):
    params, tokens = example(model)
    logits, carry = run(model, params, tokens)
    assert carry is None
    np.testing.assert_allclose(logits, reference(model, params, tokens), rtol=2e-4, atol=2e-4)


@FORMS
@pytest.mark.parametrize("chunk_size", [None, 5])
def test_gradients_match_finite_differences_in_float64(model, chunk_size):
    params, tokens = example(model, length=7)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        hidden, _ = model.apply({"params": params}, inputs, method="hidden", train=True)
        return model.apply({"params": params}, hidden, targets, chunk_size, method="losses").mean()

    value, gradients = loss(params)
    np.testing.assert_allclose(value, reference_loss(model, params, inputs, targets), rtol=1e-5)
    leaves, treedef = jax.tree.flatten(jax.tree.map(lambda x: np.asarray(x, np.float64), params))
    rng = np.random.default_rng(0)
    for number, gradient in enumerate(jax.tree.leaves(gradients)):
        direction = rng.normal(size=gradient.shape)
        direction /= np.linalg.norm(direction)

        def moved(step, number=number, direction=direction):
            changed = leaves.copy()
            changed[number] = leaves[number] + step * direction
            return reference_loss(model, jax.tree.unflatten(treedef, changed), inputs, targets)

        slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
        np.testing.assert_allclose(
            (np.asarray(gradient, np.float64) * direction).sum(), slope, rtol=2e-3, atol=2e-5
        )


@pytest.mark.parametrize(
    "model", [pytest.param(GPT2, marks=pytest.mark.slow), MODERN], ids=["gpt2", "modern"]
)
@pytest.mark.parametrize("scan_layers", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("pieces", [(1, 1, 7), pytest.param((4, 5), marks=pytest.mark.slow)])
def test_cache_gives_the_same_logits(model, scan_layers, pieces):
    model = dataclasses.replace(model, scan_layers=scan_layers)
    params, tokens = example(model)
    expected, _ = run(model, params, tokens)
    carry = model.initial_carry(2, 12)
    logits = []
    for start, length in zip(np.cumsum((0, *pieces)), pieces, strict=False):
        part, carry = run(model, params, tokens[:, start : start + length], carry)
        logits.append(part)
    assert carry["index"] == 9
    np.testing.assert_allclose(np.concatenate(logits, 1), expected, atol=1e-5)


@FORMS
def test_cache_with_padding_on_the_left(model):
    params, tokens = example(model, batch=1)
    expected, _ = run(model, params, tokens)
    padded = jnp.concatenate([jnp.zeros((1, 3), jnp.int32), tokens], axis=1)
    ids = jnp.asarray([[0] * 3 + [1] * 9], jnp.int32)
    positions = jnp.asarray([[0, 0, 0, *range(9)]], jnp.int32)
    carry = model.initial_carry(1, 12)
    _, carry = run(
        model, params, padded[:, :8], carry, segment_ids=ids[:, :8], positions=positions[:, :8]
    )
    logits, _ = run(model, params, padded[:, 8:], carry, positions=positions[:, 8:])
    np.testing.assert_allclose(logits, expected[:, 5:], atol=1e-5)


def stack(params):
    layers = [params[name] for name in sorted(params) if name.startswith("layers_")]
    others = {name: x for name, x in params.items() if not name.startswith("layers_")}
    return {**others, "layers": jax.tree.map(lambda *x: jnp.stack(x), *layers)}


@pytest.mark.parametrize(
    ("model", "scan_layers", "remat"),
    [
        (GPT2, True, "none"),
        (MODERN, True, "full"),
        pytest.param(GPT2, False, "full", marks=pytest.mark.slow),
        pytest.param(MODERN, True, "none", marks=pytest.mark.slow),
        pytest.param(MODERN, False, "dots", marks=pytest.mark.slow),
        pytest.param(GPT2, True, "dots", marks=pytest.mark.slow),
    ],
)
def test_scan_and_remat_change_nothing(model, scan_layers, remat):
    params, tokens = example(model)
    other = dataclasses.replace(model, scan_layers=scan_layers, remat=remat)

    def gradients(model, params):
        @jax.jit
        @jax.value_and_grad
        def loss(params):
            hidden, _ = model.apply({"params": params}, tokens, method="hidden", train=True)
            return model.apply({"params": params}, hidden, tokens, method="losses").mean()

        return loss(params)

    loss, expected = gradients(model, params)
    if scan_layers:
        params, expected = stack(params), stack(expected)
    other_loss, actual = gradients(other, params)
    np.testing.assert_allclose(loss, other_loss, rtol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), actual, expected)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_remat_computes_again_what_it_says(scan_layers):
    """Of the products: none; those of attention; or all but the last of a layer, unread."""
    batch, time, size = 2, 32, 16
    tokens = jax.ShapeDtypeStruct((batch, time), jnp.int32)

    def flops(remat):
        model = dataclasses.replace(
            GPT2, context_length=time, num_layers=2, scan_layers=scan_layers, remat=remat
        )
        params = jax.eval_shape(model.init, jax.random.key(0), tokens)

        def loss(params, tokens):
            return model.apply(params, tokens, method="hidden", train=True)[0].sum()

        return count_flops(jax.grad(loss), params, tokens)

    attention = 2 * 2 * (2 * batch * time**2 * size)
    assert flops("dots") - flops("none") == attention
    projections = 2 * (2 * batch * time * size * (3 + 1 + 4) * size)
    assert flops("full") - flops("dots") == projections


def test_full_remat_needs_less_memory():
    def temporary_bytes(remat):
        model = dataclasses.replace(
            MODERN, context_length=128, num_layers=4, scan_layers=True, remat=remat
        )
        tokens = jax.ShapeDtypeStruct((4, 128), jnp.int32)
        params = jax.eval_shape(model.init, jax.random.key(0), tokens)

        def loss(params, tokens):
            return model.apply(params, tokens, method="hidden", train=True)[0].sum()

        compiled = jax.jit(jax.grad(loss)).lower(params, tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes("full") < 0.6 * temporary_bytes("none")


def test_grouped_heads_equal_full_heads_that_repeat():
    params, tokens = example(MODERN)
    full = dataclasses.replace(MODERN, num_kv_heads=4)
    repeated = jax.tree.map(lambda x: x, params)
    for name in ("layers_0", "layers_1"):
        # [D, K, G + 2, head_dim] to [D, H, 3, head_dim], each key and value once per query.
        kernel = params[name]["attention"]["qkv"]["kernel"].reshape(16, 2, 4, 4)
        heads = [kernel[:, group, [query, 2, 3]] for group in range(2) for query in range(2)]
        repeated[name]["attention"]["qkv"]["kernel"] = jnp.stack(heads, 1).reshape(16, 48)
    np.testing.assert_allclose(
        run(full, repeated, tokens)[0], run(MODERN, params, tokens)[0], atol=1e-5
    )


@FORMS
def test_packed_sequences_equal_separate_ones(model):
    params, tokens = example(model, batch=1, length=12)
    ids = jnp.asarray([[1] * 5 + [2] * 4 + [0] * 3], jnp.int32)
    positions = jnp.asarray([[*range(5), *range(4), 0, 0, 0]], jnp.int32)
    packed, _ = run(model, params, tokens, segment_ids=ids, positions=positions)
    for part in (slice(0, 5), slice(5, 9)):
        alone, _ = run(model, params, tokens[:, part])
        np.testing.assert_allclose(packed[:, part], alone, atol=1e-5)
    assert np.isfinite(packed).all()


@FORMS
def test_later_tokens_change_nothing_before_them(model):
    params, tokens = example(model)
    changed = tokens.at[:, 6].add(1) % model.vocab_size
    before, after = (run(model, params, x)[0] for x in (tokens, changed))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert np.abs(before[:, 6:] - after[:, 6:]).max() > 1e-2


@FORMS
def test_half_precision_stays_close_and_keeps_float32_logits(model):
    params, tokens = example(model)
    half = dataclasses.replace(model, dtype=jnp.bfloat16)
    logits, _ = run(half, params, tokens)
    expected, _ = run(model, params, tokens)
    assert logits.dtype == jnp.float32
    assert np.abs(logits - expected).mean() < 0.05 * np.abs(expected).mean()
    cached, carry = run(half, params, tokens, half.initial_carry(2, 9))
    assert {x.dtype for x in jax.tree.leaves(carry["layers"])} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(cached, logits, atol=0.3)


def test_dropout_needs_training():
    model = dataclasses.replace(GPT2, dropout=0.5)
    params, tokens = example(model)

    def hidden(seed, train):
        return model.apply(
            {"params": params},
            tokens,
            train=train,
            rngs={"dropout": jax.random.key(seed)},
            method="hidden",
        )[0]

    np.testing.assert_array_equal(hidden(0, False), hidden(1, False))
    assert np.abs(hidden(0, True) - hidden(1, True)).max() > 0.1


def count(model):
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    return params, sum(x.size for x in jax.tree.leaves(params))


def test_published_parameter_counts():
    # GPT-2 small.
    assert count(Transformer(50257, 1024, 12, 12, 768))[1] == 124_439_808
    # nanoGPT's model for a CPU, which it reports as 0.80M, without the position embedding.
    # By hand: 4 layers of 2 * 128 (norms) + 128 * 384 + 128 * 128 + 2 * 128 * 512, then the final
    # norm 128, and 65 * 128 embeddings of tokens; 64 * 128 of positions.
    params, total = count(Transformer(65, 64, 4, 4, 128, use_bias=False))
    assert total == 804_096
    assert total - params["position_embedding"].size == 795_904


@FORMS
@pytest.mark.parametrize("scan_layers", [False, True])
def test_every_large_parameter_has_one_partition_rule(model, scan_layers):
    params, _ = count(dataclasses.replace(model, scan_layers=scan_layers))
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = "/".join(key.key for key in path)
        found = [axes for pattern, axes in PARTITION_RULES if re.search(pattern, name)]
        assert len(found) == 1, name
        assert len(found[0]) == leaf.ndim - (scan_layers and name.startswith("layers/")), name


@FORMS
def test_flops_count_every_product(model):
    """The compiler's own count of the matrix products, for one layer and for two."""
    model = dataclasses.replace(model, activation="gelu" if model.use_bias else "swiglu")
    length, batch = 16, 3
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)
    products = 0
    jaxpr = jax.make_jaxpr(lambda p, t: model.apply(p, t)[0])(params, tokens)

    def visit(jaxpr):
        nonlocal products
        for equation in jaxpr.eqns:
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    visit(inner)
            if equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                left = equation.invars[0].aval.shape
                inner_size = math.prod(left[axis] for axis in contracted)
                products += 2 * inner_size * equation.outvars[0].aval.size

    visit(jaxpr.jaxpr)
    assert products == model.flops_per_token(length) * batch * length


def test_what_does_not_fit_is_refused():
    params, _ = example(GPT2)
    with pytest.raises(UserError, match="17 tokens is longer than context_length = 16"):
        GPT2.apply({"params": params}, jnp.zeros((1, 17), jnp.int32))
    with pytest.raises(UserError, match="20 tokens"):
        GPT2.initial_carry(1, 20)
    with pytest.raises(UserError, match="num_kv_heads = 3 must divide num_heads = 4"):
        count(dataclasses.replace(GPT2, num_kv_heads=3))
    with pytest.raises(UserError, match="num_heads = 5 must divide hidden_size = 16"):
        count(dataclasses.replace(GPT2, num_heads=5))
