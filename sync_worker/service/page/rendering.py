"""Makes HTML of the view: one self-contained answer, whose script and style are known to the browser by their hashes.

Everything is escaped by the template engine; nothing is marked safe but the page's own script and style. Must never put a
value from outside into a script, a style or an attribute's name.
"""

import base64
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.resources import files
from typing import Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from sync_worker import __version__
from sync_worker.service.health import Health
from sync_worker.service.page import words
from sync_worker.service.page.observing import Observer
from sync_worker.service.page.view import cause_word, change_word, short, state_class, view_of

_FILES: Final = files("sync_worker.service.page")
_STYLE: Final = (_FILES / "style.css").read_text("utf-8")
_SCRIPT: Final = (_FILES / "script.js").read_text("utf-8")


def _now() -> datetime:
    return datetime.now(UTC)


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        f"style-src {_hash(_STYLE)}",
        f"script-src {_hash(_SCRIPT)}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


class Page:
    """The page of one worker. `holder` and `group` say which one."""

    def __init__(
        self, observer: Observer, health: Health, *, holder: str, group: str, now: Callable[[], datetime] = _now
    ) -> None:
        self._observer = observer
        self._health = health
        self._holder = holder
        self._group = group
        self._now = now
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        environment.filters |= {
            "number": words.number,
            "rate": words.rate,
            "age": self._age,
            "moment": lambda text: words.day_and_time(datetime.fromisoformat(text)),
            "short": short,
            "cause_word": cause_word,
            "change_word": change_word,
            "state_class": state_class,
        }
        self._template = environment.from_string((_FILES / "page.html").read_text("utf-8"))

    def html(self) -> str:
        """As it is now, from what was observed; asks nobody."""
        view = view_of(self._observer.look(), self._health, holder=self._holder, group=self._group, now=self._now())
        return self._template.render(
            view=view,
            version=__version__,
            style=Markup(_STYLE),  # noqa: S704 - the page's own file
            script=Markup(_SCRIPT),  # noqa: S704 - the page's own file
        )

    def _age(self, moment: str) -> str:
        return words.duration(max(0.0, (self._now() - datetime.fromisoformat(moment)).total_seconds()))
