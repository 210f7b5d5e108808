"""What goes over the link, byte by byte."""

import asyncio
import fcntl
import math
import os
import socket

import numpy as np
import pytest

from models.labels import Label
from service.outputs import Wants
from service.wire import SEALS, Answer, Channel, Kind, ModelCard, Order, Outcome, Pulse, Slab, State, decode_report

CARD = ModelCard("volo", "cpu", 5, 0.96, 2, 7, (Label("crane", "n1"), Label("crâne"), Label("cat", "n3")))


def test_a_card_arrives_as_it_was() -> None:
    assert ModelCard.decode(CARD.encode()) == CARD


def test_messages_arrive_as_they_were_and_are_small() -> None:
    order = Order(Kind.CANCEL, 7, 1.5, 2.5, Wants.EVIDENCE, background=True)
    assert Order.decode(order.encode()) == order
    for report in (Answer(Outcome.FAILED, 3, 8, 0.25, 0.5, 1.0), Pulse(State.AILING, 4, 0.25, 0.5, 2.0, 0.125)):
        assert decode_report(report.encode()) == report
        assert len(report.encode()) == Answer.FORMAT.size <= 32


def test_every_outcome_can_be_told_from_a_pulse() -> None:
    assert Pulse.MARK not in list(Outcome)


def test_both_ends_of_a_slab_see_the_same_memory_and_slots_do_not_overlap() -> None:
    mine = Slab.create(3, CARD)
    theirs = Slab(mine.fd, 3, CARD)
    assert theirs.outputs.features is not None
    assert theirs.outputs.evidence is not None
    for slot in range(3):
        mine.pixels[slot] = slot + 1
        theirs.outputs.logits[slot] = slot + 0.5
        theirs.outputs.features[slot] = slot + 0.25
        theirs.outputs.evidence.labels[slot] = slot
        theirs.outputs.evidence.maps[slot] = slot + 0.125
    for slot in range(3):
        outputs = mine.outputs.of(slot)
        assert outputs.features is not None
        assert outputs.evidence is not None
        assert (theirs.pixels[slot] == slot + 1).all()
        assert (outputs.logits == np.float32(slot + 0.5)).all()
        assert (outputs.features == np.float32(slot + 0.25)).all()
        assert (outputs.evidence.labels == slot).all()
        assert (outputs.evidence.maps == np.float32(slot + 0.125)).all()
    assert mine.pixels.shape == (3, 5, 5, 3)
    assert mine.outputs.logits.shape == (3, 3)
    assert mine.outputs.features is not None
    assert mine.outputs.evidence is not None
    assert mine.outputs.features.shape == (3, 7)
    assert mine.outputs.evidence.labels.shape == (3, 3)  # for as many labels as there are
    assert mine.outputs.evidence.maps.shape == (3, 3, 2, 2)
    assert mine.outputs.logits.ctypes.data % 64 == 0


def test_a_slab_takes_its_descriptor_along() -> None:
    slab = Slab.create(1, CARD)
    fd = slab.fd
    os.fstat(fd)
    del slab
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("time_s", [-1.0, math.nan, math.inf, 1e300])
def test_an_order_at_a_time_that_no_clock_shows_makes_no_sense(time_s: float) -> None:
    for order in (Order(Kind.SUBMIT, 0, time_s, 1.0), Order(Kind.SUBMIT, 0, 1.0, time_s)):
        with pytest.raises(ValueError, match="no clock"):
            Order.decode(order.encode())


def test_a_slab_that_is_too_small_is_refused() -> None:
    fd = os.memfd_create("small", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    with pytest.raises(ValueError, match="mmap length"):
        Slab(fd, 1000, CARD)
    os.close(fd)


def test_a_slab_cannot_be_made_smaller_and_one_that_could_be_is_refused() -> None:
    slab = Slab.create(2, CARD)
    with pytest.raises(PermissionError):
        os.ftruncate(slab.fd, 0)
    fd = os.memfd_create("unsealed")
    os.ftruncate(fd, 10**7)
    with pytest.raises(ValueError, match="not sealed"):
        Slab(fd, 2, CARD)
    os.close(fd)


async def test_messages_are_put_together_from_whatever_pieces_come(caplog: pytest.LogCaptureFixture) -> None:
    received: list[bytes] = []
    ours, theirs = socket.socketpair()
    channel = Channel(4, received.append)
    await asyncio.get_running_loop().create_unix_connection(lambda: channel, sock=ours)
    for piece in (b"ab", b"cdef", b"ghij", b"kl"):
        theirs.sendall(piece)
        await asyncio.sleep(0)
    theirs.close()
    await channel.closed
    assert received == [b"abcd", b"efgh", b"ijkl"]
    for _ in range(20):
        channel.send(b"into the void")
    assert caplog.records == []


async def test_what_is_sent_goes_out_before_the_end() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(4, print)
    await asyncio.get_running_loop().create_unix_connection(lambda: channel, sock=ours)
    channel.send(b"abcd")
    channel.send(b"efgh")
    await asyncio.sleep(0)
    assert theirs.recv(99) == b"abcdefgh"
    channel.send(b"ijkl")
    channel.close()
    await channel.closed
    assert [theirs.recv(99), theirs.recv(99)] == [b"ijkl", b""]
    theirs.close()


async def test_an_end_that_makes_no_sense_is_hung_up_on() -> None:
    ours, theirs = socket.socketpair()

    def decode(message: bytes) -> None:
        Order.decode(message)

    channel = Channel(Order.FORMAT.size, decode)
    await asyncio.get_running_loop().create_unix_connection(lambda: channel, sock=ours)
    theirs.sendall(b"\xff" * Order.FORMAT.size)
    await channel.closed
    theirs.close()
