"""Attributes that are worked out when they are first asked for."""

import threading

from vecstore.lazy import keep, lazy


def test_the_value_is_kept() -> None:
    class Counter:
        calls = 0

        @lazy
        def value(self) -> int:
            """The number of calls."""
            self.calls += 1
            return self.calls

    counter = Counter()

    assert [counter.value, counter.value, Counter().value] == [1, 1, 1]
    assert Counter.value.__doc__ == "The number of calls."


def test_no_thread_waits_for_another_that_is_at_work() -> None:
    together = threading.Barrier(2, timeout=10)

    class Meeting:
        @lazy
        def place(self) -> int:
            return together.wait()

    meetings = [Meeting(), Meeting()]
    threads = [threading.Thread(target=lambda one=one: one.place) for one in meetings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(meeting.place for meeting in meetings) == [0, 1]


def test_the_oldest_of_what_is_kept_goes_first():
    known: dict[int, int] = {}
    for number in range(9):
        assert keep(known, number, 10 * number, 6) == 10 * number
        # All are kept until there are too many.
        assert list(known) == list(range(number + 1))[-6:]

    assert keep(known, 8, 5, 6) == 80
