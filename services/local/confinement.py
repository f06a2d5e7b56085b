"""Confines the process of the ClickHouse engine: once it serves, it can work in its data folder only.

The engine's own rights (clickhouse_rights) do not cover everything: the function `file` reads any file that the process
may read. With Landlock, a process gives up its own rights to files and to the network, without any privilege. A kernel
before 6.2 (before 6.7 for the network), or without Landlock, leaves the process these rights.
"""

import ctypes
import os
import struct
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # system calls, the same on every processor
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_PR_SET_NO_NEW_PRIVS = 38
_LEAST_VERSION = 3  # the first version that covers truncation; version 1 refuses all renames between folders

_READ = 1 << 2 | 1 << 3  # files, folders
_ALL = (1 << 15) - 1  # also execute, write, delete, make, rename, truncate
_ON_FILES = 1 << 1 | 1 << 2 | 1 << 14
_NET_VERSION, _CONNECT_TCP = 4, 1 << 1

_libc = ctypes.CDLL(None, use_errno=True)


def confine(writable: Path, readable: tuple[Path, ...]) -> bool:
    """Restrict this thread, and the threads that it starts later, until they end. Return whether the kernel can.

    The threads may read, write and delete everything below `writable`, and read everything below `readable`. They may
    execute nothing and open no TCP connection. Files that are open already, and connections that a listening socket
    accepts, are not affected. A path of `readable` that does not exist is skipped.
    """
    version = _libc.syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)
    if version < _LEAST_VERSION:
        return False
    handled = struct.pack("QQ", _ALL, _CONNECT_TCP) if version >= _NET_VERSION else struct.pack("Q", _ALL)
    ruleset = _checked(_libc.syscall(_CREATE_RULESET, handled, len(handled), 0))
    try:
        _allow(ruleset, writable, _ALL & ~1)
        for path in readable:
            if path.exists():
                _allow(ruleset, path, _READ)
        _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _checked(_libc.syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)
    return True


def forget_environment(kept: str) -> None:
    """Blank the variables that the process was started with, except `kept`, because they may contain secrets.

    The kernel shows them as a file of the process. `os.environ` stays as it is.
    """
    variables = ctypes.POINTER(ctypes.c_void_p).in_dll(_libc, "environ")
    index = 0
    while address := variables[index]:
        text = ctypes.string_at(address)
        if not text.startswith(f"{kept}=".encode()):
            ctypes.memset(address, 0, len(text))
        index += 1


def _allow(ruleset: int, path: Path, access: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", access if path.is_dir() else access & _ON_FILES, descriptor)
        _checked(_libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0))
    finally:
        os.close(descriptor)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
