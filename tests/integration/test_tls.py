"""Servers that speak TLS only, and ask for passwords: Kafka, PostgreSQL, ClickHouse behind a proxy, and Redis."""

import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from services.backup import folder as files
from services.backup import making
from services.core.errors import LogpipeError, NeedsOperator, StoreDown
from services.core.ports import OutgoingMessage
from services.core.queries import QueryResult, StatsQuery
from services.datasets.logs import DATASET
from services.local import jars, unprivileged
from services.local import kafka as local_kafka
from services.local.settings import LocalSettings
from services.migrate.service import migrate
from services.postgres.connection import connect
from services.query_api.cache import ResultCache
from services.runtime import kafka_security
from services.stores.clickhouse.writer import ClickHouseWriter
from services.streams import kafka, kafka_client, topics
from spark_jobs.session import open_session
from spark_jobs.settings import SparkSettings
from tests import certificates
from tests.certificates import Certificates
from tests.conftest import short_folder
from tests.processes import free_port
from tests.skips import needs_package
from tests.waiting import until

PASSWORD = 'quote " backslash \\ end'
URL_PASSWORD = "a-password"


def reachable(work: Callable[[], Any]) -> bool:
    try:
        work()
    except (LogpipeError, psycopg.Error, OSError):
        return False
    return True


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with short_folder() as made:
        yield made


@pytest.fixture(scope="module")
def tls(folder: Path) -> Certificates:
    return certificates.make(folder)


@contextmanager
def running(command: list[str], log: Path, **options: Any) -> Iterator[None]:
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, **options) as process:
        try:
            yield
        finally:
            process.terminate()


# ---- Kafka ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def secure_kafka(folder: Path, tls: Certificates) -> Iterator[str]:
    """A broker that takes clients by TLS with a name and a password only."""
    settings = LocalSettings.on_free_ports(folder / "kafka")
    home = folder / "kafka"
    home.mkdir()
    address = f"127.0.0.1:{settings.local_kafka_port}"
    login = "org.apache.kafka.common.security.scram.ScramLoginModule required"
    name = 'username="logpipe" password="of-the-broker"'
    properties = local_kafka._server_properties(settings, home / "data") | {
        "listeners": f"SASL_SSL://{address},CONTROLLER://127.0.0.1:{settings.local_kafka_controller_port}",
        "advertised.listeners": f"SASL_SSL://{address}",
        "listener.security.protocol.map": "SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "SASL_SSL",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "sasl.mechanism.inter.broker.protocol": "SCRAM-SHA-512",
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": f"{login} {name};",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(tls.server),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(tls.ca),
    }
    local_kafka._write(home / "server.properties", properties)
    java = local_kafka._java("-Xmx256m", "-XX:TieredStopAtLevel=1")
    storage = ("kafka.tools.StorageTool", "format", "--cluster-id=MkU3OEVBNTcwNTJENDM2Qg")
    users = ("--add-scram", "SCRAM-SHA-512=[name=logpipe,password=of-the-broker]")
    config = str(home / "server.properties")
    subprocess.run([*java, *storage, f"--config={config}", *users], cwd=home, check=True, capture_output=True)
    with running([*java, "kafka.Kafka", config], home / "log", cwd=home), pytest.MonkeyPatch.context() as patch:
        use_kafka(patch, tls.ca)
        until(lambda: reachable(lambda: topics.ensure_topics(address, {DATASET.topic: 2}, 1)))
        yield address


def use_kafka(patch: pytest.MonkeyPatch, ca: Path, password: str = "of-the-broker", user: str = "logpipe") -> None:
    patch.setenv("LOGPIPE_KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    patch.setenv("LOGPIPE_KAFKA_USERNAME", user)
    patch.setenv("LOGPIPE_KAFKA_PASSWORD", password)
    patch.setenv("LOGPIPE_KAFKA_CA", str(ca))


def publish(url: str, values: list[bytes]) -> None:
    with closing(kafka.KafkaProducer(url, "test")) as producer:
        producer.publish([OutgoingMessage(DATASET.topic, 0, b"key", value, {}) for value in values])


def test_producers_readers_groups_and_admins_use_tls_and_a_password(secure_kafka: str) -> None:
    publish(secure_kafka, [b"one"])
    with closing(kafka.KafkaPartitionReader(secure_kafka, DATASET.topic)) as reader:
        first, end = reader.bounds()[0]
        reader.assign({0: first})
        until(lambda: b"one" in [message.value for message in reader.poll(1)])
    assert end > 0
    with closing(kafka.KafkaGroupReader(secure_kafka, DATASET.topic, "a-group")) as member:
        until(lambda: member.poll(0.5) or member.rebalanced() is not None)
        assert kafka_client.members(secure_kafka, "a-group") == 1
    assert topics.existing_topics(secure_kafka, [DATASET.topic])[DATASET.topic].messages


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # of each `collect`, by pyspark
def test_spark_reads_with_the_same_settings(secure_kafka: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    publish(secure_kafka, [b"for spark"])
    monkeypatch.setenv("LOGPIPE_SPARK_JARS", ",".join(jars.spark_jars()))
    monkeypatch.setenv("SPARK_LOCAL_DIRS", str(folder / "scratch"))
    spark = open_session("test", SparkSettings())
    try:
        options = {**kafka_security.spark(secure_kafka), "subscribe": DATASET.topic, "startingOffsets": "earliest"}
        values = [bytes(row.value) for row in spark.read.format("kafka").options(**options).load().collect()]
    finally:
        spark.stop()
    assert b"for spark" in values


@pytest.mark.parametrize("wrong", ["password", "authority", "plaintext"])
def test_a_client_that_proves_nothing_or_trusts_nobody_gets_nothing(
    secure_kafka: str, tls: Certificates, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    if wrong == "password":
        use_kafka(monkeypatch, tls.ca, password="another")
    elif wrong == "authority":
        use_kafka(monkeypatch, tls.other_ca)
    else:
        monkeypatch.setenv("LOGPIPE_KAFKA_SECURITY_PROTOCOL", "PLAINTEXT")
    with pytest.raises(StoreDown):
        topics.existing_topics(secure_kafka, [DATASET.topic])


def test_a_password_that_is_missing_is_named_and_any_password_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    use_kafka(monkeypatch, Path("ca.pem"), PASSWORD)
    assert kafka_security.java()["sasl.jaas.config"].endswith(' password="quote \\" backslash \\\\ end";')
    assert kafka_security.librdkafka()["sasl.password"] == PASSWORD
    monkeypatch.setenv("LOGPIPE_KAFKA_PASSWORD", "")
    with pytest.raises(NeedsOperator, match="SASL_SSL needs LOGPIPE_KAFKA_USERNAME and LOGPIPE_KAFKA_PASSWORD"):
        kafka_security.librdkafka()
    monkeypatch.setenv("LOGPIPE_KAFKA_SECURITY_PROTOCOL", "PLAINTEXT")
    assert kafka_security.java() == kafka_security.librdkafka() == {"security.protocol": "PLAINTEXT"}


# ---- PostgreSQL -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def secure_postgres(folder: Path, tls: Certificates) -> Iterator[str]:
    """Debian's PostgreSQL, which takes clients by TLS with a password only."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        needs_package("postgresql")
    home, port, who = folder / "postgres", free_port(), unprivileged.identity()
    home.mkdir()
    contents = {"server.crt": tls.certificate.read_text(), "server.key": tls.key.read_text(), "password": URL_PASSWORD}
    for name, text in contents.items():
        (home / name).write_text(text)
        (home / name).chmod(0o600)
    if who:
        for place in (home, *home.iterdir()):
            os.chown(place, who["user"], who["group"])
    initdb = [str(programs[-1] / "initdb"), "-D", "data", "-U", "logpipe", "--auth=scram-sha-256", "--pwfile=password"]
    subprocess.run(initdb, cwd=home, check=True, capture_output=True, **who)
    (home / "data/pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
    options = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "ssl": "on",
        "ssl_cert_file": str(home / "server.crt"),
        "ssl_key_file": str(home / "server.key"),
    }
    words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    url = f"postgresql://logpipe:{URL_PASSWORD}@127.0.0.1:{port}/postgres?sslmode=verify-full&sslrootcert={tls.ca}"
    command = [str(programs[-1] / "postgres"), "-D", "data", *words]
    with running(command, home / "log", cwd=home, **who):
        until(lambda: reachable(lambda: psycopg.connect(url).close()))
        yield url


def test_the_url_is_enough_for_postgresql(secure_postgres: str, tls: Certificates, tmp_path: Path) -> None:
    migrate(secure_postgres)
    with closing(connect(secure_postgres)) as connection:
        query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        assert connection.execute(query).fetchone() == (True,)
    files.Backup(making.make(secure_postgres, tmp_path)).check()
    for wrong in (
        secure_postgres.replace(str(tls.ca), str(tls.other_ca)),
        secure_postgres.replace("sslmode=verify-full", "sslmode=disable"),
        secure_postgres.replace(URL_PASSWORD, "another"),
    ):
        with pytest.raises(StoreDown):
            connect(wrong)


# ---- ClickHouse -----------------------------------------------------------------------------------------------------


@pytest.fixture
def secure_clickhouse(clickhouse_url: str, tls: Certificates) -> Iterator[str]:
    """A proxy that speaks TLS, before the embedded engine, which does not."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls.certificate, tls.key)
    target = clickhouse_url.removeprefix("http://").partition(":")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    client, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=pass_on, args=(client,), daemon=True).start()

        def pass_on(client: socket.socket) -> None:
            try:
                secure = context.wrap_socket(client, server_side=True)
            except OSError:
                client.close()
                return
            server = socket.create_connection((target[0], int(target[2])))
            threading.Thread(target=copy, args=(secure, server), daemon=True).start()
            copy(server, secure)

        def copy(source: socket.socket, sink: socket.socket) -> None:
            try:
                while data := source.recv(1 << 16):
                    sink.sendall(data)
            except OSError:
                pass
            finally:
                for end in (source, sink):
                    end.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"https://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


def test_clickhouse_is_reached_by_https_at_any_port(secure_clickhouse: str, tls: Certificates) -> None:
    ClickHouseWriter(f"{secure_clickhouse}?ca_cert={tls.ca}").prepare(DATASET)
    for wrong in (
        f"{secure_clickhouse}?ca_cert={tls.other_ca}",
        secure_clickhouse.replace("https", "http"),
        secure_clickhouse,
    ):
        with pytest.raises(StoreDown):
            ClickHouseWriter(wrong).prepare(DATASET)


# ---- Redis ----------------------------------------------------------------------------------------------------------


def test_redis_is_reached_by_tls_with_a_password(folder: Path, tls: Certificates) -> None:
    server = shutil.which("redis-server")
    if server is None:
        needs_package("redis-server")
    port, options = free_port(), ("--bind", "127.0.0.1", "--port", "0", "--save", "", "--requirepass", URL_PASSWORD)
    files_of_tls = {"cert-file": tls.certificate, "key-file": tls.key, "ca-cert-file": tls.ca}
    words = [word for name, file in files_of_tls.items() for word in (f"--tls-{name}", str(file))]
    command = [server, *options, "--tls-port", str(port), *words, "--tls-auth-clients", "no"]
    url = f"rediss://:{URL_PASSWORD}@127.0.0.1:{port}/0?ssl_ca_certs={tls.ca}"
    query, computed = StatsQuery(DATASET), list[int]()

    def ask(address: str) -> str:
        def compute() -> QueryResult:
            computed.append(1)
            return QueryResult([(7,)], 1.0)

        clock = iter(range(0, 10**6, 60))  # a failure pauses the cache for seconds
        cache = ResultCache(address, 60, 1 << 20, lambda: float(next(clock)))
        try:
            return cache.result("store", "scope", query, 5, compute).method
        finally:
            cache.close()

    with running(command, folder / "redis.log", cwd=folder):
        until(lambda: ask(url) == "cache")
        before = len(computed)
        assert [ask(url) for _ in range(5)] == ["cache"] * 5
        assert len(computed) == before
        for wrong in (url.replace(str(tls.ca), str(tls.other_ca)), url.replace(URL_PASSWORD, "another")):
            assert ask(wrong) == "scan"
