"""Who is open: at most two candidates at a time, each of which remembers why it broke down."""

from __future__ import annotations

from collections.abc import Sequence

from resnet_onnx.bench.clock import Turn
from resnet_onnx.bench.paired import Contender, ContenderFailed
from resnet_onnx.optimization.candidate import Candidate, Track


class Entrant:
    """An open candidate.

    Attributes:
        failed: Why it broke down, or "".
    """

    def __init__(self, contender: Contender) -> None:
        self._contender = contender
        self.failed = ""

    def turn(self) -> Turn:
        """Runs for one turn; raises ``ContenderFailed``."""
        try:
            return self._contender.turn()
        except ContenderFailed as error:
            self.failed = str(error.__cause__ or error) or "it broke down"
            raise


class Paddock:
    """Who is open: at most two."""

    def __init__(self, track: Track) -> None:
        self._track = track
        self._open: dict[Candidate, Entrant] = {}

    def hold(self, candidate: Candidate, *beside: Candidate) -> tuple[Entrant, float]:
        """Returns a candidate, open, and how long that took; closes all but it and those `beside`.

        Raises:
            CandidateFailed: It can't be opened.
        """
        self.close(keep=(candidate, *beside))
        if candidate in self._open:
            return self._open[candidate], 0.0
        before = self._track.now()
        self._open[candidate] = Entrant(self._track.open(candidate))
        return self._open[candidate], self._track.now() - before

    def close(self, *, keep: Sequence[Candidate] = ()) -> None:
        """Closes all but some."""
        for candidate in [one for one in self._open if one not in keep]:
            del self._open[candidate]
            self._track.close(candidate)
