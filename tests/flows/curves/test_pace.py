"""How often something is shown."""

import pytest

from flows.curves.pace import Pace


@pytest.mark.parametrize(
    ("least", "most", "duration", "updates"),
    [
        (5.0, 60.0, 50, 10),  # every 5 s
        (5.0, 60.0, 240, 27),  # from then on after a tenth of the time so far; every 5 s it would be 48
        (5.0, 60.0, 3600, 85),  # after ten minutes every minute
        (2.0, 60.0, 240, 36),
        (90.0, 60.0, 450, 5),
    ],
)
def test_updates_become_rarer(
    monkeypatch: pytest.MonkeyPatch, least: float, most: float, duration: int, updates: int
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    pace = Pace(least, most)
    made = 0
    for _ in range(duration * 10):
        if pace.is_due():
            made += 1
            pace.updated()
        now += 0.1
    assert made == pytest.approx(updates, abs=1)
