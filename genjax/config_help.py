"""What a config schema says to people: error lines, the help table, command-line flags."""

import argparse
import types
from collections.abc import Iterator, Mapping, Sequence, Set
from difflib import get_close_matches
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined
from rich.console import Console
from rich.table import Table
from rich.text import Text

from genjax.config_schema import (
    all_kinds,
    default_of,
    is_mapping,
    item_annotation,
    kinds,
    members,
    quoted,
    show,
    table_classes,
)
from genjax.errors import UserError

M = TypeVar("M", bound=BaseModel)

_SYMBOLS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "a multiple of"}
_LENGTHS = {"min_length": "at least", "max_length": "at most"}


class HelpRow(NamedTuple):
    """One line of the help table."""

    key: str
    """Dotted key, as a file or an override writes it; `[]` stands for each item of a list."""
    type: str
    """Type with its range or choices."""
    value: str
    """Value in the file, else the default; `required` where there is neither."""
    meaning: str
    """Help text of the field, or of the class at the head of its group."""


def explain(error: ValidationError, schema: type[BaseModel]) -> dict[str, str]:
    """Every fault in a validation error by its dotted key, in the words of config files.

    Args:
        error: what pydantic found.
        schema: the class that was validated.

    Returns:
        A dict of key to text; the key is empty for a rule about the whole file.
    """
    faults: dict[str, str] = {}
    for detail in error.errors(include_url=False):
        place = _place(schema, detail["loc"])
        key = f"{place.key}.kind" if detail["type"].startswith("union_tag") else place.key
        text = _fault(detail, place, schema)
        if key not in faults:
            faults[key] = text
        elif text not in faults[key]:
            # A plain union refuses a value once for each of its members.
            faults[key] = f"{faults[key]}; or {text}"
    return faults


class _Place(NamedTuple):
    key: str
    owner: type[BaseModel]
    annotation: Any


def _place(schema: type[BaseModel], location: tuple[int | str, ...]) -> _Place:
    """Dotted key of a pydantic location, the class whose field it is, and the field's type."""
    annotation: Any = schema
    key, owner = "", schema
    for part in location:
        classes = table_classes(annotation)
        if len(classes) > 1:
            # pydantic puts the union's tag here, which is no key of the file.
            annotation = next(table for table in classes if part in kinds(table))
        elif classes:
            owner = classes[0]
            key = f"{key}.{part}" if key else str(part)
            field = owner.model_fields.get(str(part))
            annotation = field.annotation if field is not None else None
        elif isinstance(part, int):
            key = f"{key}[{part}]"
            annotation = item_annotation(annotation, part)
        elif is_mapping(annotation):
            key = f"{key}.{part}"
            annotation = item_annotation(annotation)
    return _Place(key, owner, annotation)


def _fault(detail: ErrorDetails, place: _Place, schema: type[BaseModel]) -> str:
    value, context = detail["input"], detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            return "no such key" + _likely_key(place, schema)
        case "missing":
            return "missing, and it has no default"
        case "union_tag_not_found":
            return f"missing; one of {quoted(all_kinds(table_classes(place.annotation)))}"
        case "union_tag_invalid":
            return f"{show(value['kind'])} is not one of {context['expected_tags']}"
        case "literal_error":
            return f"{_short(value)} is not one of {context['expected'].replace(' or ', ', ')}"
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"input should be a table, not {_short(value)}"
        case "value_error" | "assertion_error":
            return str(context["error"])
        case "too_long" | "too_short":
            message = detail["msg"].replace(" after validation", "")
            return f"{message[0].lower()}{message[1:]}"
    message = detail["msg"].partition(", unable to parse")[0]
    return f"{message[0].lower()}{message[1:]}, not {_short(value)}{_spelling(detail)}"


def _short(value: Any) -> str:
    text = show(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _spelling(detail: ErrorDetails) -> str:
    """How to write a value that means the right thing in the wrong TOML type."""
    value = detail["input"]
    if detail["type"] == "string_type" and isinstance(value, int | float):
        return f'; write "{show(value)}" in quotes'
    if not isinstance(value, str):
        return ""
    try:
        match detail["type"]:
            case "int_type":
                return f"; write {int(value)}"
            case "float_type":
                return f"; write {float(value)}"
    except ValueError:
        return ""
    if detail["type"] == "bool_type" and value.lower() in ("true", "false"):
        return f"; write {value.lower()}"
    return ""


def _likely_key(place: _Place, schema: type[BaseModel]) -> str:
    owner, leaf = place.owner, place.key.rpartition(".")[2]
    known = list(_keys(schema))
    for path, table in known:
        if path == place.key and kinds(owner) and kinds(table):
            return f" for kind {quoted(kinds(owner))}; it belongs to {quoted(kinds(table))}"
    close = get_close_matches(leaf, owner.model_fields, n=1, cutoff=0.7)
    elsewhere = [path for path, _ in known if path.rpartition(".")[2] == leaf and path != place.key]
    for likely in (*close, *elsewhere):
        return f"; did you mean {likely!r}?"
    return f"; known here: {quoted(tuple(owner.model_fields))}"


def _keys(table: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in table.model_fields.items():
        yield prefix + name, table
        for inner in table_classes(field.annotation):
            yield from _keys(inner, f"{prefix}{name}.")


def describe_type(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Type in a user's words with its range, such as `float > 0, <= 1` or `adam|sgd or none`."""
    if get_origin(annotation) is Annotated:
        inner, *own = get_args(annotation)
        metadata = [*metadata, *(one for extra in own for one in _constraints(extra))]
        return describe_type(inner, metadata)
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [part for part in get_args(annotation) if part is not types.NoneType]
        tables = table_classes(annotation)
        if len(tables) > 1:
            words = ["|".join(all_kinds(tables))]
        else:
            words = [describe_type(part, metadata) for part in parts]
        if types.NoneType in get_args(annotation):
            words.append("none")
        return " or ".join(words)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        word = "|".join(choice if isinstance(choice, str) else show(choice) for choice in arguments)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        word = "table"
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        word = f"{{NAME = {describe_type(arguments[1])}}}"
    elif origin is tuple and arguments[-1] is not ...:
        word = "[" + ", ".join(describe_type(one) for one in arguments) + "]"
    elif isinstance(origin, type) and issubclass(origin, Sequence | Set):
        word = f"[{describe_type(arguments[0])}, ...]"
    else:
        word = getattr(annotation, "__name__", str(annotation)).lower()
    ranges = [
        f"{symbol} {_bound(getattr(one, name))}"
        for one in metadata
        for name, symbol in _SYMBOLS.items()
        if getattr(one, name, None) is not None
    ]
    lengths = [
        f"{symbol} {getattr(one, name)} long"
        for one in metadata
        for name, symbol in _LENGTHS.items()
        if getattr(one, name, None)
    ]
    limits = ", ".join([*ranges, *lengths])
    return f"{word} {limits}" if limits else word


def _bound(limit: int | float) -> str:
    return show(int(limit) if float(limit).is_integer() else limit)


def _constraints(extra: Any) -> Iterator[Any]:
    if isinstance(extra, FieldInfo):
        yield from extra.metadata
    elif isinstance(extra, annotated_types.GroupedMetadata):
        yield from extra
    else:
        yield extra


def help_rows(schema: type[BaseModel], config: BaseModel | None = None) -> list[HelpRow]:
    """Every key of a schema, nested tables and all classes of each union included.

    Args:
        schema: class of the file.
        config: a loaded file, whose values are shown; the defaults without one.

    Returns:
        Rows in the schema's order. Each class of a union is a group headed by its `kind`; the
        meaning of the chosen one's head begins with "Chosen".
    """
    return list(_table_rows(schema, config, ""))


def _table_rows(
    table: type[BaseModel], values: BaseModel | None, prefix: str, skip: str = ""
) -> Iterator[HelpRow]:
    for name, field in table.model_fields.items():
        if name == skip:
            continue
        key, default = prefix + name, default_of(field)
        value = default if values is None else getattr(values, name)
        classes = table_classes(field.annotation)
        yield HelpRow(
            key,
            describe_type(field.annotation, field.metadata),
            _cell(value, classes),
            _sentence(field.description),
        )
        inner, item = f"{key}.", item_annotation(field.annotation)
        if not classes and item is not None:
            classes, value, default = table_classes(item), None, None
            mapping = is_mapping(field.annotation)
            inner = f"{key}.NAME." if mapping else f"{key}[]."
        for one in classes:
            # A class that is not chosen shows what choosing it would give.
            shown = next((known for known in (value, default) if isinstance(known, one)), None)
            if len(classes) > 1:
                chosen = "Chosen. " if isinstance(value, one) else ""
                kind = getattr(value, "kind", "") if chosen else "|".join(kinds(one))
                head = chosen + _sentence(one.model_fields["kind"].description or one.__doc__)
                yield HelpRow(f"{inner}kind", "|".join(kinds(one)), kind, head.strip())
            yield from _table_rows(one, shown, inner, skip="kind" if len(classes) > 1 else "")


def _cell(value: Any, classes: tuple[type[BaseModel], ...]) -> str:
    if value is PydanticUndefined:
        return "required"
    if classes and value is not None:
        return str(getattr(value, "kind", "")) if len(classes) > 1 else ""
    return value if isinstance(value, str) else show(value)


def _sentence(text: str | None) -> str:
    return " ".join((text or "").partition("\n\n")[0].split())


def print_help(schema: type[BaseModel], config: BaseModel | None = None) -> None:
    """Print `help_rows` as a table, at least 100 columns wide, with every key whole.

    Args:
        schema: class of the file.
        config: a loaded file, whose values are shown.
    """
    rows = help_rows(schema, config)
    console = Console(highlight=False)
    # Piped output has no width of its own, and a narrow terminal would cut keys.
    console.width = max(console.width, 100)
    longest = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("key", no_wrap=True, min_width=longest[0])
    table.add_column("type", overflow="fold", min_width=min(longest[1], 18), max_width=24)
    table.add_column("value", overflow="fold", min_width=min(longest[2], 12), max_width=16)
    table.add_column("meaning", overflow="fold", min_width=20)
    for row in rows:
        style = "bold" if row.type == "table" or row.meaning.startswith("Chosen. ") else ""
        table.add_row(*(Text(cell) for cell in row), style=style)
    console.print(table)


def add_arguments(parser: argparse.ArgumentParser, schema: type[BaseModel]) -> None:
    """Give a parser one `--kebab-case` flag for each field of a flat schema.

    Flags that are not given leave no trace in the namespace, so that defaults live in the schema.
    """
    for name, field in schema.model_fields.items():
        assert not table_classes(field.annotation), f"{name} of {schema.__name__} is a table"
        default = default_of(field)
        required = default is PydanticUndefined
        kind = describe_type(field.annotation, field.metadata)
        note = f"({kind}, required)" if required else f"({kind}, default {_cell(default, ())})"
        settings: dict[str, Any] = {
            "dest": name,
            "default": argparse.SUPPRESS,
            "required": required,
            "help": f"{_sentence(field.description)} {note}".strip().replace("%", "%%"),
        }
        if bool in members(field.annotation):
            settings["action"] = argparse.BooleanOptionalAction
        else:
            settings["metavar"] = _metavar(field.annotation)
        if item_annotation(field.annotation) is not None:
            settings["nargs"] = "+"
        parser.add_argument(_flag(name), **settings)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _metavar(annotation: Any) -> str:
    item = item_annotation(annotation)
    word = members(annotation if item is None else item)[0]
    if get_origin(word) is Literal:
        return "{" + ",".join(str(choice) for choice in get_args(word)) + "}"
    return "TEXT" if word is str else word.__name__.upper()


def from_arguments(namespace: argparse.Namespace, schema: type[M]) -> M:
    """Build a flat config from the flags that `add_arguments` made.

    Raises:
        UserError: a value is out of its range or of the wrong type; one line for each flag.
    """
    given = {
        name: None if value == "none" and types.NoneType in members(field.annotation) else value
        for name, field in schema.model_fields.items()
        if (value := getattr(namespace, name, PydanticUndefined)) is not PydanticUndefined
    }
    try:
        return schema.model_validate(given)
    except ValidationError as error:
        faults = explain(error, schema).items()
        lines = [f"{_flag(key)}: {text}" if key else text for key, text in faults]
        raise UserError("\n".join(lines)) from None
