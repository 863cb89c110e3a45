"""Trees of TOML values beside the pydantic schema that they must fit."""

import math
import types
from collections.abc import Mapping, Sequence, Set
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def members(annotation: Any) -> tuple[Any, ...]:
    """Types a value may have: unions and `Annotated` flattened."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return tuple(one for part in get_args(annotation) for one in members(part))
    return (annotation,)


def item_annotation(annotation: Any, index: int = 0) -> Any:
    """Annotation of item `index` of a list or tuple, or of a mapping's values; else None."""
    for member in members(annotation):
        origin, arguments = get_origin(member), get_args(member)
        if not isinstance(origin, type) or not arguments:
            continue
        if issubclass(origin, Mapping):
            return arguments[1]
        if issubclass(origin, tuple):
            return arguments[0 if arguments[-1] is ... else min(index, len(arguments) - 1)]
        if issubclass(origin, Sequence | Set):
            return arguments[0]
    return None


def table_classes(annotation: Any) -> tuple[type[BaseModel], ...]:
    """Classes a table of this annotation may have; several make a union chosen by `kind`."""
    return tuple(
        member
        for member in members(annotation)
        if isinstance(member, type) and issubclass(member, BaseModel)
    )


def kinds(table: type[BaseModel]) -> tuple[str, ...]:
    """Values of `kind` that choose this class; empty for a class that has no `kind`."""
    field = table.model_fields.get("kind")
    return tuple(get_args(field.annotation)) if field is not None else ()


def all_kinds(classes: Sequence[type[BaseModel]]) -> tuple[str, ...]:
    """Every `kind` of a union."""
    return tuple(kind for table in classes for kind in kinds(table))


def is_mapping(annotation: Any) -> bool:
    """Whether a value may be a table with free names."""
    return any(get_origin(member) in (dict, Mapping) for member in members(annotation))


def default_of(field: FieldInfo) -> Any:
    """Default of a field, `PydanticUndefined` if it is required."""
    return field.get_default(call_default_factory=True)


def show(value: Any) -> str:
    """Value as one line in TOML's words; `none` for None, which TOML cannot write."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, BaseModel):
        return show(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {show(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple | Set):
        return "[" + ", ".join(show(one) for one in value) + "]"
    return repr(value) if isinstance(value, str | int | float) else repr(str(value))


def quoted(names: Sequence[str]) -> str:
    """Names in quotes with commas between."""
    return ", ".join(repr(name) for name in names)


def table_of(annotation: Any, tree: Mapping[str, Any]) -> type[BaseModel] | None:
    """Class that a table's `kind` chooses; None if it chooses none.

    A table without `kind` has its class only where there is one to choose from.
    """
    classes = table_classes(annotation)
    if "kind" not in tree:
        return classes[0] if len(classes) == 1 else None
    return next((one for one in classes if tree["kind"] in (kinds(one) or [tree["kind"]])), None)


def merge(
    below: Mapping[str, Any], above: Mapping[str, Any], annotation: Any = None
) -> dict[str, Any]:
    """Lay one tree over another, table by table.

    A table whose `kind` changes starts afresh, so that no key of the old class lingers.

    Args:
        below: the tree that gives way.
        above: the tree that holds.
        annotation: schema of both, if known; then a table whose old and new `kind` choose the same
            class keeps its keys.
    """
    if "kind" in below and "kind" in above and below["kind"] != above["kind"]:
        table = table_of(annotation, above)
        if table is None or table is not table_of(annotation, below):
            below = {}
    merged = {**below, **above}
    table = table_of(annotation, merged)
    for key, value in above.items():
        if not isinstance(value, Mapping):
            continue
        field = table.model_fields.get(key) if table is not None else None
        inner = field.annotation if field is not None else item_annotation(annotation)
        under = below.get(key)
        merged[key] = merge(under if isinstance(under, Mapping) else {}, value, inner)
    return merged


def fill(annotation: Any, value: Any, default: Any = None) -> Any:
    """Lay the tables of a tree over their default instances, and turn "none" into None."""
    if value == "none" and types.NoneType in members(annotation):
        return None
    if isinstance(value, list):
        return [fill(item_annotation(annotation, i), one) for i, one in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    if not table_classes(annotation):
        return {key: fill(item_annotation(annotation), one) for key, one in value.items()}
    if isinstance(default, BaseModel):
        value = merge(_stated(default), value, annotation)
    table = table_of(annotation, value)
    if table is None:
        return value
    filled = dict(value)
    for name, field in table.model_fields.items():
        below = default_of(field)
        if name in filled:
            filled[name] = fill(field.annotation, filled[name], below)
        elif isinstance(below, BaseModel):
            filled[name] = fill(field.annotation, {}, below)
    return filled


def _stated(config: BaseModel) -> dict[str, Any]:
    """What a default instance says beyond the defaults of its class, and every `kind`."""
    plain = config.model_dump(mode="json")
    tree: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            tree[name] = _stated(value)
        elif name == "kind" or name in config.model_fields_set:
            tree[name] = plain[name]
    return tree


def nan_keys(tree: Any, key: str = "") -> list[str]:
    """Dotted keys of a tree whose value is nan."""
    if isinstance(tree, Mapping):
        inner = [(f"{key}.{name}" if key else name, one) for name, one in tree.items()]
    elif isinstance(tree, list):
        inner = [(f"{key}[{i}]", one) for i, one in enumerate(tree)]
    else:
        return [key] if isinstance(tree, float) and math.isnan(tree) else []
    return [found for name, one in inner for found in nan_keys(one, name)]
