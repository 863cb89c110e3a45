"""Configs written, read back and compared."""

import random
from pathlib import Path

import pytest

from genjax.config import (
    differences,
    dump,
    load,
    read,
)
from tests.config.sample import (
    Constant,
    Cosine,
    Optimizer,
    Part,
    Recurrent,
    Run,
    Transformer,
    write,
)

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    "config",
    [
        Run(),
        Run(seed=-3, name='a "quoted"\nline é \\', precision="bfloat16", limit=3, lowercase=True),
        Run(model=Recurrent(kind="gru"), teacher=Transformer(dropout=0.125)),
        Run(model=Transformer()),
        Run(optimizer=Optimizer(clip_norm=None, schedule=Constant())),
        Run(optimizer=Optimizer(clip_norm=float("inf"), learning_rate=1e-30, betas=(0.1, 1))),
        Run(optimizer=Optimizer(schedule=Cosine())),
        Run(layers=[1, None, 3], parts=(Part(path="a"), Part(path="b", weight=0.3))),
        Run(extras={"one": Part(path="a"), "two words": Part(path="none")}),
    ],
)
def test_a_dumped_config_loads_as_itself(config: Run):
    text = dump(config)
    file = write(Path("config.toml"), text)
    assert load(file, schema=Run) == config
    assert dump(load(file, schema=Run)) == text


def test_dump_writes_every_field_in_the_schemas_order():
    assert dump(Optimizer(clip_norm=None)) == (
        "learning_rate = 0.0003\n"
        "betas = [\n    0.9,\n    0.99,\n]\n"
        'clip_norm = "none"\n'
        "\n[schedule]\n"
        'kind = "cosine"\n'
        "warmup_steps = 10\n"
    )


def test_any_tree_of_overrides_survives_dump_and_load():
    rng = random.Random(0)
    file = write(Path("empty.toml"), "")
    for _ in range(50):
        settings = rng.sample(
            [
                f"seed={rng.randrange(-9, 9)}",
                f"optimizer.learning_rate={rng.random() + 1e-9!r}",
                f"model.kind={rng.choice(['lstm', 'gru', 'transformer'])}",
                f"teacher.kind={rng.choice(['lstm', 'transformer'])}",
                f"optimizer.schedule.kind={rng.choice(['constant', 'cosine'])}",
                f"optimizer.clip_norm={rng.choice(['none', '2'])}",
                f"layers=[{rng.randrange(9)}, 'none']",
            ],
            k=4,
        )
        config = load(file, settings, schema=Run)
        assert load(write(Path("config.toml"), dump(config)), schema=Run) == config


def test_differences_names_each_key_with_both_values():
    old = Run(name="a", optimizer=Optimizer(learning_rate=1e-3)).model_dump(mode="json")
    new = Run(name=None, optimizer=Optimizer(learning_rate=2e-3, betas=(0.8, 0.99)))
    assert differences(old, old) == []
    assert differences(old, new.model_dump(mode="json")) == [
        "name: 'a' in the run, 'none' asked for",
        "optimizer.learning_rate: 0.001 in the run, 0.002 asked for",
        "optimizer.betas: [0.9, 0.99] in the run, [0.8, 0.99] asked for",
    ]


def test_differences_reads_a_dumped_file_as_the_config_it_came_from():
    config = Run(optimizer=Optimizer(clip_norm=None), parts=(Part(path="a"),))
    file = write(Path("config.toml"), dump(config))
    assert differences(read(file), config.model_dump(mode="json")) == []
    assert differences(read(file), config.model_dump()) == []


def test_differences_tells_a_changed_class_by_its_kind_alone():
    old = {"model": {"kind": "lstm", "hidden_size": 8}, "seed": 1, "gone": 2}
    new = {"model": {"kind": "transformer", "num_layers": 8}, "seed": 1, "new": True}
    assert differences(old, new) == [
        "model.kind: 'lstm' in the run, 'transformer' asked for",
        "gone: 2 in the run, nothing asked for",
        "new: not set in the run, true asked for",
    ]
