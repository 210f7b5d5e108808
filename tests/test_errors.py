"""Errors have stable names for programs and clear ones for people."""

import re

import pytest

from service import errors

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.ServiceError) and "code" in vars(kind)
]


def test_every_kind_of_error_has_its_own_code_and_title() -> None:
    assert len({kind.code for kind in KINDS}) == len({kind.title for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_snake_case(kind: type[errors.ServiceError]) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", kind.code)


def test_an_error_tells_what_was_wrong() -> None:
    error = errors.EngineUnavailable("The model is being loaded.", retry_after_s=2.5)
    assert error.detail == str(error) == "The model is being loaded."
    assert error.retry_after_s == 2.5
