"""The sender sends everything once and passes over no failure."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks.load import Send, Target, WrongAnswer, http_request, send_once_each

PORTIONS = [b"%d" % number for number in range(50)]


def test_every_portion_is_sent_once_and_the_warm_up_is_off_the_clock() -> None:
    received: list[bytes] = []

    @contextmanager
    def connect() -> Iterator[Send]:
        yield received.append

    sent = send_once_each(PORTIONS, connect, connections=4, warm_up=8)
    assert sent.requests == 42
    assert sorted(received) == sorted(PORTIONS)
    assert set(received[:8]) == set(PORTIONS[:8])


@pytest.mark.parametrize("where", [3, 30])
def test_one_wrong_answer_ends_it_all(where: int) -> None:
    def send(portion: bytes) -> None:
        if portion == b"%d" % where:
            raise WrongAnswer("503")

    @contextmanager
    def connect() -> Iterator[Send]:
        yield send

    with pytest.raises(WrongAnswer, match="503"):
        send_once_each(PORTIONS, connect, connections=4, warm_up=8)


def test_a_request_says_how_long_it_is() -> None:
    request = http_request(Target(80, "/write", {"X-API-Key": "k"}, 204), b"abc")
    assert request == b"POST /write HTTP/1.1\r\nHost: 127.0.0.1:80\r\nContent-Length: 3\r\nX-API-Key: k\r\n\r\nabc"
