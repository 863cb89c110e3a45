import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from genjax.errors import UserError
from genjax.nn.dropout import drop_connect, locked_dropout, word_mask
from genjax.text.recurrent import PARTITION_RULES, RecurrentLanguageModel

CELLS = ["lstm", "gru", "elman"]
TOKENS = jax.random.randint(jax.random.key(7), (2, 8), 0, 11)


def model_of(cell="lstm", **fields):
    defaults = {"vocab_size": 11, "cell": cell, "embedding_size": 6, "hidden_size": 5}
    return RecurrentLanguageModel(**{**defaults, **fields})


@functools.cache
def parameters_of(model):
    """Random parameters of the right shapes, without compiling the initialisers."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), x.dtype), shapes)


@functools.cache
def jitted(model, method="__call__", train=False):
    return jax.jit(functools.partial(model.apply, method=method, train=train))


def count(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    return sum(x.size for x in jax.tree.leaves(shapes))


def test_parameter_counts_of_published_models():
    # Zaremba medium, 2 x 650: embedding 10,000 x 650, per layer 4 x 650 (650 + 650 + 1),
    # output 650 x 10,000 + 10,000.
    medium = RecurrentLanguageModel(10_000, embedding_size=650, hidden_size=650)
    assert count(medium) == 6_500_000 + 2 * 3_382_600 + 6_510_000 == 19_775_200
    # AWD-LSTM on Penn Treebank, 400-1150-1150-400 tied (one bias a gate instead of two).
    awd = RecurrentLanguageModel(
        10_000, num_layers=3, embedding_size=400, hidden_size=1150, tie_embeddings=True
    )
    layers = 4 * 1150 * (400 + 1150 + 1) + 4 * 1150 * (2 * 1150 + 1) + 4 * 400 * (1150 + 400 + 1)
    assert count(awd) == 4_000_000 + layers + 10_000 == 24_210_800


def test_flops_are_two_for_each_weight_of_a_matrix_product():
    for cell in CELLS:
        model = model_of(cell)
        flat = traverse_util.flatten_dict(parameters_of(model))
        weights = sum(v.size for k, v in flat.items() if k[-1].endswith("kernel"))
        assert model.flops_per_token(8) == 2 * weights


@pytest.mark.parametrize("cell", CELLS)
def test_one_pass_equals_halves_and_single_steps(cell):
    model = model_of(cell, num_layers=2)
    params = parameters_of(model)
    whole, last = jitted(model)({"params": params}, TOKENS)
    step = jitted(model)
    for size in (4, 1):
        carry, parts = model.initial_carry(2, 0), []
        for start in range(0, 8, size):
            logits, carry = step({"params": params}, TOKENS[:, start : start + size], carry)
            parts.append(logits)
        np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), carry, last)


@pytest.mark.parametrize("cell", CELLS)
def test_a_new_segment_starts_from_zeros(cell):
    model = model_of(cell)
    params = parameters_of(model)
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 2, 3], [1, 1, 1, 1, 1, 1, 1, 1]])
    packed, _ = jitted(model)({"params": params}, TOKENS, segment_ids=segments)
    for row, start, stop in ((0, 0, 3), (0, 3, 7), (0, 7, 8), (1, 0, 8)):
        alone, _ = jitted(model)({"params": params}, TOKENS[row : row + 1, start:stop])
        np.testing.assert_allclose(packed[row : row + 1, start:stop], alone, atol=1e-6)
    unpacked, _ = jitted(model)({"params": params}, TOKENS)
    assert np.abs(packed - unpacked)[0, 3:].max() > 1e-3


def test_losses_are_the_cross_entropy_of_the_logits():
    for tied in (False, True):
        model = model_of(tie_embeddings=tied)
        variables = {"params": parameters_of(model)}
        hidden, _ = jitted(model, "hidden")(variables, TOKENS)
        targets = jnp.roll(TOKENS, 1, axis=1)
        logits = model.apply(variables, hidden, method="logits")
        expected = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
        for chunk_size in (None, 4):
            losses = model.apply(variables, hidden, targets, chunk_size, method="losses")
            np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_tied_models_share_the_embedding():
    model = model_of(tie_embeddings=True)
    params = parameters_of(model)
    assert set(params["output"]) == {"bias"}
    hidden = jnp.eye(6)
    logits = model.apply({"params": params}, hidden, method="logits")
    expected = params["embedding"]["embedding"].T + params["output"]["bias"]
    np.testing.assert_allclose(logits, expected, atol=1e-6)
    assert params["layers_1"]["recurrent_kernel"].shape == (6, 24)


def test_initial_values_stay_within_the_scale_and_forget_bias_is_added():
    model = model_of(init_scale=0.04, forget_bias=1.0, hidden_size=50, num_layers=1)
    params = jax.jit(model.init)(jax.random.key(0), TOKENS)["params"]
    bias = params["layers_0"]["bias"]
    np.testing.assert_allclose(bias[50:100], 1.0, atol=0.04)
    others = [params["embedding"]["embedding"], params["layers_0"]["recurrent_kernel"], bias[100:]]
    for values in others:
        assert 0.03 < np.abs(values).max() <= 0.04


def test_locked_dropout_drops_the_same_features_at_every_step():
    y = locked_dropout(jax.random.key(0), jnp.ones((7, 3, 40)), 0.25)
    np.testing.assert_array_equal(y, np.broadcast_to(y[:1], y.shape))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert not np.array_equal(y[0, 0], y[0, 1])
    assert 0.1 < (y == 0).mean() < 0.4


def test_drop_connect_and_word_mask_drop_their_share():
    kernel = drop_connect(jax.random.key(0), jnp.full((50, 60), 2.0), 0.5)
    assert set(np.unique(kernel)) == {np.float32(0), np.float32(4)}
    assert 0.45 < (kernel == 0).mean() < 0.55
    mask = word_mask(jax.random.key(1), 4000, 0.1)
    assert 0.08 < (mask == 0).mean() < 0.12


def features(model, params, tokens, seed, train=True):
    rngs = {"dropout": jax.random.key(seed)}
    return jitted(model, "hidden", train)({"params": params}, tokens, rngs=rngs)[0]


def test_output_dropout_is_locked_over_time_and_off_in_evaluation():
    model = model_of(hidden_size=30, output_dropout=0.5)
    params = parameters_of(model)
    dropped = np.asarray(features(model, params, TOKENS, 0) == 0)
    assert (dropped == dropped[:, :1]).all()
    assert 0.2 < dropped.mean() < 0.8
    assert not np.array_equal(dropped[0, 0], dropped[1, 0])
    assert (features(model, params, TOKENS, 0, train=False) != 0).all()


def test_weight_drop_changes_only_what_passes_through_the_recurrent_kernel():
    model = model_of(num_layers=1, weight_drop=0.5)
    params = parameters_of(model)
    exact = features(model, params, TOKENS, 0, train=False)
    dropped = features(model, params, TOKENS, 0)
    np.testing.assert_allclose(dropped[:, 0], exact[:, 0], atol=1e-6)
    assert np.abs(dropped - exact)[:, 1:].max() > 1e-3

    def total(params):
        return features(model, params, TOKENS, 0).sum()

    gradient = jax.jit(jax.grad(total))(params)["layers_0"]["recurrent_kernel"]
    assert 0.3 < (gradient == 0).mean() < 0.7


def test_embedding_dropout_drops_whole_words():
    model = model_of(num_layers=1, embedding_dropout=0.5)
    params = parameters_of(model)

    def total(params):
        return features(model, params, jnp.arange(11)[None], 0).sum()

    gradient = np.asarray(jax.jit(jax.grad(total))(params)["embedding"]["embedding"])
    dropped = (gradient == 0).all(axis=1)
    assert 0 < dropped.sum() < 11
    assert (gradient[~dropped] != 0).all()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("tied", [False, True])
def test_gradients_reach_every_parameter_with_all_regularisers_on(cell, tied):
    rates = ("embedding", "input", "hidden", "output")
    model = model_of(
        cell, tie_embeddings=tied, weight_drop=0.2, **{f"{n}_dropout": 0.2 for n in rates}
    )
    params = parameters_of(model)

    def loss(params):
        rngs = {"dropout": jax.random.key(1)}
        variables = {"params": params}
        hidden, _ = model.apply(variables, TOKENS, train=True, rngs=rngs, method="hidden")
        return model.apply(variables, hidden, TOKENS, method="losses").mean()

    for path, gradient in traverse_util.flatten_dict(jax.jit(jax.grad(loss))(params)).items():
        assert np.isfinite(gradient).all(), path
        assert np.abs(gradient).max() > 0, path


def test_partition_rules_name_every_parameter_and_dimension():
    for cell in CELLS:
        flat = traverse_util.flatten_dict(parameters_of(model_of(cell)), sep="/")
        for path, value in flat.items():
            axes = [axes for pattern, axes in PARTITION_RULES if re.search(pattern, path)]
            assert len(axes) == 1, path
            assert len(axes[0]) == value.ndim, path


def test_bfloat16_computation_keeps_states_and_logits_in_float32():
    model = model_of(dtype=jnp.bfloat16)
    params = parameters_of(model)
    hidden, carry = jitted(model, "hidden")({"params": params}, TOKENS)
    assert hidden.dtype == jnp.bfloat16
    logits = model.apply({"params": params}, hidden, method="logits")
    leaves = [logits, *jax.tree.leaves(carry), *jax.tree.leaves(params)]
    assert all(x.dtype == jnp.float32 for x in leaves)


def test_cudnn_computes_no_other_cell():
    with pytest.raises(UserError, match="gru"):
        parameters_of(model_of("gru", implementation="cudnn"))
