"""The folder of one run."""

import gzip
import hashlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import msgspec

from services.bench.evidence.histograms import Histogram
from services.bench.evidence.records import FORMAT, About, Event, Tables, Trial
from services.core.errors import Invalid

_HISTOGRAMS = {"reads": ("response", "store"), "writes": ("response",)}  # columns, by table


class Evidence:
    """Open evidence. One process writes it at a time."""

    def __init__(self, folder: Path, about: About, plan: str, journal: list[Event]) -> None:
        """Called by `create` and `open`."""
        self.folder = folder
        self.about = about
        self.plan = plan
        self.journal = journal

    @classmethod
    def create(cls, folder: Path, about: About, plan: str) -> Self:
        """Make the folder. Raises Invalid if it has something in it."""
        if folder.exists() and any(folder.iterdir()):
            raise Invalid(f"{folder} is not empty: name another folder by --into")
        for each in (folder, folder / "trials", folder / "samples"):
            each.mkdir(parents=True, exist_ok=True)
        _write(folder / "plan.yaml", plan.encode())
        _write(folder / "run.json", msgspec.json.format(msgspec.json.encode(about)) + b"\n")
        made = cls(folder, about, plan, [])
        made.note("started")
        return made

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read what a run has left. Raises Invalid."""
        try:
            about = msgspec.json.decode((folder / "run.json").read_bytes(), type=About)
            lines = (folder / "journal.ndjson").read_bytes().split(b"\n")
            journal = [msgspec.json.decode(line, type=Event) for line in lines[:-1]]
            plan = (folder / "plan.yaml").read_text()
        except (OSError, msgspec.MsgspecError) as error:
            raise Invalid(f"{folder} is no evidence of `logpipe bench run`: {error}") from error
        if about.format != FORMAT:
            raise Invalid(f"{folder} has format {about.format}; this release reads format {FORMAT}")
        if lines[-1]:  # a line that the end of the process has cut off; its trial does not count
            (folder / "journal.ndjson").write_bytes(b"".join(line + b"\n" for line in lines[:-1]))
        return cls(folder, about, plan, journal)

    def note(self, event: str, text: str = "") -> None:
        self._append(Event(_now(), event, text))

    def add(self, trial: Trial, tables: Tables) -> None:
        """Keep a trial. Its histograms are made from its samples. Blocks until all is on disk."""
        made = {
            f"{table}.{column}": Histogram(tables[table][column]).encoded()
            for table, columns in _HISTOGRAMS.items()
            for column in columns
            if table in tables
        }
        whole = msgspec.structs.replace(trial, histograms=made)
        contents = {
            _samples(trial.number): gzip.compress(msgspec.json.encode(tables), mtime=0),
            _trial(trial.number): msgspec.json.format(msgspec.json.encode(whole)) + b"\n",
        }
        for name, content in contents.items():
            _write(self.folder / name, content)
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        self._append(Event(_now(), "trial", "", trial.cell.key, trial.repeat, trial.number, hashes))

    def trials(self) -> Iterator[Trial]:
        for event in self._trial_events():
            yield msgspec.json.decode((self.folder / _trial(event.number)).read_bytes(), type=Trial)

    def tables(self, trial: Trial) -> Tables:
        """Return the samples of a trial."""
        content = gzip.decompress((self.folder / _samples(trial.number)).read_bytes())
        return msgspec.json.decode(content, type=Tables)

    def measured(self) -> set[tuple[str, int]]:
        """Return the key of the cell and the repeat of each trial that is kept."""
        return {(event.cell, event.repeat) for event in self._trial_events()}

    def next_number(self) -> int:
        return 1 + max((event.number for event in self._trial_events()), default=0)

    def damage(self) -> list[str]:
        """Return which files are missing or altered, and which histograms are not those of the samples."""
        found = []
        for event in self._trial_events():
            for name, expected in event.hashes.items():
                file = self.folder / name
                if not file.exists():
                    found.append(f"{name} is missing")
                elif hashlib.sha256(file.read_bytes()).hexdigest() != expected:
                    found.append(f"{name} was altered after it was written")
        if found:
            return found
        for trial in self.trials():
            tables = self.tables(trial)
            for name, text in trial.histograms.items():
                table, _, column = name.partition(".")
                if not Histogram.decoded(text).equals(Histogram(tables[table][column])):
                    found.append(f"{_trial(trial.number)}: {name} is not the histogram of its samples")
        return found

    def _trial_events(self) -> list[Event]:
        return [event for event in self.journal if event.event == "trial"]

    def _append(self, event: Event) -> None:
        with (self.folder / "journal.ndjson").open("ab") as file:
            file.write(msgspec.json.encode(event) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.journal.append(event)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _trial(number: int) -> str:
    return f"trials/{number:04}.json"


def _samples(number: int) -> str:
    return f"samples/{number:04}.json.gz"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
