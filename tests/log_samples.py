"""Made-up log files in the shapes of four programs, with the fields that each line was put together from.

Tests of `logpipe send` compare what it parses with these fields. A seed chooses the values, so every run has the same
lines.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

LINES = 300
"""Lines of a file: more than those that the format is recognised from."""


@dataclass(frozen=True, slots=True)
class Sample:
    line: str
    fields: dict[str, str]


def samples(name: str) -> list[Sample]:
    """Return the lines of a made-up file; `name` is one of NAMES."""
    chance = random.Random(name)
    return [_MAKERS[name](chance, at) for at in _times(chance)]


def _times(chance: random.Random) -> Iterator[datetime]:
    """Rising times from the end of one day to the next days, several of them in one second."""
    at = datetime(2011, 3, 9, 23, 58, tzinfo=UTC)
    for _ in range(LINES):
        at += timedelta(milliseconds=chance.choice([0, 1, 17, 850, 4_000, 61_007, 1_800_000]))
        yield at


def _address(chance: random.Random) -> str:
    return f"10.{chance.randrange(256)}.{chance.randrange(256)}.{chance.randrange(1, 255)}"


def _apache(chance: random.Random, at: datetime) -> Sample:
    level, content = chance.choice(
        [
            ("notice", "workerEnv.init() ok /etc/httpd/conf/workers.properties"),
            ("notice", f"jk_init() found child {chance.randrange(1, 9999)} in slot {chance.randrange(20)}"),
            ("error", f"mod_jk child workerEnv in error state {chance.randrange(9)}"),
            ("error", f"[client {_address(chance)}] Directory index forbidden by rule: /var/www/html/"),
            ("error", f"[client {_address(chance)}] File does not exist: /var/www/[a] b.html"),
        ]
    )
    fields = {"Time": f"{at:%a %b %d %H:%M:%S %Y}", "Level": level, "Content": content}
    return Sample(f"[{fields['Time']}] [{level}] {content}", fields)


def _hdfs(chance: random.Random, at: datetime) -> Sample:
    block = f"blk_{chance.randrange(-(1 << 62), 1 << 62)}"
    level, component, content = chance.choice(
        [
            ("INFO", "dfs.DataNode$PacketResponder", f"PacketResponder {chance.randrange(3)} for {block} terminating"),
            ("INFO", "dfs.DataNode$DataXceiver", f"Receiving {block} src: /{_address(chance)}:54106 dest: /a:50010"),
            ("INFO", "dfs.FSNamesystem", f"BLOCK* NameSystem.add: {_address(chance)}:50010 has {block} size 67108864"),
            ("WARN", "dfs.DataNode$DataXceiver", f"{_address(chance)}:50010:Got exception while serving {block}: -"),
        ]
    )
    pid = str(chance.randrange(1, 30_000))
    fields = {"Date": f"{at:%y%m%d}", "Time": f"{at:%H%M%S}", "Pid": pid, "Level": level}
    line = " ".join([*fields.values(), f"{component}: {content}"])
    return Sample(line, fields | {"Component": component, "Content": content})


def _openssh(chance: random.Random, at: datetime) -> Sample:
    user, address = chance.choice(["root", "admin", "0", "a b"]), _address(chance)
    content = chance.choice(
        [
            f"Invalid user {user} from {address}",
            f"Failed password for invalid user {user} from {address} port {chance.randrange(1024, 65_536)} ssh2",
            f"reverse mapping of mail.example [{address}] failed - POSSIBLE BREAK-IN ATTEMPT!",
            f"pam_unix(sshd:auth): authentication failure; logname= uid=0 tty=ssh ruser= rhost={address}  user={user}",
            f"error: Received disconnect from {address}: 3: com.example.Auth: Auth fail [preauth]",
        ]
    )
    fields = {"Date": f"{at:%b}", "Day": str(at.day), "Time": f"{at:%H:%M:%S}"}
    component, pid = chance.choice(["gate-1", "gate-2"]), str(chance.randrange(1, 99_999))
    line = f"{fields['Date']} {at.day:>2} {fields['Time']} {component} sshd[{pid}]: {content}"
    return Sample(line, fields | {"Component": component, "Pid": pid, "Content": content})


def _openstack(chance: random.Random, at: datetime) -> Sample:
    context = f"req-{chance.getrandbits(64):x} {chance.getrandbits(64):x} {chance.getrandbits(64):x} - - -"
    record, level, component, address, content = chance.choice(
        [
            ("api.log.1", "INFO", "nova.osapi.server", context, f'{_address(chance)} "GET /v2 HTTP/1.1" status: 200'),
            ("api.log.1", "INFO", "nova.osapi.server", context, f'{_address(chance)} "POST /v2/[x] HTTP/1.1" len: 7'),
            ("compute.log", "INFO", "nova.compute.manager", context, "[instance: 7f-1] VM Started (Lifecycle Event)"),
            ("compute.log", "WARNING", "nova.virt.imagecache", context, "Unknown base file: /var/lib/nova/_base/a2"),
            ("compute.log", "ERROR", "nova.compute.manager", "-", "While syncing the power states: 1 of 2 instances"),
        ]
    )
    fields = {
        "Logrecord": f"{record}.2011-03-09_23:59:59",
        "Date": f"{at:%Y-%m-%d}",
        "Time": f"{at:%H:%M:%S.%f}"[:-3],
        "Pid": str(chance.randrange(1, 30_000)),
        "Level": level,
        "Component": component,
    }
    line = " ".join([*fields.values(), f"[{address}] {content}"])
    return Sample(line, fields | {"ADDR": address, "Content": content})


_MAKERS: dict[str, Callable[[random.Random, datetime], Sample]] = {
    "Apache": _apache,
    "HDFS": _hdfs,
    "OpenSSH": _openssh,
    "OpenStack": _openstack,
}
NAMES = tuple(_MAKERS)
