"""Programs that judge the chart and the alerts, each fetched or built once into the cache that all checkouts share.

Helm and kube-score come from their Go modules, promtool from Debian's package. What is missing on this machine is said with
what to install; a check is never left out in silence.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from devstack.fetch import cache_directory

HELM = "helm"
KUBE_SCORE = "kube-score"
PROMTOOL = "promtool"
PROMETHEUS = "prometheus"
_MODULES = {
    HELM: "helm.sh/helm/v3/cmd/helm@v3.19.0",
    KUBE_SCORE: "github.com/zegl/kube-score/cmd/kube-score@v1.20.0",
}
_GO_PLACES = ("/usr/local/go/bin/go",)


class ToolMissing(Exception):
    """Which program is missing, and what brings it."""


@dataclass(frozen=True, slots=True)
class Tools:
    """Paths of the programs."""

    helm: Path
    kube_score: Path
    promtool: Path


def fetch() -> Tools:
    """All of them. Building Helm takes three minutes, once for each machine and version."""
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "tools.lock"):
        return Tools(_built(HELM), _built(KUBE_SCORE), _of_debian(PROMTOOL))


def _built(name: str) -> Path:
    module = _MODULES[name]
    folder = cache_directory() / f"{name}-{module.rpartition('@')[2]}"
    if not (folder / name).exists():
        go = shutil.which("go") or next((place for place in _GO_PLACES if Path(place).exists()), None)
        if go is None:
            raise ToolMissing(f"{name} is built from its Go module, and there is no Go here: install Go 1.24 or later")
        print(f"building {name} from {module}, once", flush=True)
        with tempfile.TemporaryDirectory(dir=cache_directory(), prefix="building-") as staging:
            _run(f"{name} could not be built", [go, "install", module], GOBIN=staging)
            folder.mkdir(exist_ok=True)
            Path(staging, name).replace(folder / name)
    return folder / name


def prometheus() -> Path:
    """The server itself, for a scrape of real workers."""
    with FileLock(cache_directory() / "tools.lock"):
        return _of_debian(PROMETHEUS)


def _of_debian(name: str) -> Path:
    """A program of Prometheus, this machine's own or the one of Debian's package."""
    if found := shutil.which(name):
        return Path(found)
    folder = cache_directory() / PROMETHEUS
    if not (folder / name).exists():
        if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
            raise ToolMissing(
                f"{name} is missing, and there is no apt-get to fetch Debian's package: install Prometheus"
            )
        with tempfile.TemporaryDirectory(dir=cache_directory(), prefix="unpacked-") as staging:
            download = ["apt-get", "download", "-o", "APT::Sandbox::User=root", PROMETHEUS]
            _run("Prometheus could not be fetched", download, cwd=staging)
            (package,) = Path(staging).glob("prometheus_*.deb")
            _run("Prometheus could not be unpacked", ["dpkg-deb", "--extract", str(package), staging])
            folder.mkdir(exist_ok=True)
            for program in (PROMTOOL, PROMETHEUS):
                Path(staging, "usr/bin", program).replace(folder / program)
    return folder / name


def _run(failure: str, command: list[str], *, cwd: str | None = None, **environment: str) -> None:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ToolMissing(f"{failure}: {done.stderr.strip()[-2000:]}")
