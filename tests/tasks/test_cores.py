from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from tasks.cores import in_order


def test_results_keep_their_order_and_no_more_is_asked_for_than_said() -> None:
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
