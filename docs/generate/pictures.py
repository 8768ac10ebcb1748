"""The pictures of docs/images that are drawn, not taken: boxes and arrows as SVG, with no font, script or picture from elsewhere.

`python -m docs.generate` writes them with the pages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from xml.sax.saxutils import escape

_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1f2933}.s{font-size:12px;fill:#52606d}.b{font-weight:600}"
    ".t{fill:#e6f4f1;stroke:#0f766e}.w{fill:#fff;stroke:#334e68}.d{fill:#fdf3e1;stroke:#b7791f}.g{fill:#f5f7fa;stroke:#bcccdc}"
    "rect{stroke-width:1.5}path{fill:none;stroke:#334e68;stroke-width:1.8}"
)
_HEAD = (
    '<defs><marker id="a" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto-start-reverse">'
    '<path d="M0 0L10 5L0 10z" style="fill:#334e68;stroke:none"/></marker></defs>'
)


@dataclass(frozen=True, slots=True)
class Box:
    """A box with a title and lines below; kind: t(opic), w(orker), d(atabase), g(round). `foot`: a ground's title is below."""

    x: int
    y: int
    width: int
    height: int
    kind: str
    title: str
    lines: tuple[str, ...] = ()
    foot: bool = False

    def svg(self) -> str:
        """The box; the title of a ground stands at its top or foot, others in the middle."""
        rect = (
            f'<rect class="{self.kind}" x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="8"/>'
        )
        top = self.y + self.height // 2 - 9 * len(self.lines) + 5
        if self.kind == "g":
            top = self.y + (self.height - 12 if self.foot else 22)
        middle = self.x + self.width // 2
        texts = [f'<text class="b" x="{middle}" y="{top}" text-anchor="middle">{escape(self.title)}</text>']
        texts += [
            f'<text class="s" x="{middle}" y="{top + 18 * n}" text-anchor="middle">{escape(line)}</text>'
            for n, line in enumerate(self.lines, 1)
        ]
        return rect + "".join(texts)


@dataclass(frozen=True, slots=True)
class Arrow:
    """A line with a head at its end, and words near its middle, moved by `aside`."""

    x1: int
    y1: int
    x2: int
    y2: int
    words: str = ""
    aside: int = 0

    def svg(self) -> str:
        """A straight arrow."""
        line = f'<path d="M{self.x1} {self.y1}L{self.x2} {self.y2}" marker-end="url(#a)"/>'
        x, y = (self.x1 + self.x2) // 2 + self.aside, (self.y1 + self.y2) // 2 - 7
        return line + (
            f'<text class="s" x="{x}" y="{y}" text-anchor="middle">{escape(self.words)}</text>' * bool(self.words)
        )


def picture(width: int, height: int, title: str, parts: Iterable[Box | Arrow]) -> str:
    """An SVG document on a light ground, to be read on a dark page, too."""
    body = "\n".join(part.svg() for part in parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f'<style>{_STYLE}</style>{_HEAD}<rect width="{width}" height="{height}" rx="12" fill="#fff"/>\n{body}\n</svg>\n'
    )


def architecture() -> str:
    """Topics, the three rooms, PostgreSQL, and what comes out."""
    return picture(
        980,
        360,
        "Input topics, the worker's three rooms, PostgreSQL, output topics",
        [
            Box(250, 20, 480, 150, "g", "worker (as many as the inputs have partitions)"),
            Box(250, 230, 480, 110, "g", "PostgreSQL, schema sync_worker", foot=True),
            Box(20, 30, 190, 40, "t", "segments.membership"),
            Box(20, 85, 190, 40, "t", "enrollment.methods"),
            Box(20, 140, 190, 40, "t", "enrollment.sources"),
            Box(270, 65, 120, 75, "w", "intake", ("bytes → facts",)),
            Box(430, 65, 120, 75, "w", "enrollment", ("facts → rows",)),
            Box(590, 65, 120, 75, "w", "outbox", ("rows → events",)),
            Box(270, 250, 120, 50, "d", "positions"),
            Box(430, 250, 120, 50, "d", "facts, rows"),
            Box(590, 250, 120, 50, "d", "outbox"),
            Box(775, 30, 185, 40, "t", "enrollment.changes"),
            Box(775, 85, 185, 40, "t", "dead-letters"),
            Box(775, 140, 185, 40, "t", "cursor"),
            Arrow(210, 50, 268, 85),
            Arrow(210, 105, 268, 102),
            Arrow(210, 160, 268, 120),
            Arrow(390, 102, 428, 102),
            Arrow(490, 140, 490, 248),
            Arrow(450, 140, 345, 248, "one transaction", aside=-55),
            Arrow(530, 140, 620, 248),
            Arrow(670, 248, 670, 142, "windows", aside=30),
            Arrow(710, 85, 773, 50),
            Arrow(710, 102, 773, 105),
            Arrow(710, 120, 773, 160),
        ],
    )


def exactly_once() -> str:
    """What is committed together, on either side."""
    return picture(
        980,
        300,
        "What one transaction holds on the way in and on the way out",
        [
            Box(20, 20, 430, 260, "g", "in: one PostgreSQL transaction"),
            Box(530, 20, 430, 260, "g", "out: a window"),
            Box(45, 65, 180, 60, "d", "position 4711 → 6711", ("only if it is 4711",)),
            Box(245, 65, 180, 60, "d", "facts", ("the newest version wins",)),
            Box(245, 145, 180, 60, "d", "enrollments", ("by the rule, where it differs",)),
            Box(245, 220, 180, 45, "d", "outbox: what changed"),
            Box(
                45,
                145,
                180,
                120,
                "w",
                "fenced or crashed?",
                ("all of it or nothing:", "read the position", "and go on there"),
            ),
            Arrow(335, 125, 335, 143),
            Arrow(335, 205, 335, 218),
            Arrow(425, 243, 553, 95),
            Box(555, 65, 180, 60, "d", "window 12: from, to", ("committed first",)),
            Box(
                555,
                160,
                380,
                105,
                "t",
                "one Kafka transaction",
                (
                    "EnrollmentChanged, in commit order per key",
                    "cursor: window 12, last id",
                    "a successor reads the cursor and goes on there",
                ),
            ),
            Box(755, 65, 180, 60, "w", "one leader", ("others are fenced by Kafka",)),
            Arrow(645, 125, 645, 158),
            Arrow(845, 125, 845, 158),
        ],
    )
