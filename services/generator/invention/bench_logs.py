"""How the log lines of benchmarks are invented: as those of `logs`."""

from services.generator.invention.logs import RULES

__all__ = ["RULES"]
