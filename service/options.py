"""Settings as options of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr, ValidationError

from service.settings import Settings
from service.terminal import USAGE, fail

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def add_settings(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Options for settings; what is not given is left to the environment, and secrets always: `ps` shows options."""
    metavars: dict[Any, str] = {int: "N", float: "N"}
    group = parser.add_argument_group(
        "settings", "Each can be set in the environment too: --max-batch as VOLO_MAX_BATCH."
    )
    for name in names:
        field = Settings.model_fields[name]
        if field.annotation is SecretStr:
            continue
        default = "" if field.default is None else f" ({field.default})"
        group.add_argument(
            option(name),
            dest=name,
            metavar="SECONDS" if name.endswith("_s") else metavars.get(field.annotation, name.upper()),
            help=f"{field.description}{default}".replace("%", "%%"),
        )


def given_settings(arguments: argparse.Namespace) -> dict[str, str]:
    """The settings that were given on the command line, as they were typed."""
    return {name: value for name in Settings.model_fields if (value := getattr(arguments, name, None)) is not None}


def read_settings(arguments: argparse.Namespace) -> Settings:
    """The settings, of which those on the command line come first; a bad one ends the command."""
    given: dict[str, Any] = dict(given_settings(arguments))
    try:
        return Settings(**given)
    except (ValidationError, UnicodeDecodeError) as error:
        fail("\nvolo: ".join(faults(error)), USAGE)


def faults(error: ValidationError | UnicodeDecodeError) -> list[str]:
    """What is wrong with settings, each with the names it goes by."""
    if isinstance(error, UnicodeDecodeError):
        return [f".env is not UTF-8: byte {error.start} is {error.object[error.start]:#x}"]
    return list(map(_fault, error.errors()))


def option(name: str) -> str:
    """The option for a setting."""
    return f"--{name.replace('_', '-')}"


def positive(text: str) -> int:
    """A whole number from 1 on."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def _fault(details: ErrorDetails) -> str:
    message = details["msg"].removeprefix("Value error, ")
    if not details["loc"]:
        return message
    name = str(details["loc"][0])
    if Settings.model_fields[name].annotation is SecretStr:
        return f"VOLO_{name.upper()}: {message}"
    return f"VOLO_{name.upper()} / {option(name)}: {message} (got {details['input']!r})"
