import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks.common.cores import in_order, in_threads


def test_results_keep_their_order_and_few_jobs_are_submitted_ahead() -> None:
    asked: list[int] = []

    def jobs() -> Iterator[int]:
        for job in range(20):
            asked.append(job)
            yield job

    with ThreadPoolExecutor(4) as pool:
        for done, result in enumerate(in_order(pool, lambda job: job * job, jobs(), ahead=3), start=1):
            assert result == (done - 1) ** 2
            assert len(asked) <= done + 3
    assert done == 20


def test_jobs_are_generated_in_this_thread_and_run_in_others() -> None:
    makers = set()

    def jobs() -> Iterator[int]:
        for job in range(20):
            makers.add(threading.get_ident())
            yield job

    results = list(in_threads(lambda job: (job, threading.get_ident()), jobs(), at_a_time=3))
    assert [job for job, _ in results] == list(range(20))
    assert makers == {threading.get_ident()}
    assert threading.get_ident() not in {thread for _, thread in results}


def test_exceptions_of_jobs_and_threads_are_raised_here() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda job: 1 // job, iter([1, 0, 2]), at_a_time=2))
    with pytest.raises(ZeroDivisionError):
        list(in_threads(abs, (1 // job for job in (1, 0, 2)), at_a_time=2))
