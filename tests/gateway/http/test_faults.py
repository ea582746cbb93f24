"""Every fault has its words."""

import re

import pytest

from gateway.http._head import Fault
from gateway.http.faults import REFUSALS


def test_every_fault_is_in_the_table() -> None:
    assert list(REFUSALS) == list(Fault)
    assert len({refusal.code for refusal in REFUSALS.values()}) == len(REFUSALS)


@pytest.mark.parametrize("fault", Fault)
def test_words(fault: Fault) -> None:
    status, code, message = REFUSALS[fault]
    assert 400 <= status <= 599
    assert re.fullmatch(r"[a-z][a-z0-9_]+", code)
    assert re.fullmatch(r"[A-Z][ -~]+: [ -~]+\.", message), "what is wrong: what to do."


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault.TARGET_TOO_LONG, 414),
        (Fault.HEAD_TOO_LARGE, 431),
        (Fault.TOO_MANY_FIELDS, 431),
        (Fault.BAD_VERSION, 505),
        (Fault.BAD_TRANSFER_ENCODING, 501),
        (Fault.BAD_EXPECTATION, 417),
    ],
)
def test_statuses_other_than_400(fault: Fault, status: int) -> None:
    assert REFUSALS[fault].status == status
