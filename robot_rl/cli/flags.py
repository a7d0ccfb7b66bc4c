"""Typed configuration dataclasses as command line flags.

A field's type decides how its flag is read, its default and ``metadata["help"]`` what ``--help``
says; ``metadata["flag"]`` renames it.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal, NoReturn, TypeVar, Union

from robot_rl.errors import InvalidInputError
from robot_rl.training.setup import CAMERA_HELP, RIG_HELP

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line and exit code 2, raised as InvalidInputError."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise InvalidInputError(f"{message} (see {self.prog} --help)")


def add_flags(
    parser: argparse.ArgumentParser,
    config: type[Any],
    *,
    title: str,
    skip: Iterable[str] = (),
    prefix: str = "",
) -> None:
    """A group of flags, one for each field of a dataclass; unset ones stay out of the result."""
    group = parser.add_argument_group(title)
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        if field.name in skip:
            continue
        flag = field.metadata.get("flag", "--" + prefix + field.name.replace("_", "-"))
        default = field.default
        if default is dataclasses.MISSING:
            default = field.default_factory() if callable(field.default_factory) else None
        help_text = field.metadata.get("help", "")
        shown = _show(default)
        group.add_argument(
            flag,
            dest=_dest(prefix, field.name),
            default=argparse.SUPPRESS,
            help=f"{help_text} (default: {shown})".replace("%", "%%"),
            **{**_reader(hints[field.name]),
               **({"metavar": field.metadata["metavar"]} if "metavar" in field.metadata else {})},
        )


def read_flags(
    args: argparse.Namespace, config: type[Any], *, prefix: str = ""
) -> dict[str, Any]:
    """The fields of ``config`` that were given on the command line."""
    given = vars(args)
    return {
        field.name: given[_dest(prefix, field.name)]
        for field in dataclasses.fields(config)
        if _dest(prefix, field.name) in given
    }


def add_rig_flags(parser: argparse.ArgumentParser) -> None:
    """``--rig KEY=VALUE`` and ``--camera NAME=SOURCE``, each as often as wanted: how hardware is
    reached. See :func:`rig_options` and :func:`camera_sources`."""
    group = parser.add_argument_group("hardware")
    for name, help_text in (("rig", RIG_HELP), ("camera", CAMERA_HELP)):
        group.add_argument(f"--{name}", default={}, help=help_text, **_WORDS[name])


def rig_options(args: argparse.Namespace) -> dict[str, str]:
    """What ``--rig`` gave, by key."""
    return dict(getattr(args, "rig", {}))


def camera_sources(args: argparse.Namespace) -> dict[str, str]:
    """What ``--camera`` gave: sources by the camera's name."""
    return dict(getattr(args, "camera", {}))


def _dest(prefix: str, name: str) -> str:
    return (prefix + name).replace("-", "_") if prefix else name


def _show(default: Any) -> str:
    if default in ("", None, {}, ()):
        return "none"
    if isinstance(default, (tuple, list)):
        return " ".join(str(v) for v in default)
    return str(default)


def _reader(hint: Any) -> dict[str, Any]:
    """How argparse reads a value of this type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        inner = [a for a in arguments if a is not type(None)]
        reader = _reader(inner[0])
        if "type" in reader and "nargs" not in reader:
            reader["type"] = _or_none(reader["type"])
        return reader
    if origin is Literal:
        return {"choices": list(arguments), "metavar": "|".join(str(a) for a in arguments)}
    if origin is tuple:
        return {"nargs": "+", "type": arguments[0], "metavar": arguments[0].__name__.upper()}
    if origin is dict:
        if arguments[1] is str:
            return {"nargs": "+", "action": _Words, "metavar": "NAME=VALUE"}
        return {"nargs": "+", "action": _Pairs, "metavar": "NAME=VALUE"}
    if hint is bool:
        return {"type": _boolean, "metavar": "true|false"}
    return {"type": hint, "metavar": {str: "TEXT", int: "N", float: "X"}.get(hint, "VALUE")}


def _or_none(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def reader(text: str) -> Any:
        return None if text.lower() == "none" else read(text)

    reader.__name__ = getattr(read, "__name__", "value")
    return reader


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "yes", "1", "on"):
        return True
    if text.lower() in ("false", "no", "0", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


class _Pairs(argparse.Action):
    """Reads ``name=number`` words to a dict."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        pairs = {}
        for word in values:
            name, _, number = word.partition("=")
            try:
                pairs[name] = float(number)
            except ValueError:
                parser.error(f"{option_string}: {word!r} should be name=number")
        setattr(namespace, self.dest, pairs)


class _Words(argparse.Action):
    """Reads ``name=text`` words to a dict; the flag may come several times."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        found = dict(getattr(namespace, self.dest, None) or {})
        for word in values:
            name, equals, value = word.partition("=")
            if not (equals and value and re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name)):
                raise InvalidInputError(
                    f"{option_string} {word!r} should be {self.metavar}, the first a word of "
                    "letters, digits and _"
                )
            if name in found:
                raise InvalidInputError(f"{option_string}: {name!r} is given twice")
            found[name] = value
        setattr(namespace, self.dest, found)


_WORDS: dict[str, dict[str, Any]] = {
    "rig": {"nargs": "+", "action": _Words, "metavar": "KEY=VALUE"},
    "camera": {"nargs": "+", "action": _Words, "metavar": "NAME=SOURCE"},
}
