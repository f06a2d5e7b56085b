"""How long to pause between attempts that fail."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to pause after failures in a row: `first` seconds, then twice as long each time, at most `longest`.

    For callers that cannot sleep until they succeed: threads, whose pause a stop signal or other work ends, and the
    client of the ingest API, whose pause the server may name. Any other call is retried by stamina.
    """

    first: float
    longest: float

    def pause(self, failures: int) -> float:
        """Return the seconds to pause after this many failures in a row (1 or more)."""
        doublings = min(failures - 1, 32)  # a larger power would overflow after a long outage
        return min(self.first * 2.0**doublings, self.longest)
