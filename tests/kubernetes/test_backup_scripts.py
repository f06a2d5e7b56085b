"""The scripts of the component `backup`, run by dash with programs that stand in for those of the stores.

The folders that the scripts name are replaced by folders of the test.
"""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.builds import KUBERNETES
from tests.skips import needs_program
from tests.waiting import until

SCRIPTS = KUBERNETES / "components" / "backup"

PG_BASEBACKUP = """for each in "$@"; do case $each in --pgdata=*) mkdir -p "${each#--pgdata=}" ;; esac; done
[ ! -e "$FAIL" ] || exit 1
if [ -e "$HANG" ]; then touch "$HANG.seen"; while [ -e "$HANG" ]; do sleep 0.05; done; fi
"""
REDIS_CLI = 'while [ $# -gt 1 ]; do shift; done; echo REDIS >"$1"; [ ! -e "$FAIL" ]\n'
CLICKHOUSE_CLIENT = """case "$*" in *password=*) exit 2 ;; esac
file=$(echo "$*" | sed "s/.*File('\\(.*\\)').*/\\1/"); echo ZIP >"$file"; [ ! -e "$FAIL" ]
"""
HDFS = """shift; command=$1; shift
case $command in
-mkdir) mkdir -p "$LAKE" ;;
-find) find "$LAKE" -name _delta_log | sed "s|^$LAKE|/lake|"; [ ! -e "$FAIL_FIND" ] ;;
-ls) ls -d "$LAKE/${2#/lake/}"/* | sed "s|^$LAKE|/lake|"; [ ! -e "$FAIL_LS" ] ;;
-get) cp -r "$LAKE/${1#/lake/}" "$2" ;;
esac
"""


class World:
    """The scripts and the programs that they call, in a folder of this test."""

    def __init__(self, folder: Path) -> None:
        self.shell = shutil.which("dash") or needs_program("dash", "Debian: dash")
        self.folder, self.backups, self.lake = folder, folder / "backups", folder / "lake"
        self.data = folder / "data" / "pgdata"
        self.fail, self.hang = folder / "fail", folder / "hang"
        self.fail_find, self.fail_ls = folder / "fail-find", folder / "fail-ls"
        for each in ("backups", "scripts", "bin", "data"):
            (folder / each).mkdir()
        places = {
            "/etc/backup": str(folder / "scripts"),
            "/backups": str(self.backups),
            "/opt/hadoop/bin": str(folder / "bin"),
            "/var/lib/postgresql/data": str(folder / "data"),
        }
        for script in SCRIPTS.glob("*.sh"):
            # Not where it goes on: `/backups/lake` contains no other place.
            text = re.sub("|".join(places), lambda found: places[found[0]], script.read_text())
            (folder / "scripts" / script.name).write_text(text)
        programs = {
            "pg_basebackup": PG_BASEBACKUP,
            "redis-cli": REDIS_CLI,
            "clickhouse-client": CLICKHOUSE_CLIENT,
            "hdfs": HDFS,
        }
        for name, text in programs.items():
            (folder / "bin" / name).write_text(f"#!{self.shell}\nset -eu\n{text}")
            (folder / "bin" / name).chmod(0o755)

    def start(self, script: str, *arguments: str, host: str = "pod-1") -> subprocess.Popen[str]:
        variables = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "HOSTNAME": host,
            "LAKE": str(self.lake),
            "FAIL": str(self.fail),
            "FAIL_FIND": str(self.fail_find),
            "FAIL_LS": str(self.fail_ls),
            "HANG": str(self.hang),
        }
        command = [self.shell, str(self.folder / "scripts" / f"{script}.sh"), *arguments]
        return subprocess.Popen(command, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def run(self, script: str, *arguments: str) -> tuple[int, str]:
        process = self.start(script, *arguments)
        said = process.communicate(timeout=30)[0]
        return process.returncode, said

    def table(self, *names: str) -> None:
        for name in names:
            for file in ("_delta_log/0.json", "date=2026-01-01/a.parquet"):
                path = self.lake / name / file
                path.parent.mkdir(parents=True)
                path.write_text(file)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.hang.unlink(missing_ok=True)


def copies(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.glob("[0-9]*"))


FOLDERS = {"postgres-files": "postgres-files", "redis": "redis", "clickhouse": "", "lake": "lake"}
KEPT = {"postgres-files": 2, "redis": 7, "clickhouse": 3, "lake": 2}


@pytest.mark.parametrize("script", FOLDERS)
def test_remains_and_old_copies_are_deleted_before_a_copy_that_fails(world: World, script: str) -> None:
    folder = world.backups / FOLDERS[script]
    folder.mkdir(exist_ok=True)
    for day in range(1, 10):
        (folder / f"2026-01-0{day}T000000-pod").mkdir()
    remains = folder / "2026-01-10T000000-pod.part"
    remains.mkdir()
    world.table("logs")
    world.fail.touch()
    world.fail_ls.touch()
    code, said = world.run(script)
    assert code != 0, said
    kept = [f"2026-01-0{day}T000000-pod" for day in range(11 - KEPT[script], 10)]
    assert [name for name in copies(folder) if ".part" not in name] == kept
    assert not remains.exists()


@pytest.mark.parametrize("script", FOLDERS)
def test_a_copy_is_made_and_the_newest_are_kept(world: World, script: str) -> None:
    folder = world.backups / FOLDERS[script]
    folder.mkdir(exist_ok=True)
    (folder / "lost+found").mkdir()
    for day in range(1, 10):
        (folder / f"2026-01-0{day}T000000-pod").mkdir()
    world.table("logs")
    code, said = world.run(script)
    assert code == 0, said
    found = copies(folder)
    assert len(found) == KEPT[script]
    assert "pod-1" in found[-1]
    assert ".part" not in found[-1]
    assert (folder / "lost+found").exists()


def test_a_second_run_waits_for_the_first_and_leaves_its_files_alone(world: World) -> None:
    world.hang.touch()
    first = world.start("postgres-files", host="pod-1")
    until(lambda: world.hang.with_name("hang.seen").exists())
    second = world.start("postgres-files", host="pod-2")
    time.sleep(0.3)  # it would now have deleted what the first one writes
    assert len(list((world.backups / "postgres-files").glob("*.part"))) == 1
    world.hang.unlink()
    assert [each.communicate(timeout=30) and each.returncode for each in (first, second)] == [0, 0]
    assert [name.rpartition("T")[2][7:] for name in copies(world.backups / "postgres-files")] == ["pod-1", "pod-2"]


def test_every_table_of_the_lake_is_copied_with_its_files(world: World) -> None:
    world.table("logs", "reports/daily", "rejects/logs", "warm-up-logs")
    code, said = world.run("lake")
    assert code == 0, said
    (copy,) = (world.backups / "lake").glob("[0-9]*")
    files = sorted(str(each.relative_to(copy)) for each in copy.rglob("*") if each.is_file())
    assert files == [
        f"{table}/{file}"
        for table in ("logs", "rejects/logs", "reports/daily")
        for file in ("_delta_log/0.json", "date=2026-01-01/a.parquet")
    ]


@pytest.mark.parametrize("broken", ["fail_find", "fail_ls"])
def test_a_list_of_files_that_fails_is_no_complete_copy(world: World, broken: str) -> None:
    world.table("logs")
    getattr(world, broken).touch()
    code, said = world.run("lake")
    assert code != 0, said
    assert [name for name in copies(world.backups / "lake") if not name.endswith(".part")] == []


def test_an_empty_lake_is_no_failure_and_no_copy(world: World) -> None:
    code, said = world.run("lake")
    assert (code, said) == (0, "the lake has no table yet\n")
    assert not (world.backups / "lake").exists()


def archive(world: World, name: str) -> Path:
    copy = world.backups / "postgres-files" / name
    copy.mkdir(parents=True)
    files = world.folder / f"of-{name}"
    (files / "pg_wal").mkdir(parents=True)
    (files / "PG_VERSION").write_text(name)
    (files / "segment").write_text("wal")
    subprocess.run(["tar", "-czf", copy / "base.tar.gz", "-C", files, "PG_VERSION", "pg_wal"], check=True)
    subprocess.run(["tar", "-czf", copy / "pg_wal.tar.gz", "-C", files, "segment"], check=True)
    return copy


def test_the_newest_files_of_postgres_are_unpacked_and_the_former_ones_kept(world: World) -> None:
    archive(world, "2026-01-01T000000-pod")
    archive(world, "2026-01-02T000000-pod")
    world.data.mkdir()
    (world.data / "PG_VERSION").write_text("former")
    code, said = world.run("restore-postgres-files")
    assert code == 0, said
    assert (world.data / "PG_VERSION").read_text() == "2026-01-02T000000-pod"
    assert (world.data / "pg_wal" / "segment").read_text() == "wal"
    assert world.data.stat().st_mode & 0o777 == 0o700
    (former,) = world.data.parent.glob("pgdata-before-*")
    assert (former / "PG_VERSION").read_text() == "former"


def test_a_copy_of_the_files_of_postgres_can_be_named(world: World) -> None:
    named = archive(world, "2026-01-01T000000-pod")
    archive(world, "2026-01-02T000000-pod")
    assert world.run("restore-postgres-files", str(named))[0] == 0
    assert (world.data / "PG_VERSION").read_text() == "2026-01-01T000000-pod"


def test_files_of_a_server_that_runs_are_not_replaced(world: World) -> None:
    archive(world, "2026-01-01T000000-pod")
    world.data.mkdir()
    (world.data / "postmaster.pid").touch()
    code, said = world.run("restore-postgres-files")
    assert code == 1
    assert "PostgreSQL runs" in said
    assert not (world.data / "PG_VERSION").exists()


def test_without_a_copy_nothing_of_postgres_is_replaced(world: World) -> None:
    (world.backups / "postgres-files").mkdir()
    world.data.mkdir()
    code, said = world.run("restore-postgres-files")
    assert code == 1
    assert "there is no copy" in said
    assert world.data.exists()
