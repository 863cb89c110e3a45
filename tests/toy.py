"""A task of a few lines: fit a line. What a new family has to write, and no more."""

import dataclasses
from typing import Literal

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from genjax.run_config import RunConfig
from genjax.task import Evaluation, Task, TrainState


class ToyConfig(RunConfig):
    kind: Literal["toy"] = "toy"
    size: int = 64
    learning_rate: float = 0.2
    evaluation: int | None = None
    samples: int | None = None

    def make_task(self, assets=None):
        return Toy(self)

    def evaluation_every(self):
        return self.evaluation

    def samples_every(self):
        return self.samples

    def divergence_advice(self):
        return "lower learning_rate"


class Batches:
    def __len__(self):
        return 10_000

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        x = rng.normal(size=(16, 64)).astype(np.float32)
        return {"x": x, "y": x.sum(1), "noise": rng.normal(size=16).astype(np.float32)}


class Toy(Task):
    partition_rules = ((r"weights$", ("fsdp",)), (r"^carry/", (None,)))

    def __init__(self, config):
        self.optimizer = optax.adam(config.learning_rate)
        self.size = config.size

    def init(self, key):
        init_key, run_key = jax.random.split(key)
        params = {"line": {"weights": jax.random.normal(init_key, (self.size,))}}
        opt_state = {"line": self.optimizer.init(params["line"])}
        return TrainState(jnp.int32(0), params, opt_state, {}, {"seen": jnp.zeros(1)}, run_key)

    def train_step(self, state, batch, variant=None):
        def loss(params):
            noise = 0.01 * jax.random.normal(state.step_key(), batch["y"].shape)
            return jnp.mean((batch["x"] @ params["weights"] - batch["y"] + noise) ** 2)

        value, grads = jax.value_and_grad(loss)(state.params["line"])
        if variant == "double":
            grads = jax.tree.map(lambda leaf: 2 * leaf, grads)
        updates, opt_state = self.optimizer.update(grads, state.opt_state["line"])
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params={"line": optax.apply_updates(state.params["line"], updates)},
            opt_state={"line": opt_state},
            carry={"seen": state.carry["seen"] + len(batch["y"])},
        )
        return state, {"loss": value, "grad_norm": optax.tree.norm(grads)}

    def variant(self, step):
        return "double" if step % 4 == 3 else None

    def dataset(self, split, shard):
        rows = slice(shard.index * 16 // shard.count, (shard.index + 1) * 16 // shard.count)
        source = grain.MapDataset.source(Batches())
        return source.map(lambda batch: {name: array[rows] for name, array in batch.items()})

    def evaluation(self, shard):
        return Evaluation("validation", "ten batches", [Batches()[i] for i in range(10)])

    def eval_step(self, state, batch):
        errors = (batch["x"] @ state.params["line"]["weights"] - batch["y"]) ** 2
        return state.carry, {"errors": jnp.sum(errors), "count": jnp.float32(len(errors))}

    def figures(self, sums):
        return {"mean_squared_error": float(sums["errors"] / sums["count"])}
