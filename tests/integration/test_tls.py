"""TLS and SASL/SCRAM to a real broker, TLS and passwords to a real PostgreSQL: the whole job over them, and what is refused.

The broker has a listener for each way of being wrong; the database refuses whoever comes without TLS. No password may ever
be seen, wherever one looks.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import psycopg
import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # re-exported
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from devstack import Kind, Stack, fetch
from devstack.ports import HOST, free_port
from sync_worker.database.migrate import migrate
from tests.model.events import Event
from tests.model.model import Model
from tests.support.check import assert_site_equals_model
from tests.support.facts import member, method, new_id
from tests.support.servers import Server
from tests.support.site import Site, WorkerProcess
from tests.support.tls import KEY_PASSWORD, Authority, Certificate

EXIT_S = 150.0
# Some tests wait for that long twice and more.
pytestmark = pytest.mark.timeout(900)
KAFKA_PASSWORD = "k4fka-p4ssw0rd, with a 'quote'"
DATABASE_PASSWORD = "d4tabase-p4ssw0rd"
SECRETS = (KAFKA_PASSWORD, DATABASE_PASSWORD, KEY_PASSWORD)
LISTENERS = ("SSL", "SASL_SSL", "EXPIRED", "ELSEWHERE")
HBA = f"""
hostnossl all postgres {HOST}/32 trust
hostssl all password_user {HOST}/32 scram-sha-256
hostssl all certified_user {HOST}/32 cert
"""


@dataclass(frozen=True)
class Secured:
    """A broker and a database that want to be sure of their clients, and the certificates that they know."""

    stack: Stack
    server: Server
    ports: Mapping[str, int]
    ours: Authority
    client: Certificate
    stranger: Authority
    folder: Path

    def kafka(self, listener: str, **changes: str) -> dict[str, str]:
        """The settings of a client that is right at this listener, with changes; empty ones are left out."""
        settings = {
            "kafka_bootstrap_servers": f"{HOST}:{self.ports[listener]}",
            "kafka_security_protocol": "SASL_SSL" if listener == "SASL_SSL" else "SSL",
            "kafka_ssl_ca_location": str(self.ours.certificate),
        }
        if listener == "SASL_SSL":
            settings |= {
                "kafka_sasl_mechanism": "SCRAM-SHA-512",
                "kafka_sasl_username": "worker",
                "kafka_sasl_password": KAFKA_PASSWORD,
            }
        else:
            settings |= {
                "kafka_ssl_certificate_location": str(self.client.chain),
                "kafka_ssl_key_location": str(self.client.locked_key),
                "kafka_ssl_key_password": KEY_PASSWORD,
            }
        return {name: value for name, value in (settings | changes).items() if value}

    def database(self, name: str, user: str = "certified_user", password: str = "", **changes: str) -> str:
        """The URL of a client that is right, with changes; empty ones are left out."""
        parts = {
            "sslmode": "verify-full",
            "sslrootcert": str(self.ours.certificate),
            "sslcert": str(self.client.chain),
            "sslkey": str(self.client.key),
        } | changes
        given = "&".join(f"{part}={value}" for part, value in parts.items() if value)
        port = self.server.url().rpartition(":")[2].partition("/")[0]
        return f"postgresql://{user}{':' * bool(password)}{password}@{HOST}:{port}/{name}?{given}"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("tls")
    ours, stranger = Authority(folder / "ours"), Authority(folder / "stranger")
    ports = {listener: free_port() for listener in LISTENERS}
    certificates = {
        "": ours.issue("server", HOST),
        "expired.": ours.issue("expired", HOST, expired=True),
        "elsewhere.": ours.issue("elsewhere", "kafka.elsewhere.example"),
    }
    properties = {
        "listeners": ",".join(f"{listener}://{HOST}:{port}" for listener, port in ports.items()),
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL,EXPIRED:SSL,ELSEWHERE:SSL",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
        "listener.name.ssl.ssl.client.auth": "required",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(ours.certificate),
    }
    for prefix, certificate in certificates.items():
        named = f"listener.name.{prefix}" if prefix else ""
        properties |= {f"{named}ssl.keystore.type": "PEM", f"{named}ssl.keystore.location": str(certificate.both)}
    with Stack.start(durable=False, kafka_properties=properties) as stack:
        if stack.kind is not Kind.NATIVE:
            pytest.skip("certificates are given to a native stack alone")
        _let_in_with_scram(stack)
        server = Server(stack, "tls-postgres", fetch.tls_postgres_directory())
        _prepare(server, ours, folder)
        server.start()
        with psycopg.connect(server.url(), autocommit=True) as owner:
            owner.execute("create role certified_user superuser login")
            owner.execute(f"create role password_user superuser login password '{DATABASE_PASSWORD}'")
        client = ours.issue("client", "worker.example", common_name="certified_user")
        yield Secured(stack, server, ports, ours, client, stranger, folder)
        server.discard()


def _let_in_with_scram(stack: Stack) -> None:
    admin = AdminClient({"bootstrap.servers": stack.kafka.bootstrap_servers})
    credential = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
    wanted = UserScramCredentialUpsertion("worker", credential, KAFKA_PASSWORD.encode())
    admin.alter_user_scram_credentials([wanted])["worker"].result(60)


def _prepare(server: Server, ours: Authority, folder: Path) -> None:
    """Its certificate, an expired one to change to, and who may come in."""
    server.initialize()
    for name, certificate in (
        ("server", ours.issue("database", HOST)),
        ("expired", ours.issue("old", HOST, expired=True)),
    ):
        for suffix, source in (("crt", certificate.chain), ("key", certificate.key)):
            _owned_by_the_server(server, server.data / f"{name}.{suffix}", source.read_bytes())
    _owned_by_the_server(server, server.data / "ca.pem", ours.certificate.read_bytes())
    _owned_by_the_server(server, server.data / "pg_hba.conf", HBA.encode())
    server.configure(ssl="on", ssl_ca_file="ca.pem")


def _owned_by_the_server(server: Server, path: Path, content: bytes) -> None:
    owner = server.data.stat()
    path.write_bytes(content)
    path.chmod(0o600)
    os.chown(path, owner.st_uid, owner.st_gid)


@pytest.fixture
def make_secured_site(secured: Secured, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Makes sites whose commands and workers come over TLS: `make(kafka_settings, user, password)`."""
    sites: list[Site] = []

    def make(kafka: Mapping[str, str], user: str, password: str = "", **database: str) -> Site:
        name = f"tls_{uuid4().hex[:12]}"
        migrate(secured.server.create_database(name))
        settings = {f"SYNC_WORKER_{setting.upper()}": value for setting, value in kafka.items()}
        site = Site(secured.stack, secured.database(name, user, password, **database), tmp_path, settings)
        sites.append(site)
        return site

    yield make
    for site in sites:
        site.close()


def do_the_job(site: Site) -> WorkerProcess:
    """Members, a method, a rejected record and a change of mind, from the topics to the topics."""
    site.create_topics()
    first = method(new_id(), new_id(), group_id=new_id())
    users = [new_id() for _ in range(20)]
    history: list[Event] = [first, *(member(first.segment_id, user, 1) for user in users)]
    worker = site.start_worker()
    site.produce(history)
    site.produce_raw("membership", b"garbage")
    site.wait_settled()
    more: list[Event] = [
        replace(first, event_id=new_id(), version=2, role="tutor"),
        *(member(first.segment_id, user, 2, is_member=False) for user in users[:5]),
    ]
    site.produce(more)
    site.wait_settled()
    model = Model()
    model.apply_batch([*history, *more])
    assert_site_equals_model(site, model)
    assert [letter.value for letter in site.dead_letters()] == [b"garbage"]
    return worker


def assert_no_secret(*texts: str) -> None:
    for text in texts:
        for secret in SECRETS:
            assert secret not in text
            assert repr(secret)[1:-1] not in text


def test_the_whole_job_with_certificates_on_both_sides(
    secured: Secured, make_secured_site: Callable[..., Site]
) -> None:
    site = make_secured_site(secured.kafka("SSL"), "certified_user")
    worker = do_the_job(site)
    with psycopg.connect(secured.server.url(), autocommit=True) as owner:
        rows = owner.execute("""
            select s.ssl, s.client_serial is not null from pg_stat_ssl s join pg_stat_activity a using (pid)
            where a.application_name like 'sync-worker %'""").fetchall()
    assert rows
    assert set(rows) == {(True, True)}
    assert worker.terminate() == 0
    assert_no_secret(worker.log())


def test_the_whole_job_with_scram_and_passwords_that_are_nowhere_to_be_seen(
    secured: Secured, make_secured_site: Callable[..., Site]
) -> None:
    site = make_secured_site(secured.kafka("SASL_SSL"), "password_user", DATABASE_PASSWORD, sslcert="", sslkey="")
    site.environment |= {"SYNC_WORKER_LOG_LEVEL": "debug", "PYTHONFAULTHANDLER": "1"}
    worker = do_the_job(site)
    seen = [worker.log(), *(" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))]
    site_url = f"http://127.0.0.1:{worker.http_port}"
    seen += [
        httpx.get(site_url + path, timeout=60).text for path in ("/", "/livez", "/readyz", "/metrics", "/status.json")
    ]
    for arguments in (
        ("status", "--json"),
        ("status",),
        ("positions", "show"),
        ("relay", "show"),
        ("--help",),
        ("run", "--help"),
    ):
        done = site.command(*arguments)
        assert done.returncode in {0, 3}, done.stderr
        seen += [done.stdout, done.stderr]
    # It dies with every thread's stack in its last words.
    worker.signal(signal.SIGABRT)
    # The stacks of threads that run on are read without a lock, and that may end the process itself.
    assert worker.wait() in {-signal.SIGABRT, -signal.SIGSEGV}
    assert "most recent call first" in worker.log()
    assert_no_secret(*seen, worker.log())


def refused(site: Site) -> str:
    """The worker and a command both stop, saying the same; the worker's words."""
    worker = site.start_worker()
    assert worker.wait(EXIT_S) == 1, worker.log()[-3000:]
    (line,) = worker.events("stopped")
    assert line["kind"] == "FatalError"
    reason: str = line["reason"]
    command = site.command("status", timeout_s=EXIT_S)
    assert command.returncode == 1, command.stderr
    assert_no_secret(worker.log(), command.stdout, command.stderr)
    return reason


@pytest.mark.parametrize(
    ("listener", "changes", "says"),
    [
        ("SSL", {"kafka_ssl_ca_location": "stranger"}, "certificate verify failed"),
        ("SASL_SSL", {"kafka_ssl_ca_location": "stranger"}, "certificate verify failed"),
        ("EXPIRED", {}, "certificate verify failed"),
        ("ELSEWHERE", {}, "certificate verify failed"),
        ("SASL_SSL", {"kafka_sasl_password": "another-p4ssw0rd"}, "refused the login"),
        ("SASL_SSL", {"kafka_sasl_username": "nobody"}, "refused the login"),
    ],
    ids=["wrong CA", "wrong CA, SASL", "expired", "another host's", "wrong password", "unknown user"],
)
def test_a_broker_that_cannot_be_trusted_or_that_refuses_us_stops_the_worker(
    secured: Secured, make_secured_site: Callable[..., Site], listener: str, changes: dict[str, str], says: str
) -> None:
    files = {"stranger": str(secured.stranger.certificate)}
    kafka = secured.kafka(listener, **{name: files.get(value, value) for name, value in changes.items()})
    site = make_secured_site(kafka, "certified_user")
    reason = refused(site)
    assert says in reason
    assert "another-p4ssw0rd" not in reason
    if "certificate" in says:
        assert "SYNC_WORKER_KAFKA_SSL_CA_LOCATION" in reason


@pytest.mark.parametrize("arguments", [("topics", "create"), ("tail", "--until-end"), ("publish", "-")])
def test_commands_say_what_is_wrong_with_the_broker(
    secured: Secured, make_secured_site: Callable[..., Site], arguments: tuple[str, ...]
) -> None:
    kafka = secured.kafka("SASL_SSL", kafka_sasl_password="another-p4ssw0rd")
    site = make_secured_site(kafka, "certified_user")
    done = site.command(*arguments, stdin='{"type": "SegmentMemberAdded"}', timeout_s=EXIT_S)
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert "refused the login" in done.stderr
    assert "another-p4ssw0rd" not in done.stderr


@pytest.mark.parametrize("whose", ["nobody's", "a stranger's"])
def test_a_client_whose_certificate_the_broker_refuses_stops(
    secured: Secured, make_secured_site: Callable[..., Site], whose: str
) -> None:
    certificate = secured.stranger.issue(f"client-{uuid4().hex[:6]}", "worker.example", common_name="certified_user")
    given = {
        "kafka_ssl_certificate_location": str(certificate.chain),
        "kafka_ssl_key_location": str(certificate.locked_key),
    }
    if whose == "nobody's":
        given = dict.fromkeys([*given, "kafka_ssl_key_password"], "")
    reason = refused(make_secured_site(secured.kafka("SSL", **given), "certified_user"))
    assert "no trust between us and Kafka" in reason


def _stranger(secured: Secured) -> dict[str, Any]:
    certificate = secured.stranger.issue(f"client-{uuid4().hex[:6]}", "worker.example", common_name="certified_user")
    return {"sslcert": str(certificate.chain), "sslkey": str(certificate.key)}


@pytest.mark.parametrize(
    ("user", "password", "changes", "says"),
    [
        ("certified_user", "", lambda s: {"sslrootcert": str(s.stranger.certificate)}, "certificate verify failed"),
        ("certified_user", "", lambda _: {"sslrootcert": "/nowhere/ca.pem"}, "root certificate file"),
        ("certified_user", "", lambda _: {"sslcert": "", "sslkey": ""}, "client certificate"),
        ("certified_user", "", _stranger, "no trust between us and PostgreSQL"),
        ("password_user", "another-p4ssw0rd", lambda _: {}, "password authentication failed"),
        ("password_user", DATABASE_PASSWORD, lambda _: {"sslmode": "disable"}, "no pg_hba.conf entry"),
    ],
    ids=["wrong CA", "no CA", "no certificate", "a stranger's certificate", "wrong password", "no TLS"],
)
def test_a_database_that_cannot_be_trusted_or_that_refuses_us_stops_the_worker(
    secured: Secured,
    make_secured_site: Callable[..., Site],
    user: str,
    password: str,
    changes: Callable[[Secured], dict[str, str]],
    says: str,
) -> None:
    reason = refused(make_secured_site(secured.kafka("SSL"), user, password, **changes(secured)))
    assert says in reason
    assert "SYNC_WORKER_DATABASE_URL" in reason
    assert "another-p4ssw0rd" not in reason


def test_a_database_whose_name_is_another_or_that_has_no_tls_stops_the_worker(
    secured: Secured, make_secured_site: Callable[..., Site]
) -> None:
    site = make_secured_site(secured.kafka("SSL"), "certified_user")
    site.environment["SYNC_WORKER_DATABASE_URL"] = site.database_url.replace(f"@{HOST}:", "@localhost:")
    assert "does not match host name" in refused(site)
    plain = secured.stack.postgres.url()
    site.environment["SYNC_WORKER_DATABASE_URL"] = f"{plain}?sslmode=require"
    assert "server does not support SSL" in refused(site)


def test_a_database_whose_certificate_has_expired_stops_a_worker_that_starts(
    secured: Secured, make_secured_site: Callable[..., Site]
) -> None:
    site = make_secured_site(secured.kafka("SSL"), "certified_user")
    with psycopg.connect(secured.server.url(), autocommit=True) as owner:
        try:
            owner.execute("alter system set ssl_cert_file = 'expired.crt'")
            owner.execute("alter system set ssl_key_file = 'expired.key'")
            owner.execute("select pg_reload_conf()")
            assert "certificate verify failed" in refused(site)
        finally:
            owner.execute("alter system reset ssl_cert_file")
            owner.execute("alter system reset ssl_key_file")
            owner.execute("select pg_reload_conf()")
