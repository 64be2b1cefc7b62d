"""The subscription router's rules, and the promises of all workers together, in any order of their frames."""

from collections import deque
from collections.abc import Coroutine, Generator, Sequence
from itertools import count
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.errors import TooManySubscribers
from app.ingest.result import CommittedReading
from app.live.bus import LocalSubscribers
from app.live.hub import Hub, Subscriber
from app.live.mailbox import later
from app.workers import messages
from app.workers.messages import Denied, ForwardingAck, Granted, Join, Leave, SetForwarding, Welcome
from app.workers.subscription_router import SubscriptionRouter
from tests.support.examples import examples
from tests.support.samples import receipt


def board(*workers: int, limit: int = 10) -> SubscriptionRouter:
    made = SubscriptionRouter(limit)
    for worker in workers:
        assert made.connect(worker) == [(worker, Welcome(forwarding=False))]
    return made


def test_a_place_is_granted_once_all_others_have_acknowledged_and_with_the_latest_of_all() -> None:
    switch = board(1, 2, 3)
    assert switch.join(1, 5, "API_KEY") == [
        (2, SetForwarding(forwarding=True, number=1)),
        (3, SetForwarding(forwarding=True, number=1)),
    ]
    assert switch.acknowledge(3, 1, receipt(9, time_us=1)) == []
    assert switch.acknowledge(2, 1, receipt(4, time_us=2)) == [(1, Granted(5, receipt(4, time_us=2)))]


def test_while_all_forward_already_a_place_is_granted_at_once() -> None:
    switch = board(1, 2)
    switch.join(1, 1, "API_KEY")
    switch.acknowledge(2, 1, None)
    switch.route(2, [receipt(3)])
    assert switch.join(1, 2, "API_KEY") == [(1, Granted(2, receipt(3)))]


def test_only_what_is_listened_to_elsewhere_is_wanted() -> None:
    switch = board(1, 2)
    assert switch.join(1, 1, "API_KEY") == [(2, SetForwarding(forwarding=True, number=1))]
    switch.acknowledge(2, 1, None)
    assert switch.route(2, [receipt(1)]) == [1]
    assert switch.route(1, [receipt(2)]) == []
    assert switch.join(2, 1, "API_KEY") == [(1, SetForwarding(forwarding=True, number=1))]
    assert switch.acknowledge(1, 1, None) == [(2, Granted(1, receipt(2)))]
    assert switch.leave(1, 1) == [(2, SetForwarding(forwarding=False, number=2))]
    assert switch.leave(2, 1) == [(1, SetForwarding(forwarding=False, number=2))]
    assert switch.route(1, [receipt(3)]) == switch.route(2, [receipt(4)]) == []


def test_a_late_acknowledgement_of_an_earlier_interest_does_not_count() -> None:
    switch = board(1, 2)
    switch.join(1, 1, "API_KEY")
    assert switch.leave(1, 1) == [(2, SetForwarding(forwarding=False, number=2))]
    assert switch.join(1, 2, "API_KEY") == [(2, SetForwarding(forwarding=True, number=3))]
    assert switch.acknowledge(2, 1, None) == []
    assert switch.acknowledge(2, 3, None) == [(1, Granted(2, None))]


def test_the_limit_holds_over_all_workers_and_a_worker_that_is_gone_holds_no_place() -> None:
    switch = board(1, 2, limit=2)
    switch.join(1, 1, "API_KEY")
    switch.acknowledge(2, 1, None)
    switch.join(2, 1, "API_KEY")
    assert switch.join(1, 2, "API_KEY") == [(1, Denied(2))]
    assert switch.join(2, 2, "API_KEY") == [(2, Denied(2))]
    assert switch.leave(1, 2) == []
    switch.disconnect(2)
    assert switch.join(1, 3, "API_KEY") == [(1, Granted(3, None))]
    assert switch.join(1, 4, "API_KEY") == [(1, Denied(4))]


def test_nobody_waits_for_a_worker_that_is_gone() -> None:
    switch = board(1, 2)
    switch.join(1, 1, "API_KEY")
    assert switch.disconnect(2) == [(1, Granted(1, None))]
    assert switch.disconnect(2) == []


def test_nothing_is_granted_to_a_worker_that_is_gone() -> None:
    switch = board(1, 2)
    switch.join(1, 1, "API_KEY")
    assert switch.disconnect(1) == [(2, SetForwarding(forwarding=False, number=2))]
    assert switch.acknowledge(2, 1, None) == []
    assert switch.join(2, 1, "API_KEY") == [(2, Granted(1, None))]


def test_a_worker_that_comes_while_somebody_listens_forwards_from_its_welcome_on() -> None:
    switch = board(1)
    switch.join(1, 1, "API_KEY")
    assert switch.connect(2) == [(2, Welcome(forwarding=True))]
    assert switch.join(1, 2, "API_KEY") == [(1, Granted(2, None))]


class JoinAnswer:
    """The answer that a subscriber waits for. Awaiting it suspends once, until the test resumes it."""

    refused = False
    given = False

    def __await__(self) -> Generator[None, None, None]:
        yield
        assert self.given
        if self.refused:
            raise TooManySubscribers(0)


class Worker:
    """A hub, and between it and the switchboard two queues in which frames wait as long as the test likes."""

    def __init__(self, star: "Star", number: int) -> None:
        self.star = star
        self.number = number
        self.forwarding = False
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.answers: dict[int, JoinAnswer] = {}
        self.slots = count(1)
        self.listeners: list[Listener] = []
        self.hub = Hub(bus=self, mailbox_messages=10_000, mailbox_bytes=10_000_000)

    def attach(self, local_subscribers: LocalSubscribers) -> None:
        """Note that it is known here."""

    async def join(self, _key_name: str) -> int:
        slot = next(self.slots)
        answer = self.answers[slot] = JoinAnswer()
        self.up.append(messages.encode_control(Join(slot, "API_KEY")))
        await answer
        return slot

    def leave(self, slot: int) -> None:
        self.up.append(messages.encode_control(Leave(slot)))

    def forward(self, receipts: Sequence[CommittedReading]) -> None:
        self.up.append(messages.encode_receipts(receipts))

    def hear(self) -> None:
        """Take the next frame from the parent."""
        match messages.decode(self.down.popleft()[messages.LENGTH_BYTES :]):
            case Welcome(forwarding):
                self.forwarding = forwarding
            case SetForwarding(forwarding, number):
                self.forwarding = forwarding
                if forwarding:
                    self.up.append(messages.encode_control(ForwardingAck(number, self.hub.latest)))
            case Granted(slot, latest):
                if latest is not None:
                    self.hub.remember(latest)
                self.answers[slot].given = True
            case Denied(slot):
                self.answers[slot].given = self.answers[slot].refused = True
            case list(receipts):
                self.hub.deliver(receipts)


class Listener:
    """A subscriber, from its wish to its end."""

    def __init__(self, worker: Worker, committed_before: CommittedReading | None, *, is_under_way: bool) -> None:
        self.worker = worker
        self.committed_before = committed_before
        self.is_under_way = is_under_way
        """Whether readings of other workers were on their way to the router when it came."""
        self.acknowledged: list[CommittedReading] = []
        self.subscriber: Subscriber | None = None
        self.since = 0
        self.until: int | None = None
        self.refused = False
        self.coroutine: Coroutine[Any, Any, Subscriber] = worker.hub.subscribe("API_KEY", lambda: None)
        self.coroutine.send(None)
        self.answer = worker.answers[max(worker.answers)]

    def resume(self, now: int) -> None:
        try:
            self.coroutine.send(None)
        except StopIteration as end:
            self.subscriber = end.value
            self.since = now
        except TooManySubscribers:
            self.refused = True


class Star:
    """Workers around a subscription router, whose messages move only when the test moves them."""

    def __init__(self, size: int, limit: int) -> None:
        self.switch = SubscriptionRouter(limit)
        self.limit = limit
        self.workers: dict[int, Worker] = {}
        self.listeners: list[Listener] = []
        self.committed: list[tuple[int, CommittedReading]] = []
        self.lost: set[int] = set()
        """Readings that were committed by a worker that died before it could tell."""
        for number in range(size):
            self.start(number)

    def start(self, number: int) -> None:
        worker = self.workers[number] = Worker(self, number)
        self.say(self.switch.connect(number))
        worker.hear()  # a worker commits nothing before its welcome
        if (latest := self.latest()) is not None:  # as the database has it
            worker.hub.remember(latest)
            self.switch.note_latest(latest)

    def kill(self, number: int, frames_out: int) -> None:
        """End a worker after a number of its frames have left, and replace it."""
        worker = self.workers[number]
        for _ in range(frames_out):
            self.carry(worker)
        for frame in worker.up:
            if isinstance(untold := messages.decode(frame[messages.LENGTH_BYTES :]), list):
                self.lost |= {each.id for each in untold}
        self.say(self.switch.disconnect(number))
        for listener in [each for each in self.listeners if each.worker is worker]:
            listener.coroutine.close()
            self.listeners.remove(listener)
        for listener in self.listeners:
            if listener.subscriber is None:  # known hole: it may begin with what is the latest without the dead one
                listener.committed_before = None
        self.start(number)

    def is_under_way(self, worker: Worker) -> bool:
        """Return whether other workers have sent readings that the router has not taken yet."""
        frames = [frame for other in self.workers.values() if other is not worker for frame in other.up]
        return any(isinstance(messages.decode(frame[messages.LENGTH_BYTES :]), list) for frame in frames)

    def say(self, orders: Sequence[tuple[int, messages.Control]]) -> None:
        for number, message in orders:
            self.workers[number].down.append(messages.encode_control(message))

    def carry(self, worker: Worker) -> None:
        """Let the router take the next frame of a worker."""
        match messages.decode(worker.up.popleft()[messages.LENGTH_BYTES :]):
            case Join(slot, key_name):
                self.say(self.switch.join(worker.number, slot, key_name))
            case Leave(slot):
                self.say(self.switch.leave(worker.number, slot))
            case ForwardingAck(number, latest):
                self.say(self.switch.acknowledge(worker.number, number, latest))
            case list(receipts):
                for listener in self.switch.route(worker.number, receipts):
                    self.workers[listener].down.append(messages.encode_receipts(receipts))

    def latest(self) -> CommittedReading | None:
        latest = None
        for _, each in self.committed:
            latest = each if latest is None else later(latest, each)
        return latest

    def on_result(self) -> None:
        """Let everything arrive."""
        while any(worker.up or worker.down for worker in self.workers.values()) or self.resumable():
            for worker in self.workers.values():
                while worker.up:
                    self.carry(worker)
                while worker.down:
                    worker.hear()
            for listener in self.resumable():
                listener.resume(len(self.committed))

    def resumable(self) -> list[Listener]:
        return [each for each in self.listeners if not each.refused and each.subscriber is None and each.answer.given]


ACTIONS = (
    "commit",
    "commit",
    "commit",
    "join",
    "join",
    "leave",
    "carry",
    "carry",
    "hear",
    "hear",
    "resume",
    "read",
    "kill",
)


@examples(300)
@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_whatever_overtakes_what_nothing_is_missed_nothing_comes_twice_and_the_limit_holds(
    size: int, limit: int, data: st.DataObject
) -> None:
    star = Star(size, limit)
    numbers = count(1)
    for action in data.draw(st.lists(st.sampled_from(ACTIONS), max_size=80)):
        worker = star.workers[data.draw(st.integers(0, size - 1))]
        listeners = [each for each in star.listeners if each.subscriber is not None and each.until is None]
        match action:
            case "commit":
                times = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=3))
                receipts = [receipt(next(numbers), time_us=time_us) for time_us in times]
                star.committed += [(worker.number, each) for each in receipts]
                worker.hub.publish(receipts)
            case "join":
                star.listeners.append(Listener(worker, star.latest(), is_under_way=star.is_under_way(worker)))
            case "carry" if worker.up:
                star.carry(worker)
            case "hear" if worker.down:
                worker.hear()
            case "resume" if resumable := star.resumable():
                data.draw(st.sampled_from(resumable)).resume(len(star.committed))
            case "kill":
                star.kill(worker.number, data.draw(st.integers(0, len(worker.up))))
            case "leave" if listeners:
                listener = data.draw(st.sampled_from(listeners))
                read(listener)
                listener.until = len(star.committed)
                assert listener.subscriber is not None
                listener.worker.hub.unsubscribe(listener.subscriber)
            case "read" if listeners:
                read(data.draw(st.sampled_from(listeners)))
        assert sum(each.subscriber is not None and each.until is None for each in star.listeners) <= limit
    star.on_result()
    for listener in star.listeners:
        check(listener, star)
    if all(each.until is not None or each.refused for each in star.listeners):
        assert not any(worker.forwarding for worker in star.workers.values())


def read(listener: Listener) -> None:
    assert listener.subscriber is not None
    listener.acknowledged += listener.subscriber.take()


def check(listener: Listener, star: Star) -> None:
    """Check all promises to one subscriber, once everything has arrived."""
    committed = [(worker, each) for worker, each in star.committed if each.id not in star.lost]
    later_ones = {each.id for _, each in star.committed[listener.since : listener.until]} - star.lost
    assert listener.refused or listener.subscriber is not None
    if listener.subscriber is None:
        return
    if listener.until is None:
        read(listener)
    acknowledged = [each.id for each in listener.acknowledged]
    assert len(acknowledged) == len(set(acknowledged)), "something came twice"
    if listener.until is None:
        assert later_ones <= set(acknowledged), "something was missed"
    if listener.committed_before is not None:
        assert acknowledged, "there was a latest reading"
        # The latest comes first. If it was under way when the subscriber came, it comes soon after, unless it was lost.
        can_be_late = listener.is_under_way and (
            listener.until is not None or listener.committed_before.id in star.lost
        )
        soon = listener.acknowledged if listener.is_under_way else listener.acknowledged[:1]
        has_latest = any(later(listener.committed_before, each) == each for each in soon)
        assert has_latest or can_be_late, "that was not the latest"
    for number in {worker for worker, _ in committed}:
        of_worker = [each.id for worker, each in committed if worker == number]
        got = [id_ for id_ in acknowledged[1:] if id_ in of_worker]
        assert got == [id_ for id_ in of_worker if got and got[0] <= id_ <= got[-1] and id_ != acknowledged[0]], "a gap"


def test_latest_gives_way_when_ahead() -> None:
    """A reading that was stored while a clock was a year ahead is not the latest for a year."""
    switch = SubscriptionRouter(1, lambda: 1_000)
    for reading_id, time_us, latest_id in ((1, 5_000, 1), (2, 10, 2), (3, 7_000, 2)):
        switch.note_latest(receipt(reading_id, time_us=time_us))
        assert switch.latest is not None
        assert switch.latest.id == latest_id
