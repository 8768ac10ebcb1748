"""Settings as an operator gives them, by environment, `.env` and mounted files, and what is said of wrong ones."""

import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from sync_worker.errors import SettingsError
from sync_worker.settings import DATABASE, KAFKA, Settings

URL = "postgresql://worker:s3cr3t-w0rd@db.example:5432/lms"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment without our names, in an empty folder."""
    for name in [name for name in os.environ if name.upper().startswith("SYNC_WORKER_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def give(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"SYNC_WORKER_{name}", value)


def give_required(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, KAFKA_BOOTSTRAP_SERVERS="one.example:9092,two.example", DATABASE_URL=URL)


def faults(require: frozenset[str] = KAFKA | DATABASE) -> dict[str, str]:
    """What `load` complains about, by environment name."""
    with pytest.raises(SettingsError) as caught:
        Settings.load(require)
    lines = str(caught.value).splitlines()[1:]
    return dict(line.strip().split(": ", 1) for line in lines)


def test_the_defaults_are_those_of_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    give_required(monkeypatch)
    settings = Settings.load()
    assert settings.input_topics == ("segments.membership", "enrollment.methods", "enrollment.sources")
    assert settings.changes_topic == "enrollment.changes"
    assert settings.dead_letters_topic == "sync-worker.dead-letters"
    assert settings.cursor_topic == "sync-worker.cursor"
    assert settings.consumer_group == "sync-worker"
    assert settings.http_port == 8080
    assert settings.log_format is None
    assert settings.database_url.get_secret_value() == URL


def test_all_faults_are_reported_at_once_by_their_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    give(
        monkeypatch,
        DATABASE_URL="mysql://worker:s3cr3t-w0rd@db/lms",
        HTTP_PORT="70000",
        LOG_LEVEL="loud",
        BATCH_MAX_RECORDS="many",
        DRAIN_TIMEOUT_S="nan",
        METHODS_TOPIC="segments.membership",
        CURSOR_TOPIC="a topic",
        SCHEMA_DIR="/nowhere/at/all",
        KAFKA_PROPERTIES="[1]",
        GROUP_PROTOCOL="modern",
    )
    found = faults()
    assert found.keys() == {
        "SYNC_WORKER_KAFKA_BOOTSTRAP_SERVERS",
        "SYNC_WORKER_DATABASE_URL",
        "SYNC_WORKER_HTTP_PORT",
        "SYNC_WORKER_LOG_LEVEL",
        "SYNC_WORKER_BATCH_MAX_RECORDS",
        "SYNC_WORKER_DRAIN_TIMEOUT_S",
        "SYNC_WORKER_METHODS_TOPIC",
        "SYNC_WORKER_CURSOR_TOPIC",
        "SYNC_WORKER_SCHEMA_DIR",
        "SYNC_WORKER_KAFKA_PROPERTIES",
        "SYNC_WORKER_GROUP_PROTOCOL",
    }
    assert found["SYNC_WORKER_LOG_LEVEL"] == "'loud' cannot be used; allowed: debug, info, warning, error or critical"
    assert "SYNC_WORKER_MEMBERSHIP_TOPIC" in found["SYNC_WORKER_METHODS_TOPIC"]


def test_a_command_asks_only_for_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert faults(KAFKA).keys() == {"SYNC_WORKER_KAFKA_BOOTSTRAP_SERVERS"}
    assert faults(DATABASE).keys() == {"SYNC_WORKER_DATABASE_URL"}
    give(monkeypatch, DATABASE_URL=URL)
    assert Settings.load(DATABASE).kafka_bootstrap_servers == ""


def test_an_empty_value_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    give_required(monkeypatch)
    give(monkeypatch, HTTP_PORT="", LOG_FORMAT=" ", SCHEMA_DIR="", KAFKA_PROPERTIES="", MEMBERSHIP_TOPIC="")
    assert Settings.load() == Settings(
        kafka_bootstrap_servers="one.example:9092,two.example", database_url=SecretStr(URL)
    )
    give(monkeypatch, DATABASE_URL="")
    assert faults().keys() == {"SYNC_WORKER_DATABASE_URL"}


def test_an_empty_sources_topic_says_that_it_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    give_required(monkeypatch)
    give(monkeypatch, SOURCES_TOPIC="")
    assert Settings.load().input_topics == ("segments.membership", "enrollment.methods")


@pytest.mark.parametrize(
    "url",
    [
        "postgres://worker:s3cr3t-w0rd@db/lms",
        "postgresql:///lms?host=/run/postgresql&user=worker",
        "postgresql://worker@one:5432,two:5433/lms?target_session_attrs=read-write",
    ],
)
def test_a_database_url_is_what_libpq_reads(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    give(monkeypatch, DATABASE_URL=url)
    assert Settings.load(DATABASE).database_url.get_secret_value() == url


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("host=db password=s3cr3t-w0rd", "is not a postgresql:// URL"),
        ("postgresql+psycopg://worker:s3cr3t-w0rd@db/lms", "libpq knows no +psycopg"),
        ("postgresql://worker:s3cr3t-w0rd%zz@db/lms", "libpq cannot read it"),
        ("postgresql://worker:s3cr3t-w0rd@db/lms?pool_size=5", "libpq cannot read it"),
        ("postgresql://worker:s3cr3t-w0rd x@db/lms", "libpq cannot read it"),
    ],
)
def test_another_database_url_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch, url: str, words: str
) -> None:
    give(monkeypatch, DATABASE_URL=url)
    found = faults(DATABASE)["SYNC_WORKER_DATABASE_URL"]
    assert words in found
    assert "a postgresql:// URL as libpq reads it" in found
    assert "s3cr3t-w0rd" not in found


def test_secrets_are_in_no_repr_and_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    give_required(monkeypatch)
    give(
        monkeypatch,
        KAFKA_SECURITY_PROTOCOL="sasl_plaintext",
        KAFKA_SASL_MECHANISM="scram-sha-512",
        KAFKA_SASL_USERNAME="worker",
        KAFKA_SASL_PASSWORD="sasl-hidden",
        SCHEMA_REGISTRY_URL="https://registry.example",
        SCHEMA_REGISTRY_USER="worker",
        SCHEMA_REGISTRY_PASSWORD="registry-hidden",
        KAFKA_PROPERTIES='{"ssl.keystore.password": "store-hidden", "client.rack": "a"}',
    )
    settings = Settings.load()
    for shown in (repr(settings), str(settings)):
        assert "hidden" not in shown
        assert "s3cr3t" not in shown
    assert settings.secrets() >= {"s3cr3t-w0rd", URL, "sasl-hidden", "registry-hidden", "store-hidden"}
    assert "a" not in settings.secrets()

    give(monkeypatch, KAFKA_PROPERTIES='{"ssl.keystore.password": ["store-hidden"], "nope": 1}', HTTP_PORT="x")
    assert "hidden" not in str(faults())


def test_a_secret_may_come_from_a_mounted_file(monkeypatch: pytest.MonkeyPatch, nothing_set: Path) -> None:
    file = nothing_set / "url"
    file.write_text(URL + "\n")
    give(monkeypatch, DATABASE_URL_FILE=str(file))
    assert Settings.load(DATABASE).database_url.get_secret_value() == URL


def test_a_mounted_file_that_cannot_be_used_is_a_fault_of_its_setting(
    monkeypatch: pytest.MonkeyPatch, nothing_set: Path
) -> None:
    (nothing_set / "empty").write_text("\n")
    (nothing_set / "binary").write_bytes(b"\xff\xfe")
    for file, words in (
        ("missing", "No such file"),
        ("empty", "is empty"),
        ("binary", "not UTF-8"),
        (".", "directory"),
    ):
        give(monkeypatch, DATABASE_URL_FILE=str(nothing_set / file))
        found = faults(DATABASE)["SYNC_WORKER_DATABASE_URL"]
        assert "SYNC_WORKER_DATABASE_URL_FILE" in found
        assert words in found
    give(monkeypatch, DATABASE_URL=URL)
    assert "set one of the two" in faults(DATABASE)["SYNC_WORKER_DATABASE_URL"]


def test_the_env_file_gives_what_the_environment_does_not(monkeypatch: pytest.MonkeyPatch, nothing_set: Path) -> None:
    (nothing_set / ".env").write_text(
        f"SYNC_WORKER_DATABASE_URL={URL}\nSYNC_WORKER_HTTP_PORT=1\nSYNC_WORKER_LOG_LEVEL=debug\nOTHER=1\n"
    )
    give(monkeypatch, HTTP_PORT="2", LOG_LEVEL="")
    settings = Settings.load(DATABASE)
    assert settings.database_url.get_secret_value() == URL
    assert settings.http_port == 2
    assert settings.log_level == "debug"
    assert Settings().log_level == "info", "made directly, settings do not depend on the folder"


def test_an_env_file_that_is_no_text_is_an_error(nothing_set: Path) -> None:
    (nothing_set / ".env").write_bytes(b"SYNC_WORKER_HTTP_PORT=\xff\n")
    with pytest.raises(SettingsError, match=r"\.env cannot be read"):
        Settings.load(())


def test_an_unknown_name_is_a_warning_with_what_was_meant(monkeypatch: pytest.MonkeyPatch, nothing_set: Path) -> None:
    give(monkeypatch, DATABSE_URL=URL, HTTP_PORT_FILE="x", DATABASE_URL_FILE="x")
    monkeypatch.setenv("SYNC_WORKER_ZZZ", "1")
    (nothing_set / ".env").write_text("sync_worker_log_level=debug\n")
    assert Settings.warnings() == [
        "SYNC_WORKER_DATABSE_URL is not a setting; did you mean SYNC_WORKER_DATABASE_URL?",
        "SYNC_WORKER_HTTP_PORT_FILE is not a setting; did you mean SYNC_WORKER_HTTP_PORT?",
        "SYNC_WORKER_ZZZ is not a setting",
        "sync_worker_log_level is not a setting; did you mean SYNC_WORKER_LOG_LEVEL?",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "enable.auto.commit", "enable.auto.offset.store", "auto.offset.reset", "isolation.level", "transactional.id",
        "enable.idempotence", "partitioner", "enable.partition.eof", "acks", "group.instance.id",
    ],
)  # fmt: skip
def test_what_exactly_once_depends_on_cannot_be_overridden(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    give_required(monkeypatch)
    give(monkeypatch, KAFKA_PROPERTIES=f'{{"{name}": "x"}}')
    assert f"{name} is the worker's own" in faults()["SYNC_WORKER_KAFKA_PROPERTIES"]


def test_a_property_with_a_setting_of_its_own_is_sent_there(monkeypatch: pytest.MonkeyPatch) -> None:
    give_required(monkeypatch)
    give(monkeypatch, KAFKA_PROPERTIES='{"bootstrap.servers": "x", "group.id": "y"}')
    found = faults()["SYNC_WORKER_KAFKA_PROPERTIES"]
    assert "SYNC_WORKER_KAFKA_BOOTSTRAP_SERVERS" in found
    assert "SYNC_WORKER_CONSUMER_GROUP" in found


def test_properties_that_librdkafka_does_not_take_are_named_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    give_required(monkeypatch)
    give(monkeypatch, KAFKA_PROPERTIES='{"no.such": "hidden", "debug": "hidden", "socket.timeout.ms": "soon"}')
    found = faults()["SYNC_WORKER_KAFKA_PROPERTIES"]
    assert "no.such: no such librdkafka property" in found
    assert "debug: a value that librdkafka does not take" in found
    assert "socket.timeout.ms: a value that librdkafka does not take" in found
    assert "hidden" not in found


def test_the_client_configuration_holds_address_security_and_the_operators_properties(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    give_required(monkeypatch)
    give(monkeypatch, KAFKA_PROPERTIES='{"socket.timeout.ms": 10000, "log.connection.close": false, "client.id": "x"}')
    assert Settings.load().kafka_client_config() == {
        "bootstrap.servers": "one.example:9092,two.example",
        "security.protocol": "PLAINTEXT",
        "socket.timeout.ms": "10000",
        "log.connection.close": "false",
        "client.id": "x",
    }
    give(
        monkeypatch,
        KAFKA_PROPERTIES="",
        KAFKA_SECURITY_PROTOCOL="SASL_PLAINTEXT",
        KAFKA_SASL_MECHANISM="plain",
        KAFKA_SASL_USERNAME="worker",
        KAFKA_SASL_PASSWORD="hidden",
    )
    assert Settings.load().kafka_client_config() == {
        "bootstrap.servers": "one.example:9092,two.example",
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "worker",
        "sasl.password": "hidden",
        "client.id": "sync-worker",
    }


def test_security_settings_that_contradict_one_another_are_refused(
    monkeypatch: pytest.MonkeyPatch, nothing_set: Path
) -> None:
    give_required(monkeypatch)
    (nothing_set / "ca.pem").write_text("no certificate")
    give(monkeypatch, KAFKA_SASL_USERNAME="worker", KAFKA_SSL_CA_LOCATION=str(nothing_set / "ca.pem"))
    assert faults().keys() == {"SYNC_WORKER_KAFKA_SASL_USERNAME", "SYNC_WORKER_KAFKA_SSL_CA_LOCATION"}
    give(monkeypatch, KAFKA_SECURITY_PROTOCOL="SASL_SSL", KAFKA_SSL_CA_LOCATION="")
    assert "required" in faults()["SYNC_WORKER_KAFKA_SASL_MECHANISM"]
    give(monkeypatch, KAFKA_SASL_MECHANISM="SCRAM-SHA-256")
    assert "required" in faults()["SYNC_WORKER_KAFKA_SASL_PASSWORD"]


def test_a_certificate_that_is_none_is_found_before_anything_connects(
    monkeypatch: pytest.MonkeyPatch, nothing_set: Path
) -> None:
    give_required(monkeypatch)
    (nothing_set / "ca.pem").write_text("no certificate")
    give(monkeypatch, KAFKA_SECURITY_PROTOCOL="ssl", KAFKA_SSL_CA_LOCATION=str(nothing_set / "ca.pem"))
    assert "ssl.ca.location" in faults()["SYNC_WORKER_KAFKA_SECURITY_PROTOCOL"]


def test_registry_credentials_have_settings_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, SCHEMA_REGISTRY_URL="https://worker:s3cr3t-w0rd@registry.example/apis")
    found = faults(frozenset())["SYNC_WORKER_SCHEMA_REGISTRY_URL"]
    assert "SYNC_WORKER_SCHEMA_REGISTRY_USER" in found
    assert "s3cr3t-w0rd" not in found
    give(monkeypatch, SCHEMA_REGISTRY_URL="registry.example")
    assert "http" in faults(frozenset())["SYNC_WORKER_SCHEMA_REGISTRY_URL"]
    give(monkeypatch, SCHEMA_REGISTRY_URL="", SCHEMA_REGISTRY_USER="worker")
    assert faults(frozenset()).keys() == {
        "SYNC_WORKER_SCHEMA_REGISTRY_USER",
        "SYNC_WORKER_SCHEMA_REGISTRY_PASSWORD",
    }


@pytest.mark.parametrize("servers", ["one:9092,,two", "one two:9092", "one:99999", "http//one", "one:port"])
def test_a_bootstrap_server_is_host_and_port(monkeypatch: pytest.MonkeyPatch, servers: str) -> None:
    give(monkeypatch, KAFKA_BOOTSTRAP_SERVERS=servers)
    assert "is not host:port" in faults(KAFKA)["SYNC_WORKER_KAFKA_BOOTSTRAP_SERVERS"]


def test_bootstrap_servers_may_be_addresses_of_either_family(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, KAFKA_BOOTSTRAP_SERVERS="[::1]:9092, 10.0.0.1:9092,SASL_SSL://broker.example:9093")
    assert Settings.load(KAFKA).kafka_bootstrap_servers.startswith("[::1]")
