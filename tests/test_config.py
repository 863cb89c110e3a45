import argparse
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from genjax.config import (
    Config,
    HelpRow,
    add_arguments,
    check,
    differences,
    dump,
    expand,
    from_arguments,
    help_rows,
    load,
    merge,
    parse_override,
    print_help,
    read,
)
from genjax.errors import UserError


class Cosine(Config):
    """Half a cosine down to zero."""

    kind: Literal["cosine"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0, lt=2**32)
    """Steps of linear warm-up."""


class Constant(Config):
    kind: Literal["constant"] = "constant"


class Optimizer(Config):
    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of both moments."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest gradient norm."""
    schedule: Annotated[Cosine | Constant, Field(discriminator="kind")] = Cosine(warmup_steps=10)
    """Learning rate over time."""


class Transformer(Config):
    """Attention over all past tokens."""

    kind: Literal["transformer"] = "transformer"
    num_layers: int = Field(default=4, ge=1)
    """Number of blocks."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout rate."""


class Recurrent(Config):
    """A stack of recurrent layers."""

    kind: Literal["lstm", "gru"]
    hidden_size: int = 64
    """Width of the state."""


class Decay(Config):
    kind: Literal["linear", "cosine"] = "linear"
    warmup_steps: int = 0


class Part(Config):
    path: str
    weight: float = Field(default=1.0, gt=0)


class Run(Config):
    kind: Literal["run"] = "run"
    seed: int = 0
    """Seed of all randomness."""
    name: str | None = None
    lowercase: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    limit: int | Literal["all"] = "all"
    layers: list[int | None] = Field(default=[])
    model: Annotated[Transformer | Recurrent, Field(discriminator="kind")] = Transformer(
        num_layers=8
    )
    """Which network to train."""
    teacher: Annotated[Transformer | Recurrent, Field(discriminator="kind")] | None = None
    """Which network to learn from."""
    optimizer: Optimizer = Optimizer()
    """How parameters move."""
    parts: tuple[Part, ...] = ()
    """Files to read."""
    extras: dict[str, Part] = Field(default={})


class Other(Config):
    kind: Literal["other"] = "other"
    text: str


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refusal(call: Any, *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **keywords)
    return str(caught.value)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def faults(text: str, *overrides: str, debug: bool = False) -> list[str]:
    file = write(Path("exp.toml"), text)
    first, *rest = refusal(load, file, overrides, schema=Run, debug=debug).split("\n")
    assert first == "exp.toml does not fit:"
    return [line.removeprefix("  ") for line in rest]


# ------------------------------------------------------------------------------ Config and merge


def test_configs_are_frozen_and_hashable():
    config = Transformer()
    assert hash(config) == hash(Transformer())
    with pytest.raises(ValidationError, match="frozen"):
        config.num_layers = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="not permitted"):
        Transformer(num_layer=3)  # type: ignore[call-arg]


def test_defaults_are_validated():
    class Wrong(Config):
        size: int = Field(default=0, ge=1)

    with pytest.raises(ValidationError):
        Wrong()


def test_merge_is_deep_and_leaves_its_inputs_alone():
    below = {"a": {"b": 1, "c": 2}, "d": 3, "e": {"f": 1}}
    above = {"a": {"c": 4}, "d": {"x": 1}, "e": 5}
    assert merge(below, above) == {"a": {"b": 1, "c": 4}, "d": {"x": 1}, "e": 5}
    assert below == {"a": {"b": 1, "c": 2}, "d": 3, "e": {"f": 1}}
    assert above == {"a": {"c": 4}, "d": {"x": 1}, "e": 5}


def test_merge_resets_a_table_whose_kind_changes():
    below = {"model": {"kind": "transformer", "num_layers": 4}, "seed": 1}
    assert merge(below, {"model": {"kind": "lstm", "hidden_size": 8}}) == {
        "model": {"kind": "lstm", "hidden_size": 8},
        "seed": 1,
    }
    assert merge(below, {"model": {"kind": "transformer"}}) == below
    assert merge(below, {"model": {"dropout": 0.5}})["model"]["num_layers"] == 4


# -------------------------------------------------------------------------------------- read


def test_read_follows_a_chain_of_bases_relative_to_each_file():
    write(Path("a/low.toml"), "seed = 1\n[model]\nnum_layers = 2\ndropout = 0.1\n")
    write(Path("b/mid.toml"), 'base = "../a/low.toml"\n[model]\nnum_layers = 3\n')
    top = write(Path("top.toml"), 'base = "b/mid.toml"\nname = "top"\n')
    assert read(top) == {"seed": 1, "name": "top", "model": {"num_layers": 3, "dropout": 0.1}}


def test_read_refuses_a_circle_of_bases():
    a = write(Path("a.toml"), 'base = "b.toml"')
    write(Path("b.toml"), 'base = "a.toml"')
    assert refusal(read, a) == "base files run in a circle: a.toml -> b.toml -> a.toml"


def test_read_refuses_a_base_that_is_no_text():
    assert refusal(read, write(Path("a.toml"), "base = 3")) == (
        "a.toml: base should be the path of a TOML file, not 3"
    )


def test_read_tells_a_missing_file_with_a_likely_one_beside_it():
    write(Path("runs/shakespeare.toml"), "")
    assert refusal(read, Path("runs/shakespear.toml")) == (
        "no config file runs/shakespear.toml; did you mean runs/shakespeare.toml?"
    )
    assert refusal(read, Path("nothing_like_it.toml")) == "no config file nothing_like_it.toml"


def test_read_looks_for_likely_files_under_configs():
    write(Path("configs/text/tiny.toml"), "")
    assert refusal(read, Path("tiny")) == (
        "no config file tiny; did you mean configs/text/tiny.toml?"
    )


def test_read_tells_which_file_asked_for_a_missing_base():
    file = write(Path("a.toml"), 'base = "nowhere/far.toml"')
    assert refusal(read, file) == "no config file nowhere/far.toml (the base of a.toml)"


def test_read_refuses_a_directory():
    Path("folder").mkdir()
    assert refusal(read, Path("folder")) == "folder is a directory, not a TOML file"


def test_read_tells_an_unreadable_path():
    write(Path("file"), "")
    assert refusal(read, Path("file/exp.toml")) == "cannot read file/exp.toml: Not a directory"


def test_read_tells_line_and_column_of_bad_syntax():
    file = write(Path("a.toml"), "seed = 1\nname = foo\n")
    assert refusal(read, file) == "a.toml is not TOML: Invalid value (at line 2, column 8)"
    file = write(Path("a.toml"), "seed = 1\nlayers = [1,")
    assert refusal(read, file) == "a.toml is not TOML: Invalid value (at line 2, column 13)"


def test_read_refuses_text_that_is_not_utf8():
    Path("a.toml").write_bytes(b'seed = 1\nname = "caf\xe9"\n')
    assert refusal(read, Path("a.toml")) == (
        "a.toml is not UTF-8 text: byte 0xe9 in line 2; save it as UTF-8"
    )


def test_read_accepts_a_byte_order_mark():
    Path("a.toml").write_bytes(b"\xef\xbb\xbfseed = 1\r\n")
    assert read(Path("a.toml")) == {"seed": 1}


# ------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("argument", "tree"),
    [
        ("model.num_layers=4", {"model": {"num_layers": 4}}),
        ("a.b.c=1e-3", {"a": {"b": {"c": 0.001}}}),
        ("betas=[0.8, 0.9]", {"betas": [0.8, 0.9]}),
        ("flag=true", {"flag": True}),
        ('name="text"', {"name": "text"}),
        ("name='a=b'", {"name": "a=b"}),
        ("model={kind = 'lstm', hidden_size = 3}", {"model": {"kind": "lstm", "hidden_size": 3}}),
        ("task=foo", {"task": "foo"}),
        ("model.kind=lstm", {"model": {"kind": "lstm"}}),
        ("path=/data/a b.txt", {"path": "/data/a b.txt"}),
        ("colour=#fff", {"colour": "#fff"}),
        ("formula=a=b", {"formula": "a=b"}),
        ("x=1\ny=2", {"x": "1\ny=2"}),
        (" seed = 3 ", {"seed": 3}),
        ("limit=inf", {"limit": float("inf")}),
        ('name=""', {"name": ""}),
    ],
)
def test_parse_override(argument: str, tree: dict[str, Any]):
    assert parse_override(argument) == tree


@pytest.mark.parametrize("argument", ["seed", "=3", "a..b=3", "--seed=3", "a b=3", ""])
def test_parse_override_refuses_what_is_no_setting(argument: str):
    assert refusal(parse_override, argument) == (
        f"{argument!r} is not a setting; write key=value, such as model.num_layers=4"
    )


def test_parse_override_refuses_no_value():
    assert refusal(parse_override, "a.b= ") == (
        "'a.b= ' has no value; write a.b=VALUE, or a.b='\"\"' for no text"
    )


@pytest.mark.parametrize("value", ["[0.8, 0.9", '"text', "{a = 1", "'x"])
def test_parse_override_refuses_a_value_cut_short(value: str):
    assert refusal(parse_override, f"betas={value}") == (
        f"{f'betas={value}'!r} is not TOML: a bracket or quote is out of place; "
        "write such as betas=[0.8, 0.9] or name='\"text\"'"
    )


def test_expand_without_a_sweep_is_one_run():
    assert expand([]) == [({}, {})]
    assert expand(["seed=1", "model.dropout=0.5"]) == [({}, {"seed": 1, "model": {"dropout": 0.5}})]


def test_expand_makes_a_grid():
    runs = expand(["seed=0|1|2", "model.kind=lstm", "model.hidden_size = 8 | 16"])
    assert [label for label, _ in runs] == [
        {"seed": s, "model.hidden_size": h} for s in ("0", "1", "2") for h in ("8", "16")
    ]
    assert runs[3][1] == {"seed": 1, "model": {"kind": "lstm", "hidden_size": 16}}


def test_expand_keeps_a_bar_inside_quotes():
    assert expand(['name="a|b"']) == [({}, {"name": "a|b"})]
    assert expand([r'name="a\"|b"|c']) == [
        ({"name": r'"a\"|b"'}, {"name": 'a"|b'}),
        ({"name": "c"}, {"name": "c"}),
    ]
    assert [tree for _, tree in expand(["x=['|', 'b']|['c']"])] == [{"x": ["|", "b"]}, {"x": ["c"]}]


def test_expand_lays_a_table_and_its_keys_together_in_either_order():
    either = {"model": {"kind": "lstm", "hidden_size": 8}}
    assert expand(["model.hidden_size=8", "model.kind=lstm"]) == [({}, either)]
    assert expand(["model={kind='lstm'}", "model.hidden_size=8"]) == [({}, either)]


def test_expand_refuses_doubles_and_gaps():
    assert refusal(expand, ["seed=1", "seed=2"]) == (
        "seed is given twice; for a sweep write seed=A|B"
    )
    assert refusal(expand, ["seed=1|2|1"]) == (
        "'seed=1|2|1' gives 1 twice; each value of a sweep is one run"
    )
    assert refusal(expand, ["seed=1|"]) == "'seed=1|' has an empty value; write such as seed=0|1|2"


# ------------------------------------------------------------------------------------- load


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


# ------------------------------------------------------------------------------ dump, differences


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


# ------------------------------------------------------------------------------------- help


def test_help_rows_show_every_key_with_the_files_values():
    config = Run(seed=5, model=Recurrent(kind="gru", hidden_size=8))
    rows = help_rows(Run, config)
    assert rows[:15] == [
        HelpRow("kind", "run", "run", ""),
        HelpRow("seed", "int", "5", "Seed of all randomness."),
        HelpRow("name", "str or none", "none", ""),
        HelpRow("lowercase", "bool", "false", ""),
        HelpRow("precision", "float32|bfloat16", "float32", ""),
        HelpRow("limit", "int or all", "all", ""),
        HelpRow("layers", "[int or none, ...]", "[]", ""),
        HelpRow("model", "transformer|lstm|gru", "gru", "Which network to train."),
        HelpRow("model.kind", "transformer", "transformer", "Attention over all past tokens."),
        HelpRow("model.num_layers", "int >= 1", "8", "Number of blocks."),
        HelpRow("model.dropout", "float >= 0, < 1", "0.0", "Dropout rate."),
        HelpRow("model.kind", "lstm|gru", "gru", "Chosen. A stack of recurrent layers."),
        HelpRow("model.hidden_size", "int", "8", "Width of the state."),
        HelpRow("teacher", "transformer|lstm|gru or none", "none", "Which network to learn from."),
        HelpRow("teacher.kind", "transformer", "transformer", "Attention over all past tokens."),
    ]
    assert rows[15] == HelpRow("teacher.num_layers", "int >= 1", "4", "Number of blocks.")
    assert rows[19:] == [
        HelpRow("optimizer", "table", "", "How parameters move."),
        HelpRow("optimizer.learning_rate", "float > 0", "0.0003", "Peak learning rate."),
        HelpRow("optimizer.betas", "[float, float]", "[0.9, 0.99]", "Decay rates of both moments."),
        HelpRow("optimizer.clip_norm", "float > 0 or none", "1.0", "Largest gradient norm."),
        HelpRow("optimizer.schedule", "cosine|constant", "cosine", "Learning rate over time."),
        HelpRow(
            "optimizer.schedule.kind", "cosine", "cosine", "Chosen. Half a cosine down to zero."
        ),
        HelpRow(
            "optimizer.schedule.warmup_steps",
            "int >= 0, < 4294967296",
            "10",
            "Steps of linear warm-up.",
        ),
        HelpRow("optimizer.schedule.kind", "constant", "constant", ""),
        HelpRow("parts", "[table, ...]", "[]", "Files to read."),
        HelpRow("parts[].path", "str", "required", ""),
        HelpRow("parts[].weight", "float > 0", "1.0", ""),
        HelpRow("extras", "{NAME = table}", "{}", ""),
        HelpRow("extras.NAME.path", "str", "required", ""),
        HelpRow("extras.NAME.weight", "float > 0", "1.0", ""),
    ]


def test_help_rows_without_a_file_show_the_defaults():
    values = {row.key: row.value for row in help_rows(Other)}
    assert values == {"kind": "other", "text": "required"}
    chosen = [row for row in help_rows(Run) if row.meaning.startswith("Chosen")]
    assert [(row.key, row.value) for row in chosen] == [
        ("model.kind", "transformer"),
        ("optimizer.schedule.kind", "cosine"),
    ]


def test_print_help_keeps_every_key_whole_within_a_hundred_columns(
    capsys: pytest.CaptureFixture[str],
):
    print_help(Run)
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].split() == ["key", "type", "value", "meaning"]
    assert max(len(line) for line in lines) <= 100
    first_words = [line.split()[0] for line in lines[1:]]
    for row in help_rows(Run):
        assert row.key in first_words
    assert "…" not in out
    assert "\x1b" not in out


def test_print_help_is_whole_when_piped_from_a_narrow_terminal():
    code = (
        "from genjax.config import Config, print_help\n"
        "class A(Config):\n"
        f"    {'long_' * 8}key: int = 3\n"
        f"    '''{'word ' * 30}'''\n"
        "print_help(A)\n"
    )
    path = write(Path("program.py"), code)
    root = Path(__file__).parents[1]
    ran = subprocess.run(
        [sys.executable, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(root), "COLUMNS": "40"},
    )
    assert "long_" * 8 + "key" in ran.stdout
    assert ran.stdout.count("word") == 30
    assert max(len(line) for line in ran.stdout.splitlines()) <= 100


# ------------------------------------------------------------------------------------ flags


class Request(Config):
    prompts: list[str] = Field(default=["The"])
    """Texts to go on from."""
    max_length: int = Field(default=32, ge=1, le=100)
    """Longest answer in tokens; 50% of them are spaces."""
    temperature: float = Field(default=1.0, gt=0)
    """Heat of the softmax."""
    top_k: Annotated[int, Field(ge=1)] | None = 40
    """Keep this many tokens."""
    stop: str | None = None
    greedy: bool = False
    """Take the likeliest token."""
    method: Literal["ancestral", "beam"] = "ancestral"


def request(*arguments: str) -> Request:
    parser = argparse.ArgumentParser()
    add_arguments(parser, Request)
    return from_arguments(parser.parse_args(arguments), Request)


def test_flags_make_a_config():
    assert request() == Request()
    assert request(
        *("--prompts", "a b", "c", "--max-length", "7", "--temperature", "1e-1", "--top-k=none"),
        *("--stop", ".", "--greedy", "--method", "beam"),
    ) == Request(
        prompts=["a b", "c"],
        max_length=7,
        temperature=0.1,
        top_k=None,
        stop=".",
        greedy=True,
        method="beam",
    )
    assert request("--no-greedy").greedy is False


def test_flags_beside_other_flags():
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    add_arguments(parser, Request)
    assert from_arguments(parser.parse_args(["folder", "--top-k", "3"]), Request).top_k == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1"], "--temperature: input should be greater than 0, not '-1'"),
        (
            ["--max-length", "101"],
            "--max-length: input should be less than or equal to 100, not '101'",
        ),
        (["--max-length", "ten"], "--max-length: input should be a valid integer, not 'ten'"),
        (["--method", "best"], "--method: 'best' is not one of 'ancestral', 'beam'"),
        (
            ["--temperature", "x", "--top-k", "0"],
            "--temperature: input should be a valid number, not 'x'\n"
            "--top-k: input should be greater than or equal to 1, not '0'",
        ),
    ],
)
def test_a_flag_out_of_range_is_told_in_one_line(arguments: list[str], message: str):
    assert refusal(request, *arguments) == message


def test_flags_explain_themselves():
    parser = argparse.ArgumentParser()
    add_arguments(parser, Request)
    text = " ".join(parser.format_help().split())
    for expected in (
        "--prompts TEXT [TEXT ...] Texts to go on from. ([str, ...], default ['The'])",
        "--max-length INT Longest answer in tokens; 50% of them are spaces. "
        "(int >= 1, <= 100, default 32)",
        "--top-k INT Keep this many tokens. (int >= 1 or none, default 40)",
        "--greedy, --no-greedy Take the likeliest token. (bool, default false)",
        "--method {ancestral,beam} (ancestral|beam, default ancestral)",
    ):
        assert expected in text


def test_a_required_flag_is_asked_for(capsys: pytest.CaptureFixture[str]):
    parser = argparse.ArgumentParser(prog="generate")
    add_arguments(parser, Part)
    with pytest.raises(SystemExit):
        parser.parse_args([])
    assert "the following arguments are required: --path" in capsys.readouterr().err
    assert refusal(from_arguments, argparse.Namespace(), Part) == (
        "--path: missing, and it has no default"
    )
