"""Levels: the pipeline's four, and what other systems write for them."""

LEVELS = {
    "ERROR": [
        "error",
        "err",
        "e",
        "fatal",
        "f",
        "severe",
        "critical",
        "crit",
        "c",
        "alert",
        "emergency",
        "emerg",
        "panic",
    ],
    "WARN": ["warn", "warning", "w"],
    "INFO": ["info", "i", "information", "informational", "notice", "n", "audit", "config"],
    "DEBUG": [
        "debug",
        "d",
        "trace",
        "t",
        "verbose",
        "v",
        "fine",
        "finer",
        "finest",
        *(f"trace{n}" for n in range(1, 9)),
    ],
}
"""The pipeline's levels, and the words other systems use for each, in lower case."""

_WORDS = {word: level for level, words in LEVELS.items() for word in words}


def standard_level(word: str) -> str:
    """Return the pipeline's name of a level; of an unknown word, that in capitals."""
    return _WORDS.get(word.lower()) or word.upper()


def status_level(status: str) -> str:
    return {"5": "ERROR", "4": "WARN"}.get(status[0], "INFO")


def severity_level(pri: str) -> str:
    """PRI of syslog is facility * 8 + severity."""
    return ("ERROR", "ERROR", "ERROR", "ERROR", "WARN", "INFO", "INFO", "DEBUG")[int(pri) % 8]
