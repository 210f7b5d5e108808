"""Errors become answers in one form."""

import json

import pytest
from test_errors import KINDS

from service import errors
from service.accounting import Record
from service.problems import STATUS, Problem, problem


def test_every_error_has_its_status() -> None:
    assert set(STATUS) == set(KINDS)
    assert all(400 <= status < 600 for status in STATUS.values())


def test_an_error_is_told_in_the_form_of_rfc_9457_and_counted() -> None:
    record = Record("mine")
    answer = problem(record, errors.NotAnImage("It is text."))
    assert (answer.status_code, answer.media_type, record.outcome) == (415, "application/problem+json", "not_an_image")
    assert json.loads(bytes(answer.body)) == {
        "type": "urn:volo:problem:not_an_image",
        "title": "The data is not a picture",
        "status": 415,
        "detail": "It is text.",
        "code": "not_an_image",
        "request_id": "mine",
    }


@pytest.mark.parametrize(("wait_s", "header"), [(0.0, "1"), (1.0, "1"), (2.1, "3")])
@pytest.mark.parametrize("kind", [errors.Overloaded, errors.EngineUnavailable])
def test_what_may_be_tried_again_says_when_in_whole_seconds(
    kind: type[errors.RetryableError], wait_s: float, header: str
) -> None:
    assert problem(Record("mine"), kind("Not now.", wait_s)).headers["retry-after"] == header


def test_problems_have_all_that_is_documented() -> None:
    told = json.loads(bytes(problem(Record("mine"), errors.EmptyBody("Nothing.")).body))
    assert told.keys() == Problem.model_fields.keys()
