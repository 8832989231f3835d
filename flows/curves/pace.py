"""Limits how often the progress of something is shown."""

import time


class Pace:
    """When the next update is due: soon at first, less often later.

    What has taken an hour does not look different a few seconds later, and each update is a request.
    """

    #: The part of the time so far that passes until the next update.
    SHARE = 0.1

    def __init__(self, least: float, most: float = 60.0) -> None:
        """Start it. At least `least` seconds lie between two updates, and at most `most`."""
        self._least, self._most = least, max(least, most)
        self._began = time.monotonic()
        self._due = self._began

    def is_due(self) -> bool:
        return time.monotonic() >= self._due

    def updated(self) -> None:
        """Record that an update was made or attempted."""
        now = time.monotonic()
        self._due = now + min(self._most, max(self._least, (now - self._began) * self.SHARE))
