"""From files, defaults and overrides to a checked config, and what is refused how."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from genjax.config import (
    Config,
    check,
    expand,
    load,
)
from tests.config.sample import (
    Constant,
    Cosine,
    Decay,
    Optimizer,
    Other,
    Recurrent,
    Run,
    Transformer,
    faults,
    refusal,
    write,
)

pytestmark = pytest.mark.fast


def test_load_takes_values_from_defaults_file_debug_and_overrides_in_that_order():
    file = write(
        Path("exp.toml"),
        "seed = 1\nname = 'file'\nlowercase = true\n"
        "[debug]\nseed = 2\nname = 'debug'\n[debug.model]\nnum_layers = 1\n",
    )
    config = load(file, schema=Run)
    assert (config.seed, config.name, config.lowercase) == (1, "file", True)
    assert config.model == Transformer(num_layers=8)
    config = load(file, ["seed=3"], debug=True, schema=Run)
    assert (config.seed, config.name, config.lowercase) == (3, "debug", True)
    assert config.model == Transformer(num_layers=1)


def test_load_takes_the_tree_that_expand_made():
    file = write(Path("exp.toml"), "")
    assert [load(file, tree, schema=Run).seed for _, tree in expand(["seed=4|5"])] == [4, 5]
    assert refusal(load, file, ["seed=4|5"], schema=Run) == (
        "'seed' is a sweep; one value is wanted here"
    )


def test_load_lays_a_table_over_the_default_instance_of_its_field():
    file = write(Path("exp.toml"), "[model]\ndropout = 0.5\n[optimizer.schedule]\n")
    config = load(file, schema=Run)
    assert config.model == Transformer(num_layers=8, dropout=0.5)
    assert config.optimizer.schedule == Cosine(warmup_steps=10)
    assert load(file, ["optimizer.betas=[0.5, 0.6]"], schema=Run).optimizer.schedule == Cosine(
        warmup_steps=10
    )


def test_default_instances_hold_in_depth():
    class Outer(Config):
        optimizer: Optimizer = Optimizer(schedule=Constant(), betas=(0.5, 0.6))

    config = check({"optimizer": {"learning_rate": 0.1}}, Outer)
    assert config.optimizer == Optimizer(learning_rate=0.1, schedule=Constant(), betas=(0.5, 0.6))
    config = check({"optimizer": {"schedule": {"kind": "cosine"}}}, Outer)
    assert config.optimizer == Optimizer(schedule=Cosine(warmup_steps=10), betas=(0.5, 0.6))


@pytest.mark.parametrize("stated", ["", "kind = 'transformer'\n"])
def test_an_override_of_kind_drops_the_old_classes_keys(stated: str):
    file = write(Path("exp.toml"), f"[model]\n{stated}num_layers = 2\n")
    config = load(file, ["model.kind=gru", "model.hidden_size=8"], schema=Run)
    assert config.model == Recurrent(kind="gru", hidden_size=8)


def test_another_kind_of_the_same_class_keeps_the_other_keys():
    class Inner(Config):
        schedule: Decay = Decay()

    class Outer(Config):
        inner: Inner = Inner()
        model: Annotated[Transformer | Recurrent, Field(discriminator="kind")] = Transformer()

    file = write(
        Path("exp.toml"),
        "[inner.schedule]\nkind = 'linear'\nwarmup_steps = 5\n"
        "[model]\nkind = 'lstm'\nhidden_size = 8\n",
    )
    config = load(file, ["inner.schedule.kind=cosine", "model.kind=gru"], schema=Outer)
    assert config.inner.schedule == Decay(kind="cosine", warmup_steps=5)
    assert config.model == Recurrent(kind="gru", hidden_size=8)
    assert load(file, ["model.kind=transformer"], schema=Outer).model == Transformer()


def test_stating_the_default_kind_keeps_the_keys_of_a_base():
    write(Path("base.toml"), "[model]\ndropout = 0.25\n")
    file = write(Path("exp.toml"), "base = 'base.toml'\n[model]\nkind = 'transformer'\n")
    assert load(file, schema=Run).model == Transformer(num_layers=8, dropout=0.25)


def test_debug_tables_of_base_and_file_are_both_laid_on():
    write(Path("base.toml"), "[debug]\nseed = 7\nname = 'base'\n")
    file = write(Path("exp.toml"), "base = 'base.toml'\nname = 'x'\n[debug]\nname = 'file'\n")
    config = load(file, schema=Run, debug=True)
    assert (config.seed, config.name) == (7, "file")


def test_debug_needs_its_table():
    file = write(Path("exp.toml"), "seed = 1")
    assert refusal(load, file, schema=Run, debug=True) == (
        "exp.toml has no [debug] table; add one with a size that runs in seconds"
    )
    file = write(Path("exp.toml"), "debug = true")
    assert refusal(load, file, schema=Run) == "exp.toml: debug should be a table, not true"


def test_load_accepts_integers_for_floats_and_lists_for_tuples():
    file = write(Path("exp.toml"), "[optimizer]\nlearning_rate = 1\nbetas = [0, 1]\n")
    config = load(file, schema=Run)
    assert type(config.optimizer.learning_rate) is float
    assert config.optimizer.betas == (0.0, 1.0)


def test_none_stands_for_none_where_the_schema_accepts_it():
    file = write(Path("exp.toml"), "layers = [1, 'none']\n")
    config = load(file, ["optimizer.clip_norm=none", "teacher=none"], schema=Run)
    assert config.optimizer.clip_norm is None
    assert config.layers == [1, None]
    assert faults("seed = 'none'") == ["seed: input should be a valid integer, not 'none'"]


def test_a_date_is_text():
    assert load(write(Path("exp.toml"), ""), ["name=2024-05-01"], schema=Run).name == "2024-05-01"


def test_infinity_is_a_float_and_nan_is_refused():
    file = write(Path("exp.toml"), "[optimizer]\nclip_norm = inf\n")
    assert load(file, schema=Run).optimizer.clip_norm == float("inf")
    assert faults("[optimizer]\nbetas = [0.9, nan]\nlearning_rate = nan\n") == [
        "optimizer.learning_rate: nan is not a value; give a number",
        "optimizer.betas[1]: nan is not a value; give a number",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.num_layer = 12", ["model.num_layer: no such key; did you mean 'num_layers'?"]),
        ("trian = 1\nsede = 3", ["trian: KNOWN", "sede: no such key; did you mean 'seed'?"]),
        (
            "learning_rate = 1e-3",
            ["learning_rate: no such key; did you mean 'optimizer.learning_rate'?"],
        ),
        (
            "model.hidden_size = 3",
            ["model.hidden_size: no such key for kind 'transformer'; it belongs to 'lstm', 'gru'"],
        ),
        (
            "optimizer.schedule.foo = 3",
            ["optimizer.schedule.foo: no such key; known here: 'kind', 'warmup_steps'"],
        ),
        (
            "model.num_layers = 'twelve'",
            ["model.num_layers: input should be a valid integer, not 'twelve'"],
        ),
        (
            "model.num_layers = '12'",
            ["model.num_layers: input should be a valid integer, not '12'; write 12"],
        ),
        ("model.num_layers = 1.5", ["model.num_layers: input should be a valid integer, not 1.5"]),
        ("seed = true", ["seed: input should be a valid integer, not true"]),
        (
            "optimizer.learning_rate = '.5'",
            ["optimizer.learning_rate: input should be a valid number, not '.5'; write 0.5"],
        ),
        (
            "optimizer.learning_rate = -1\ntrian = 1",
            [
                "optimizer.learning_rate: input should be greater than 0, not -1",
                "trian: KNOWN",
            ],
        ),
        (
            "model.dropout = 1.0",
            ["model.dropout: input should be less than 1, not 1.0"],
        ),
        (
            "lowercase = 'True'",
            ["lowercase: input should be a valid boolean, not 'True'; write true"],
        ),
        ("lowercase = 1", ["lowercase: input should be a valid boolean, not 1"]),
        ("name = 5", ['name: input should be a valid string, not 5; write "5" in quotes']),
        ("precision = 'half'", ["precision: 'half' is not one of 'float32', 'bfloat16'"]),
        (
            "limit = 'some'",
            ["limit: input should be a valid integer, not 'some'; or 'some' is not one of 'all'"],
        ),
        (
            "model.kind = 'mambo'",
            ["model.kind: 'mambo' is not one of 'transformer', 'lstm', 'gru'"],
        ),
        ("model.kind = 3", ["model.kind: 3 is not one of 'transformer', 'lstm', 'gru'"]),
        ("teacher = {}", ["teacher.kind: missing; one of 'transformer', 'lstm', 'gru'"]),
        (
            "teacher = {kind = 'gru', hiden_size = 3}",
            ["teacher.hiden_size: no such key; did you mean 'hidden_size'?"],
        ),
        ("model = 3", ["model: input should be a table, not 3"]),
        ("optimizer = 'adam'", ["optimizer: input should be a table, not 'adam'"]),
        (
            "seed = {x = 3, y = ['a']}",
            ["seed: input should be a valid integer, not {x = 3, y = ['a']}"],
        ),
        (
            "seed = '" + "x" * 80 + "'",
            [f"seed: input should be a valid integer, not '{'x' * 56}..."],
        ),
        (
            "optimizer.betas = [1, 2, 3]",
            ["optimizer.betas: tuple should have at most 2 items, not 3"],
        ),
        ("optimizer.betas = 0.8", ["optimizer.betas: input should be a valid array, not 0.8"]),
        ("optimizer.betas = [1]", ["optimizer.betas[1]: missing, and it has no default"]),
        (
            "parts = [{path = 'a'}, {weight = 0, pat = 'b'}]",
            [
                "parts[1].path: missing, and it has no default",
                "parts[1].weight: input should be greater than 0, not 0",
                "parts[1].pat: no such key; did you mean 'path'?",
            ],
        ),
        ("extras.one.weight = 1", ["extras.one.path: missing, and it has no default"]),
    ],
)
def test_every_fault_is_told_by_its_key(text: str, expected: list[str]):
    known = ", ".join(repr(name) for name in Run.model_fields)
    wanted = [line.replace("KNOWN", f"no such key; known here: {known}") for line in expected]
    assert faults(text) == wanted


def test_a_key_of_the_same_table_in_another_class_is_told_apart():
    class Small(Config):
        depth: int = 1

    class Large(Config):
        width: int = 1

    class A(Config):
        kind: Literal["a"] = "a"
        size: Small = Small()

    class B(Config):
        kind: Literal["b"] = "b"
        size: Large = Large()

    class Outer(Config):
        net: Annotated[A | B, Field(discriminator="kind")] = A()

    assert refusal(check, {"net": {"size": {"width": 3}}}, Outer) == (
        "config does not fit:\n  net.size.width: no such key; known here: 'depth'"
    )


def test_a_rule_of_the_whole_table_is_told_in_its_own_words():
    class Checked(Config):
        low: int = 0
        high: int = 1

        @model_validator(mode="after")
        def ordered(self) -> "Checked":
            if self.low > self.high:
                raise ValueError("low is above high; swap them")
            return self

    class Outer(Config):
        inner: Checked = Checked()

    file = write(Path("exp.toml"), "low = 5")
    assert refusal(load, file, schema=Checked) == (
        "exp.toml does not fit:\n  low is above high; swap them"
    )
    assert refusal(load, file, {"inner": {"low": 5}}, schema=Outer) == (
        "exp.toml does not fit:\n"
        "  inner: low is above high; swap them\n"
        "  low: no such key; did you mean 'inner.low'?"
    )


def test_the_top_level_kind_chooses_the_schema():
    schemas = {"run": Run, "other": Other}
    file = write(Path("exp.toml"), "kind = 'other'\ntext = 'x'\n")
    assert load(file, schema=schemas) == Other(text="x")
    assert load(file, ["kind=run", "seed=3"], schema=schemas) == Run(seed=3)
    assert refusal(load, file, ["kind=othr"], schema=schemas) == (
        "exp.toml does not fit:\n  kind: 'othr' is not one of 'run', 'other'; did you mean 'other'?"
    )
    assert refusal(load, file, ["kind=3"], schema=schemas) == (
        "exp.toml does not fit:\n  kind: 3 is not one of 'run', 'other'"
    )
    assert refusal(load, write(Path("empty.toml"), ""), schema=schemas) == (
        "empty.toml does not fit:\n  kind: missing; one of 'run', 'other'"
    )
    assert refusal(load, write(Path("bare.toml"), "kind = 'other'"), schema=schemas) == (
        "bare.toml does not fit:\n  text: missing, and it has no default"
    )


def test_check_names_the_tree():
    assert check({"seed": 3}, Run) == Run(seed=3)
    assert refusal(check, {"sed": 3}, Run, "request") == (
        "request does not fit:\n  sed: no such key; did you mean 'seed'?"
    )
