"""Builds the services as containers, where a Docker engine answers.

The host ports are chosen here and fixed, since a container gets another one on each start otherwise. Containers are
labelled with their run directory, so that `down` finds them; none may be touched that lacks the label.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from devstack.errors import DevstackError
from devstack.native import KAFKA_PROPERTIES
from devstack.parts import Kafka, Postgres, Registry
from devstack.ports import HOST, kept_ports
from devstack.runner import Runner

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

KAFKA_IMAGE = "apache/kafka:4.2.2"  # the version that lock.py pins, for its reason
POSTGRES_IMAGE = "postgres:18"
REGISTRY_IMAGE = "apicurio/apicurio-registry:3.3.3"
_LABEL = "user-segment-sync.devstack"


def docker_answers() -> bool:
    """Whether a Docker engine answers within two seconds."""
    if not _somebody_listens(urlsplit(os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock")):
        return False
    import docker  # type: ignore[import-untyped]  # noqa: PLC0415
    import requests  # noqa: PLC0415

    try:
        client = docker.from_env(timeout=2)
        try:
            return bool(client.ping())
        finally:
            client.close()
    except (docker.errors.DockerException, requests.RequestException):
        return False


def _somebody_listens(address: SplitResult) -> bool:
    """Asked first: the engine's client is slow to import, and leaves its socket open when nobody answers."""
    try:
        if address.scheme != "unix":
            socket.create_connection((address.hostname or HOST, address.port or 2375), timeout=2).close()
            return True
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(2)
            probe.connect(address.path)
    except OSError:
        return False
    return True


def remove_containers(directory: Path) -> None:
    """Remove the containers of a run directory, whatever process started them."""
    import docker  # noqa: PLC0415

    client = docker.from_env()
    try:
        for container in client.containers.list(all=True, filters={"label": f"{_LABEL}={directory}"}):
            container.remove(force=True, v=True)
    finally:
        client.close()


class ContainerRunner(Runner):
    """A service as a container; its data lives as long as the container."""

    def __init__(self, name: str, directory: Path, container: DockerContainer) -> None:
        super().__init__(name)
        self._log = directory / f"{name}.log"
        self._container = container.with_kwargs(labels={_LABEL: str(directory)})
        self._created = False

    @property
    def running(self) -> bool:
        return self._state()["Running"] is True

    @property
    def pid(self) -> int:
        pid = self._state()["Pid"]
        if not isinstance(pid, int) or pid == 0:
            raise self.failure("does not run")
        return pid

    @property
    def log_path(self) -> Path:
        # The engine keeps the log; the file is what it says now.
        self._log.write_text(self.log_tail(lines=100_000), encoding="utf-8")
        return self._log

    def start(self) -> None:
        if self._created:
            self._container.get_wrapped_container().start()
        else:
            self._container.start()
            self._created = True

    def stop(self, number: signal.Signals, timeout_s: float) -> None:
        if not self.running:
            return
        wrapped = self._container.get_wrapped_container()
        if self._state()["Paused"] is True:
            wrapped.unpause()
        wrapped.kill(signal=number.name)
        self._await_end(timeout_s, number)

    def kill(self) -> None:
        self._container.get_wrapped_container().kill()
        self._await_end(30, signal.SIGKILL)

    def pause(self) -> None:
        self._container.get_wrapped_container().pause()

    def resume(self) -> None:
        self._container.get_wrapped_container().unpause()

    def log_tail(self, lines: int = 30) -> str:
        if not self._created:
            return ""
        output: bytes = self._container.get_wrapped_container().logs(tail=lines)
        return output.decode(errors="replace")

    def discard(self) -> None:
        if self._created:
            self._container.stop()  # Which, of testcontainers, removes it with its volumes.
            self._created = False

    def _await_end(self, timeout_s: float, number: signal.Signals) -> None:
        import requests  # noqa: PLC0415

        try:
            self._container.get_wrapped_container().wait(timeout=timeout_s)
        except requests.RequestException as error:
            raise self.failure(f"still runs {timeout_s:g} s after {number.name}") from error

    def _state(self) -> Mapping[str, object]:
        if not self._created:
            return {"Running": False, "Paused": False, "Pid": 0}
        wrapped = self._container.get_wrapped_container()
        wrapped.reload()
        state: Mapping[str, object] = wrapped.attrs["State"]
        return state


def kafka(directory: Path, properties: Mapping[str, str]) -> Kafka:
    """A broker that is its own controller (KRaft)."""
    (port,) = kept_ports(_home(directory, "kafka"), 1)
    settings = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": "1@localhost:9093",
        "listeners": "PLAINTEXT://:9092,CONTROLLER://:9093",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        **KAFKA_PROPERTIES,
        **properties,
    }
    container = _container(KAFKA_IMAGE, 9092, port)
    for name, value in settings.items():
        # The image's rule for a property's variable; a dash and an underscore have longer escapes.
        variable = name.replace("-", "___").replace("_", "__") if "_" in name else name.replace("-", "___")
        container.with_env(f"KAFKA_{variable.replace('.', '_').upper()}", value)
    return Kafka(ContainerRunner("kafka", directory, container), f"{HOST}:{port}")


def postgres(directory: Path, parameters: Mapping[str, str], *, durable: bool) -> Postgres:
    """A server that trusts whoever reaches its loopback port."""
    (port,) = kept_ports(_home(directory, "postgres"), 1)
    lax = {} if durable else {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
    settings = {"max_connections": "200", "shared_buffers": "256MB", "timezone": "UTC", **lax, **parameters}
    container = (
        _container(POSTGRES_IMAGE, 5432, port)
        .with_env("POSTGRES_HOST_AUTH_METHOD", "trust")
        .with_command(["postgres", *(part for name, value in settings.items() for part in ("-c", f"{name}={value}"))])
    )
    return Postgres(ContainerRunner("postgres", directory, container), f"postgresql://postgres@{HOST}:{port}/postgres")


def registry(directory: Path) -> Registry:
    """Apicurio Registry, with its data in a file of the container."""
    (port,) = kept_ports(_home(directory, "registry"), 1)
    container = _container(REGISTRY_IMAGE, 8080, port).with_env(
        "APICURIO_DATASOURCE_URL", "jdbc:h2:file:/tmp/registry/data;WRITE_DELAY=0"
    )
    return Registry(ContainerRunner("registry", directory, container), f"http://{HOST}:{port}/apis/ccompat/v7")


def keep_after_exit() -> None:
    """Tell testcontainers not to remove the containers when this process ends."""
    os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"


def _container(image: str, inside: int, port: int) -> DockerContainer:
    try:
        from testcontainers.core.container import DockerContainer  # noqa: PLC0415
    except ImportError as error:
        raise DevstackError("a docker stack needs the package testcontainers") from error
    container = DockerContainer(image)
    # On the loopback address only, which `with_bind_ports` can't say and the engine's client can.
    container.ports[f"{inside}/tcp"] = (HOST, port)  # type: ignore[assignment]
    return container


def _home(directory: Path, name: str) -> Path:
    home = directory / name
    home.mkdir(exist_ok=True)
    return home
