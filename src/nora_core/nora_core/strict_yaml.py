"""Plain mappings (YAML, JSON) into frozen dataclasses, strictly (numpy layer)."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any, Literal, TypeVar

import yaml

T = TypeVar("T")


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"{key}: expected once, got it {keys.count(key)} times")
        return super().construct_mapping(node, deep)


def load_yaml(text: str) -> object:
    """Plain YAML. Raises `ValueError` for anything else, and for a repeated key."""
    try:
        return yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from error


def build(cls: type[T], data: object, where: str = "") -> T:
    """Turn a mapping into the dataclass `cls`; `where` is the dotted key that leads to it.

    Raises:
        ValueError: names the dotted key, what was expected and what was found.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{where or 'file'}: expected a mapping, got {_kind(data)}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    for key in data:
        if key not in fields:
            raise ValueError(f"{prefix}{key}: unknown key, expected one of {sorted(fields)}")
    for name, field in fields.items():
        if name not in data and field.default is dataclasses.MISSING:
            raise ValueError(f"{prefix}{name}: missing key, got only {sorted(map(str, data))}")
    values = {key: _convert(hints[key], value, prefix + key) for key, value in data.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None


def _convert(hint: Any, value: object, where: str) -> object:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        if value not in args or isinstance(value, bool):
            raise ValueError(f"{where}: expected one of {list(args)}, got {value!r}")
        return value
    if origin is tuple:
        return _convert_tuple(args, value, where)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type[object], hint), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where}: expected {hint.__name__}, got {_kind(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: expected a finite number, got {value}")
    return value


def _convert_tuple(args: tuple[Any, ...], value: object, where: str) -> tuple[object, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{where}: expected a list, got {_kind(value)}")
    if args[-1] is Ellipsis:
        args = (args[0],) * len(value)
    elif len(args) != len(value):
        raise ValueError(f"{where}: expected {len(args)} values, got {len(value)}")
    pairs = enumerate(zip(args, value, strict=True))
    return tuple(_convert(hint, item, f"{where}[{i}]") for i, (hint, item) in pairs)


def _kind(value: object) -> str:
    return f"{type(value).__name__} {value!r}"
