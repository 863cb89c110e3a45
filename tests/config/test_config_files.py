"""Configs as classes and as files: merging, reading, overriding."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, ValidationError

from genjax.config import (
    Config,
    expand,
    merge,
    parse_override,
    read,
)
from tests.config.sample import Transformer, refusal, write

pytestmark = pytest.mark.fast

# ---- classes and merging ------------------------------------------------------------


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


# ---- reading ------------------------------------------------------------


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


# ---- overrides ------------------------------------------------------------


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
