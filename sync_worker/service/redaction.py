"""Takes secrets and control characters out of whatever is shown: logs, errors, the status document.

Must never depend on who wrote a message: drivers quote URLs, and a name may hold a line break
that forges a log line.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

HIDDEN: Final = "***"
_KEY: Final = re.compile(r"password|passwd|secret|token|jaas|database_url", re.IGNORECASE)
_IN_URL: Final = re.compile(r"(://[^\s:@/]*):[^\s\"'<>]*@")
_IN_PAIR: Final = re.compile(
    r"""(\b(?:ssl)?(?:password|passwd)["']?\s*[=:]\s*)("[^"]*"|'(?:[^'\\]|\\.)*'|[^\s,;&"')}]+)""", re.IGNORECASE
)
# All that a terminal or a line reader acts on: C0 without tab, DEL, C1, the Unicode line ends, bidirectional marks and overrides.
_CONTROL: Final = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class Redactor:
    """Replaces known secrets wherever they appear, and what looks like a password in a URL or a `password=` pair."""

    def __init__(self, secrets: Collection[str] = ()) -> None:
        # A short secret (`sync`) is also part of ordinary words: those are left alone, or logs become unreadable.
        patterns = [
            re.escape(text) if len(text) >= 8 else rf"(?<!\w){re.escape(text)}(?!\w)"
            for secret in sorted(secrets, key=len, reverse=True)
            for text in {secret, repr(secret)[1:-1]}
            if text
        ]
        self._known = re.compile("|".join(patterns)) if patterns else None

    def text(self, text: str) -> str:
        """The text without secrets; line breaks stay."""
        if self._known:
            text = self._known.sub(HIDDEN, text)
        if "://" in text:
            text = _IN_URL.sub(rf"\1:{HIDDEN}@", text)
        return _IN_PAIR.sub(rf"\1{HIDDEN}", text)

    def line(self, text: str) -> str:
        """The text without secrets and on one line: control characters as their escapes."""
        return escape_control(self.text(text))

    def mapping(self, values: Mapping[Any, object], clean: Callable[[str], str] | None = None) -> dict[str, Any]:
        """A mapping as plain data without secrets: by what its names say, too. `clean` is `line` unless told."""
        clean = clean or self.line
        return {
            clean(str(key)): HIDDEN if item and _KEY.search(str(key)) else self._value(item, clean)
            for key, item in values.items()
        }

    def _value(self, value: object, clean: Callable[[str], str]) -> object:
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, Mapping):
            return self.mapping(value, clean)
        if isinstance(value, list | tuple | set | frozenset):
            return [self._value(item, clean) for item in value]
        return clean(value if isinstance(value, str) else str(value))


def escape_control(text: str) -> str:
    """The text with each character that could end a line or steer a terminal as its escape."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
