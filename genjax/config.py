"""Reading and checking config files: TOML on disk, pydantic in memory.

A file holds only what differs from the schema's defaults. Layers are laid one on another: the
files named by `base`, the file, its `[debug]` table if asked for, and `key=value` overrides.
"""

import itertools
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError

from genjax.config_help import (
    HelpRow,
    add_arguments,
    explain,
    from_arguments,
    help_rows,
    print_help,
)
from genjax.config_schema import fill, merge, nan_keys, quoted, show
from genjax.errors import UserError

__all__ = [
    "Config",
    "HelpRow",
    "add_arguments",
    "check",
    "differences",
    "dump",
    "expand",
    "from_arguments",
    "help_rows",
    "load",
    "merge",
    "parse_override",
    "print_help",
    "read",
]

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*(\.[A-Za-z0-9_][A-Za-z0-9_-]*)*")


class Config(BaseModel):
    """Base of every table of a config file.

    Unknown keys are refused, values never change after validation, and the docstring under a field
    is its help text. A choice of class is a union discriminated by `kind: Literal["..."]`.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True
    )


C = TypeVar("C", bound=Config)


def read(path: Path) -> dict[str, Any]:
    """Read a TOML file laid over the files that its `base` key names, relative to it.

    Raises:
        UserError: the file is missing, not TOML, not UTF-8, or its bases run in a circle.
    """
    tree: dict[str, Any] = {}
    for layer in _layers(Path(path)):
        tree = merge(tree, layer)
    return tree


def _layers(path: Path, above: tuple[Path, ...] = ()) -> list[dict[str, Any]]:
    """Trees of a file and its bases, the lowest first."""
    if any(path.resolve() == file.resolve() for file in above):
        circle = " -> ".join(str(file) for file in (*above, path))
        raise UserError(f"base files run in a circle: {circle}")
    tree = _read_one(path, asked_by=above[-1] if above else None)
    base = tree.pop("base", None)
    if base is None:
        return [tree]
    if not isinstance(base, str):
        raise UserError(f"{path}: base should be the path of a TOML file, not {show(base)}")
    return [*_layers(path.parent / base, (*above, path)), tree]


def _read_one(path: Path, asked_by: Path | None) -> dict[str, Any]:
    origin = f" (the base of {asked_by})" if asked_by is not None else ""
    if path.is_dir():
        raise UserError(f"{path}{origin} is a directory, not a TOML file")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"no config file {path}{origin}{_likely_file(path)}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}{origin}: {error.strerror}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        byte = f"byte 0x{data[error.start]:02x} in line {line}"
        raise UserError(f"{path}{origin} is not UTF-8 text: {byte}; save it as UTF-8") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        last = text.splitlines() or [""]
        end = f"at line {len(last)}, column {len(last[-1]) + 1}"
        reason = str(error).replace("at end of document", end)
        raise UserError(f"{path}{origin} is not TOML: {reason}") from None


def _likely_file(path: Path) -> str:
    found = [*sorted(path.parent.glob("*.toml")), *sorted(Path("configs").rglob("*.toml"))]
    by_stem = {file.stem: file for file in reversed(found)}
    for stem in get_close_matches(path.stem, by_stem, n=1):
        return f"; did you mean {by_stem[stem]}?"
    return ""


def parse_override(argument: str) -> dict[str, Any]:
    """Turn `model.num_layers=4` into `{"model": {"num_layers": 4}}`.

    The value is read as TOML (`1e-3`, `true`, `[0.8, 0.9]`, `"text"`, `{a = 1}`), and as a bare
    text when it is not TOML (`model.kind=lstm`).

    Raises:
        UserError: there is no `=`, the key is not a dotted name, or the value is cut short.
    """
    key, text = _split(argument)
    return _nested(key, _value(text, argument))


def _split(argument: str) -> tuple[str, str]:
    key, equals, text = argument.partition("=")
    key, text = key.strip(), text.strip()
    if not equals or not _KEY.fullmatch(key):
        raise UserError(
            f"{argument!r} is not a setting; write key=value, such as model.num_layers=4"
        )
    if not text:
        raise UserError(
            f"{argument!r} has no value; write {key}=VALUE, or {key}='\"\"' for no text"
        )
    return key, text


def _value(text: str, argument: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        parsed = {}
    if list(parsed) == ["value"]:
        return parsed["value"]
    if text[0] in "[{\"'":
        raise UserError(
            f"{argument!r} is not TOML: a bracket or quote is out of place; "
            "write such as betas=[0.8, 0.9] or name='\"text\"'"
        )
    return text


def _nested(key: str, value: Any) -> dict[str, Any]:
    tree: Any = value
    for part in reversed(key.split(".")):
        tree = {part: tree}
    return tree


def expand(arguments: Sequence[str]) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Overrides of every run that the arguments ask for: `seed=0|1` and `a=1|2` make four.

    Args:
        arguments: `key=value` settings; `|` outside quotes separates the values of a sweep.

    Returns:
        For each run, the swept keys with their values as written, and the overrides as one tree.
        The last swept key varies fastest.

    Raises:
        UserError: an argument is malformed, or a key or one of its values is given twice.
    """
    choices: dict[str, list[tuple[str, Any]]] = {}
    for argument in arguments:
        key, text = _split(argument)
        if key in choices:
            raise UserError(f"{key} is given twice; for a sweep write {key}=A|B")
        texts = _alternatives(text)
        for one in texts:
            if not one:
                raise UserError(f"{argument!r} has an empty value; write such as seed=0|1|2")
            if texts.count(one) > 1:
                raise UserError(f"{argument!r} gives {one} twice; each value of a sweep is one run")
        choices[key] = [(one, _value(one, argument)) for one in texts]
    runs = []
    for values in itertools.product(*choices.values()):
        label: dict[str, str] = {}
        tree: dict[str, Any] = {}
        for key, (text, value) in zip(choices, values, strict=True):
            tree = merge(tree, _nested(key, value))
            if len(choices[key]) > 1:
                label[key] = text
        runs.append((label, tree))
    return runs


def _alternatives(text: str) -> list[str]:
    """Split at each `|` that stands outside TOML quotes."""
    parts, quote, escaped = [""], "", False
    for letter in text:
        if letter == "|" and not quote:
            parts.append("")
            continue
        parts[-1] += letter
        if quote:
            if letter == quote and not escaped:
                quote = ""
            escaped = letter == "\\" and quote == '"' and not escaped
        elif letter in "\"'":
            quote = letter
    return [part.strip() for part in parts]


def load(
    path: Path,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    debug: bool = False,
    schema: type[C] | Mapping[str, type[C]],
) -> C:
    """Read a config file, lay overrides on it and check it.

    Args:
        path: a TOML file.
        overrides: `key=value` settings, or the tree that `expand` made of them.
        debug: lay the file's `[debug]` table over the rest, below the overrides.
        schema: class of the file, or classes by the file's top-level `kind`.

    Raises:
        UserError: the file cannot be read or does not fit; it names every fault at once.
    """
    path = Path(path)
    layers = _layers(path)
    patches = [layer.pop("debug") for layer in layers if "debug" in layer]
    for patch in patches:
        if not isinstance(patch, dict):
            raise UserError(f"{path}: debug should be a table, not {show(patch)}")
    if debug and not patches:
        raise UserError(f"{path} has no [debug] table; add one with a size that runs in seconds")
    if not isinstance(overrides, Mapping):
        runs = expand(overrides)
        if len(runs) > 1:
            raise UserError(f"{quoted(tuple(runs[0][0]))} is a sweep; one value is wanted here")
        overrides = runs[0][1]
    return _check([*layers, *(patches if debug else ()), overrides], schema, str(path))


def check(
    tree: Mapping[str, Any], schema: type[C] | Mapping[str, type[C]], name: str = "config"
) -> C:
    """Validate a tree of TOML values.

    The text `"none"` stands for None wherever the schema accepts None.

    Args:
        tree: what `read` returns, without `debug`.
        schema: class of the tree, or classes by its top-level `kind`.
        name: what messages call the tree.

    Raises:
        UserError: the tree does not fit; it names every fault at once.
    """
    return _check([tree], schema, name)


def _check(
    layers: Sequence[Mapping[str, Any]], schema: type[C] | Mapping[str, type[C]], name: str
) -> C:
    if isinstance(schema, Mapping):
        schema = _choose(layers, schema, name)
    tree: dict[str, Any] = {}
    for layer in layers:
        # Defaults go in at once, so that a `kind` which this layer leaves out is known to the next.
        tree = fill(schema, merge(tree, layer, schema))
    faults = {key: "nan is not a value; give a number" for key in nan_keys(tree)}
    config = None
    try:
        # Strict JSON mode takes lists for tuples and integers for floats, and no text for numbers.
        text = json.dumps(tree, default=lambda moment: moment.isoformat())
        config = schema.model_validate_json(text, strict=True)
    except ValidationError as error:
        faults = explain(error, schema) | faults
    if config is None or faults:
        lines = [f"  {key}: {fault}" if key else f"  {fault}" for key, fault in faults.items()]
        raise UserError("\n".join([f"{name} does not fit:", *lines]))
    return config


def _choose(
    layers: Sequence[Mapping[str, Any]], schemas: Mapping[str, type[C]], name: str
) -> type[C]:
    stated = [layer["kind"] for layer in layers if "kind" in layer]
    choices = f"one of {quoted(tuple(schemas))}"
    if not stated:
        raise UserError(f"{name} does not fit:\n  kind: missing; {choices}")
    kind = stated[-1]
    if isinstance(kind, str) and kind in schemas:
        return schemas[kind]
    close = get_close_matches(str(kind), schemas, n=1)
    likely = f"; did you mean {close[0]!r}?" if close else ""
    raise UserError(f"{name} does not fit:\n  kind: {show(kind)} is not {choices}{likely}")


def dump(config: BaseModel) -> str:
    """Write every field of a config as TOML in the schema's order; None is written `"none"`.

    Loading the text gives an equal config.
    """
    return tomli_w.dumps(_without_none(config.model_dump(mode="json")))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_none(one) for one in value]
    return "none" if value is None else value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Tell how a config asked for differs from a run's, one line for each key.

    Args:
        old: tree of the run's config, from `read` or `model_dump`.
        new: tree of the config asked for.

    Returns:
        Lines such as `optimizer.learning_rate: 0.001 in the run, 0.002 asked for`. A table whose
        `kind` differs is told by its `kind` alone.
    """
    return _differences(_without_none(old), _without_none(new), "")


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> list[str]:
    names = list(dict.fromkeys([*old, *new]))
    if old.get("kind") != new.get("kind"):
        names = ["kind"]
    lines = []
    for name in names:
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += _differences(before, after, f"{prefix}{name}.")
        elif before != after:
            here = "not set" if before is None else show(before)
            there = "nothing" if after is None else show(after)
            lines.append(f"{prefix}{name}: {here} in the run, {there} asked for")
    return lines
