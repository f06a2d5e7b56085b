"""Lets PostgreSQL shut down. Its smart shutdown waits for every session to end, while it refuses new ones.

A thread opens a session every few seconds as long as this process has sessions open. When the server refuses that
session because it is shutting down, the thread closes this process's idle sessions. A session that is in use is closed
in a later turn, once it is idle. The next use of a closed session raises an error, and the user connects again.
"""

import socket
import struct
import threading
from collections import defaultdict
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg.pq import TransactionStatus

from services.runtime.workers import Worker

_TURN_SECONDS = 2.0
_TIMEOUT_SECONDS = 5
_PROTOCOL = 3 << 16
_CANNOT_CONNECT_NOW = b"\0C57P03\0"  # the field of an ErrorResponse that has the SQLSTATE

Session = psycopg.Connection[Any]


class Sessions:
    """The open sessions of this process, and the thread that watches their servers. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._urls: WeakKeyDictionary[Session, str] = WeakKeyDictionary()
        self._worker: Worker | None = None

    def add(self, session: Session, url: str) -> None:
        """`url` opens another session on the same server."""
        with self._lock:
            self._urls[session] = url
            if self._worker is None:
                self._worker = Worker("postgres-shutdown", self._watch, delay=_TURN_SECONDS)
                self._worker.start()  # it ends with the process

    def _watch(self) -> float:
        for url, sessions in self._open().items():
            if _refuses(url, sessions[0]):
                for session in sessions:
                    _close_if_idle(session)
        return _TURN_SECONDS

    def _open(self) -> dict[str, list[Session]]:
        found = defaultdict(list)
        with self._lock:
            for session, url in self._urls.items():
                if not session.closed:
                    found[url].append(session)
        return found


def _refuses(url: str, session: Session) -> bool:
    try:
        psycopg.connect(url, connect_timeout=_TIMEOUT_SECONDS, application_name="logpipe-watch").close()
    except psycopg.Error:
        with suppress(psycopg.Error, OSError):  # the session has ended meanwhile, or the server is out of reach
            return _is_shutting_down(session)
    return False


def _is_shutting_down(session: Session) -> bool:
    """libpq does not tell the SQLSTATE of a refused connection, so the server's first message is read here."""
    info = session.info
    named = ("user", info.user, "database", info.dbname)
    body = struct.pack("!i", _PROTOCOL) + b"".join(f"{word}\0".encode() for word in named) + b"\0"
    with _connected(info) as server:
        server.sendall(struct.pack("!i", len(body) + 4) + body)
        reply = server.recv(4096)
    return reply[:1] == b"E" and _CANNOT_CONNECT_NOW in reply


def _connected(info: psycopg.ConnectionInfo) -> socket.socket:
    if info.host.startswith("/"):
        server = socket.socket(socket.AF_UNIX)
        server.settimeout(_TIMEOUT_SECONDS)
        server.connect(f"{info.host}/.s.PGSQL.{info.port}")
        return server
    return socket.create_connection((info.hostaddr or info.host, info.port), _TIMEOUT_SECONDS)


def _close_if_idle(session: Session) -> None:
    if session.lock.acquire(blocking=False):  # no other thread can use the session while this thread has its lock
        try:
            if session.info.transaction_status == TransactionStatus.IDLE:
                session.close()
        finally:
            session.lock.release()
