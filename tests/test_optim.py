"""Optimizers against float64 numpy written from their papers' equations; schedules by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genjax.config import Config, check
from genjax.errors import UserError
from genjax.optim import (
    AdafactorConfig,
    AdamWConfig,
    LionConfig,
    MuonConfig,
    OptimizerConfig,
    ScheduleConfig,
    SGDConfig,
    accumulate,
    decays,
    make_optimizer,
    make_schedule,
    update_average,
)
from genjax.parallel.mesh import MeshConfig, make_mesh
from genjax.parallel.partition import batch_sharding, path_name

SHAPES = {
    "token_embedding": (5, 4),
    "layers": {
        "up": {"kernel": (2, 3, 4), "bias": (2, 4)},
        "down": {"kernel": (2, 4, 3)},
        "norm": {"scale": (2, 4)},
    },
    "cell": {"recurrent_kernel": (3, 6), "bias": (6,)},
    "output": {"kernel": (4, 5)},
}
DECAYING = {
    "token_embedding",
    "layers/up/kernel",
    "layers/down/kernel",
    "cell/recurrent_kernel",
    "output/kernel",
}
MATRICES = {"layers/up/kernel", "layers/down/kernel", "cell/recurrent_kernel"}
DECAY = 0.3
SCHEDULE = ScheduleConfig(kind="linear", warmup_steps=2, final_fraction=0.5)
RATES = [0.05 * share for share in (1 / 3, 2 / 3, 1.0, 5 / 6, 4 / 6)]
"""What SCHEDULE gives for a peak of 0.05 and five steps."""


def random_tree(seed, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def by_name(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): np.asarray(leaf, np.float64) for path, leaf in leaves}


def optimized(config, params, gradients, steps=5):
    """Parameters after one update for each tree of gradients."""
    optimizer = make_optimizer(config, steps)

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for grads in gradients:
        params, state = step(params, state, grads)
    return by_name(params)


# One parameter through all steps: from its value, gradients, rates and decay to its value.


def adamw(x, gradients, rates, decay, beta1=0.9, beta2=0.95, epsilon=1e-8):
    m = v = np.zeros_like(x)
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        step = (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + epsilon)
        x = x - rate * (step + decay * x)
    return x


def sgd(x, gradients, rates, decay, momentum=0.0, nesterov=False):
    velocity = np.zeros_like(x)
    for g, rate in zip(gradients, rates, strict=True):
        velocity = momentum * velocity + g
        step = g + momentum * velocity if nesterov else velocity
        x = x - rate * (step + decay * x)
    return x


def lion(x, gradients, rates, decay, beta1=0.9, beta2=0.99):
    m = np.zeros_like(x)
    for g, rate in zip(gradients, rates, strict=True):
        x = x - rate * (np.sign(beta1 * m + (1 - beta1) * g) + decay * x)
        m = beta2 * m + (1 - beta2) * g
    return x


def adafactor(x, gradients, rates, decay, decay_rate=0.8, factored=False):
    r = c = v = 0.0
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        beta2 = 1 - t**-decay_rate
        square = g**2 + 1e-30
        if factored:
            r = beta2 * r + (1 - beta2) * square.mean(-1, keepdims=True)
            c = beta2 * c + (1 - beta2) * square.mean(-2, keepdims=True)
            v = r * c / r.mean(-2, keepdims=True)
        else:
            v = beta2 * v + (1 - beta2) * square
        update = g / np.sqrt(v)
        update = update / max(1.0, np.sqrt(np.mean(update**2)))
        size = max(1e-3, np.sqrt(np.mean(x**2)))
        x = x - rate * (size * update + decay * x)
    return x


def newton_schulz(matrix):
    if matrix.shape[0] > matrix.shape[1]:
        return newton_schulz(matrix.T).T
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def muon(x, gradients, rates, decay, momentum=0.95):
    m = np.zeros_like(x)
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        m = momentum * m + (1 - momentum) * g
        ahead = momentum * m / (1 - momentum ** (t + 1))
        ahead = ahead + (1 - momentum) * g / (1 - momentum**t)
        matrices = ahead.reshape(-1, *ahead.shape[-2:])
        update = np.stack([newton_schulz(matrix) for matrix in matrices]).reshape(x.shape)
        update = update * max(1.0, x.shape[-1] / x.shape[-2]) ** 0.5
        x = x - rate * (update + decay * x)
    return x


def muon_or_adamw(x, gradients, rates, decay, name):
    if name in MATRICES:
        return muon(x, gradients, rates, decay, momentum=0.9)
    return adamw(x, gradients, [0.2 * rate for rate in rates], decay)


COMMON = {"learning_rate": 0.05, "schedule": SCHEDULE, "clip_norm": 0.0, "weight_decay": DECAY}
CASES = {
    "adamw": (AdamWConfig(**COMMON), adamw),
    "adamw_betas": (
        AdamWConfig(**COMMON, beta1=0.5, beta2=0.7, epsilon=0.1),
        functools.partial(adamw, beta1=0.5, beta2=0.7, epsilon=0.1),
    ),
    "sgd": (SGDConfig(**COMMON), sgd),
    "momentum": (SGDConfig(**COMMON, momentum=0.8), functools.partial(sgd, momentum=0.8)),
    "nesterov": (
        SGDConfig(**COMMON, momentum=0.8, nesterov=True),
        functools.partial(sgd, momentum=0.8, nesterov=True),
    ),
    "lion": (LionConfig(**COMMON), lion),
    "lion_betas": (
        LionConfig(**COMMON, beta1=0.6, beta2=0.3),
        functools.partial(lion, beta1=0.6, beta2=0.3),
    ),
    "adafactor": (
        AdafactorConfig(**COMMON, decay_rate=0.6),
        functools.partial(adafactor, decay_rate=0.6),
    ),
    "muon": (MuonConfig(**COMMON, momentum=0.9, adam_learning_rate_ratio=0.2), muon_or_adamw),
}


@pytest.mark.fast
@pytest.mark.parametrize("case", CASES)
def test_an_optimizer_follows_its_equations(case):
    config, reference = CASES[case]
    params, gradients = random_tree(0), [random_tree(seed) for seed in range(1, 6)]
    results = optimized(config, params, gradients)
    starts, histories = by_name(params), [by_name(grads) for grads in gradients]
    for name, result in results.items():
        named = {"name": name} if reference is muon_or_adamw else {}
        expected = reference(
            starts[name],
            [grads[name] for grads in histories],
            RATES,
            DECAY if name in DECAYING else 0.0,
            **named,
        )
        np.testing.assert_allclose(result, expected, rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("shape", [(128, 130), (130, 128), (2, 128, 130)])
def test_adafactor_factors_the_second_moment_of_large_matrices(shape):
    config = AdafactorConfig(**COMMON)
    params = random_tree(0, {"kernel": shape})
    gradients = [random_tree(seed, {"kernel": shape}) for seed in range(1, 6)]
    result = optimized(config, params, gradients)["kernel"]
    history = [grads["kernel"].astype(np.float64) for grads in gradients]
    start = params["kernel"].astype(np.float64)
    expected = adafactor(start, history, RATES, DECAY, factored=True)
    np.testing.assert_allclose(result, expected, rtol=2e-5, atol=2e-5)
    state = jax.eval_shape(make_optimizer(config, 5).init, params)
    kept = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert kept < 0.05 * np.prod(shape)


@pytest.mark.fast
def test_kernels_and_embeddings_decay_and_stacked_biases_do_not():
    flags = jax.tree_util.tree_leaves_with_path(decays(random_tree(0)))
    assert {path_name(path) for path, flag in flags if flag} == DECAYING


@pytest.mark.fast
@pytest.mark.parametrize(("norm", "clip_norm", "factor"), [(5, 2, 0.4), (1, 2, 1.0), (5, 0, 1.0)])
def test_gradients_are_clipped_to_their_global_norm(norm, clip_norm, factor):
    grads = random_tree(1)
    total = np.sqrt(sum(np.sum(leaf**2) for leaf in by_name(grads).values()))
    grads = jax.tree.map(lambda leaf: leaf * np.float32(norm / total), grads)
    config = SGDConfig(
        learning_rate=0.5, schedule=ScheduleConfig(kind="constant"), clip_norm=clip_norm
    )
    params = random_tree(0)
    results, starts = optimized(config, params, [grads]), by_name(params)
    for name, gradient in by_name(grads).items():
        expected = starts[name] - 0.5 * factor * gradient
        np.testing.assert_allclose(results[name], expected, rtol=1e-5, atol=1e-6)


# Schedules: peak 1, 4 steps of warm-up, a run of 14 steps, a tenth of the decay a step.


@pytest.mark.fast
@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (
            {"kind": "cosine", "final_fraction": 0.2},
            {0: 0.2, 1: 0.4, 3: 0.8, 4: 1.0, 5: 0.2 + 0.4 * (1 + np.cos(np.pi / 10)), 9: 0.6}
            | {14: 0.2, 20: 0.2},
        ),
        (
            {"kind": "linear", "final_fraction": 0.2},
            {0: 0.2, 3: 0.8, 4: 1.0, 5: 0.92, 9: 0.6, 13: 0.28, 14: 0.2, 20: 0.2},
        ),
        ({"kind": "linear", "final_fraction": 0.0}, {9: 0.5, 14: 0.0, 20: 0.0}),
        ({"kind": "constant"}, {0: 0.2, 3: 0.8, 4: 1.0, 9: 1.0, 14: 1.0, 1000: 1.0}),
        (
            {"kind": "cosine", "final_fraction": 0.2, "decay_steps": 8},
            {0: 0.2, 4: 1.0, 6: 0.6, 8: 0.2, 13: 0.2},
        ),
    ],
)
def test_a_schedule_at_steps_computed_by_hand(schedule, rates):
    config = AdamWConfig(learning_rate=1.0, schedule=ScheduleConfig(warmup_steps=4, **schedule))
    rate = make_schedule(config, steps=14)
    for step, expected in rates.items():
        assert float(rate(step)) == pytest.approx(expected, abs=1e-6), step
        assert float(jax.jit(rate)(jnp.int32(step))) == pytest.approx(expected, abs=1e-6), step


def test_a_schedule_without_warm_up_starts_at_its_peak():
    rate = make_schedule(AdamWConfig(learning_rate=0.5), steps=10)
    assert [float(rate(0)), float(rate(10))] == pytest.approx([0.5, 0.05])


def test_a_warm_up_longer_than_the_run_only_rises():
    config = AdamWConfig(learning_rate=1.0, schedule=ScheduleConfig(warmup_steps=9))
    rates = [float(make_schedule(config, steps=4)(step)) for step in range(4)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])


# Accumulation


def example(size=16):
    rng = np.random.default_rng(0)
    batch = {
        "x": jnp.asarray(rng.normal(size=(size, 3)), jnp.float32),
        "weights": jnp.asarray(rng.choice([0.0, 1.0, 2.5], size=size), jnp.float32),
    }
    carry = {"state": jnp.asarray(rng.normal(size=(size, 2)), jnp.float32)}
    return batch, carry


def weighted_gradients(kernel):
    """Sums of a weighted loss; each row's next carry tells which row it was."""

    def gradients(batch, carry, key):
        del key

        def loss(kernel):
            outputs = jnp.tanh(batch["x"] @ kernel + carry["state"])
            return jnp.sum(batch["weights"] * jnp.sum(outputs**2, axis=1)), outputs

        (total, outputs), grads = jax.value_and_grad(loss, has_aux=True)(kernel)
        return (total, jnp.sum(batch["weights"]), grads), {"state": outputs}

    return gradients


@pytest.fixture(scope="module")
def kernel():
    return jnp.asarray(np.random.default_rng(1).normal(size=(3, 2)), jnp.float32)


@pytest.fixture(scope="module")
def whole(kernel):
    """Sums over the batch and the next carry, in float64 numpy."""
    batch, carry = example()
    kernel = np.asarray(kernel, np.float64)
    x, weights = (np.asarray(batch[name], np.float64) for name in ("x", "weights"))
    outputs = np.tanh(x @ kernel + np.asarray(carry["state"], np.float64))
    slope = 2 * outputs * (1 - outputs**2) * weights[:, None]
    return (np.sum(weights * np.sum(outputs**2, 1)), weights.sum(), x.T @ slope), outputs


@pytest.mark.fast
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_accumulated_sums_are_those_of_the_whole_batch(parts, kernel, whole):
    batch, carry = example()
    step = jax.jit(functools.partial(accumulate, weighted_gradients(kernel), parts))
    sums, next_carry = step(batch, carry, jax.random.key(0))
    for value, expected in zip(sums, whole[0], strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(next_carry["state"], whole[1], rtol=1e-5, atol=1e-6)


@pytest.mark.fast
def test_accumulation_needs_no_carry(kernel):
    batch, _ = example()

    def gradients(batch, carry, key):
        assert carry == {}
        return jnp.sum(batch["weights"]), carry

    sums, carry = accumulate(gradients, 4, batch, {}, jax.random.key(0))
    assert float(sums) == pytest.approx(batch["weights"].sum())
    assert carry == {}


@pytest.mark.fast
def test_each_part_has_its_own_random_key():
    batch, _ = example()

    def gradients(batch, carry, key):
        return jnp.eye(16)[batch["row"][0]] * jax.random.uniform(key), carry

    rows = {**batch, "row": jnp.arange(16)}
    sums, _ = accumulate(gradients, 4, rows, {}, jax.random.key(0))
    drawn = np.asarray(sums)[np.asarray(sums) > 0]
    assert len(drawn) == len(set(drawn.tolist())) == 4


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_over_a_sharded_batch_keeps_every_row_on_its_device(parts, kernel):
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    sharding = batch_sharding(mesh)
    batch, carry = jax.device_put(example(32), sharding)
    reference, reference_carry = accumulate(
        weighted_gradients(kernel), 1, *example(32), jax.random.key(0)
    )
    with jax.set_mesh(mesh):
        step = jax.jit(
            functools.partial(accumulate, weighted_gradients(kernel), parts),
            out_shardings=(None, sharding),
        )
        compiled = step.lower(batch, carry, jax.random.key(0)).compile()
        sums, next_carry = step(batch, carry, jax.random.key(0))
    for value, expected in zip(sums, reference, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(next_carry["state"], reference_carry["state"], rtol=1e-5, atol=1e-6)
    program = compiled.as_text()
    for exchange in ("all-gather", "all-to-all", "collective-permute"):
        assert exchange not in program


@pytest.mark.fast
def test_parts_that_do_not_divide_the_batch_are_refused(kernel):
    with pytest.raises(UserError, match=r"optimizer\.accumulate: 5 .* 16 examples"):
        accumulate(weighted_gradients(kernel), 5, *example(), jax.random.key(0))


@pytest.mark.fast
def test_parts_that_devices_cannot_share_are_refused(kernel):
    """Four rows on eight devices: without a word, pairs of them would do the same work."""
    batch, carry = example()
    step = functools.partial(accumulate, weighted_gradients(kernel))
    with jax.set_mesh(make_mesh(MeshConfig(data=4, fsdp=2))):
        message = r"optimizer\.accumulate: a part of 4 examples .* 8 devices .* multiple of 32"
        with pytest.raises(UserError, match=message):
            jax.eval_shape(functools.partial(step, 4), batch, carry, jax.random.key(0))
    with jax.set_mesh(make_mesh(MeshConfig(data=2, tensor=4))):
        jax.eval_shape(functools.partial(step, 4), batch, carry, jax.random.key(0))


@pytest.mark.fast
def test_an_average_moves_by_its_decay():
    average = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(4.0)}
    params = {"a": jnp.array([3.0, -2.0]), "b": jnp.array(8.0)}
    for _ in range(2):
        average = update_average(average, params, 0.75)
    # After two steps 0.75^2 of the start is left.
    expected = {"a": np.array([1.875, 0.25]), "b": np.array(5.75)}
    jax.tree.map(np.testing.assert_allclose, average, expected)


# Configs


class Holder(Config):
    optimizer: OptimizerConfig = AdamWConfig()


@pytest.mark.fast
@pytest.mark.parametrize(
    ("optimizer", "field"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": -1e-3}, "learning_rate"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"accumulate": 0}, "accumulate"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"beta1": 1.0}, "beta1"),
        ({"beta2": -0.1}, "beta2"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"momentum": 0.9}, "momentum"),
        ({"kind": "sgd", "momentum": 1.0}, "momentum"),
        ({"kind": "sgd", "nesterov": True}, "nesterov"),
        ({"kind": "adafactor", "decay_rate": 0.0}, "decay_rate"),
        ({"kind": "lion", "beta2": 1.0}, "beta2"),
        ({"kind": "muon", "momentum": 1.0}, "momentum"),
        ({"kind": "muon", "adam_learning_rate_ratio": 0.0}, "adam_learning_rate_ratio"),
        ({"kind": "adam"}, "kind"),
        ({"schedule": {"kind": "step"}}, "schedule.kind"),
        ({"schedule": {"warmup_steps": -1}}, "schedule.warmup_steps"),
        ({"schedule": {"decay_steps": 0}}, "schedule.decay_steps"),
        ({"schedule": {"warmup_steps": 10, "decay_steps": 10}}, "schedule.decay_steps"),
        ({"schedule": {"final_fraction": 1.5}}, "schedule.final_fraction"),
    ],
)
def test_nonsense_is_refused_by_the_field(optimizer, field):
    optimizer = {"kind": "adamw", **optimizer}
    with pytest.raises(UserError) as refusal:
        check({"optimizer": optimizer}, Holder)
    assert f"optimizer.{field}: " in str(refusal.value)


def test_every_kind_of_optimizer_is_tested():
    kinds = {config.kind for config, _ in CASES.values()}
    assert kinds == {"adamw", "sgd", "adafactor", "lion", "muon"}
