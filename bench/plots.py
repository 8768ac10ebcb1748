"""A case's figures as pictures: a bar per variant, with a line from the worst round to the best, a panel per group.

Must show every group that the tables show, and start each axis at nothing.
"""

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure as Picture

from bench.frame import Case, Figure
from bench.results import Result

_ACROSS = 4


def drawn(case: Case) -> list[Figure]:
    """The figures of a case that are drawn."""
    return [figure for figure in case.figures if figure.name in (case.plots or (case.figures[0].name,))]


def draw(case: Case, result: Result, figure: Figure, path: Path) -> bool:
    """SVG, the same bytes for the same result; False where nothing of this figure was measured."""
    groups = [
        group for group in result.groups
        if any(result.spread(group, variant, figure.name) for variant in result.variants(group))
    ]  # fmt: skip
    if not groups:
        return False
    across = min(_ACROSS, len(groups))
    down = -(-len(groups) // across)
    variants = list(
        dict.fromkeys(
            variant
            for group in groups
            for variant in result.variants(group)
            if result.spread(group, variant, figure.name)
        )
    )
    with mpl.rc_context({"svg.hashsalt": f"{case.name} {figure.name}", "font.size": 7, "svg.fonttype": "none"}):
        picture = Picture(figsize=(3.2 * across + 1.5, (0.9 + 0.22 * len(variants)) * down + 0.4), layout="constrained")
        panels = picture.subplots(down, across, squeeze=False, sharey=True)
        for panel in panels.flat[len(groups) :]:
            panel.set_axis_off()
        for panel, group in zip(panels.flat, groups, strict=False):
            for n, variant in enumerate(variants):
                spread = result.spread(group, variant, figure.name)
                if spread is None:
                    continue
                color = "#9aa5b1" if variant == case.reference else "#2f6f9f"
                panel.barh(n, spread.median, color=color, height=0.7)
                panel.plot([spread.low, spread.high], [n, n], color="black", linewidth=1)
            panel.set_title(group, fontsize=7)
            panel.set_yticks(range(len(variants)), variants)
            panel.set_xlim(left=0)
            panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
            panel.tick_params(axis="x", labelrotation=20)
        panels.flat[0].invert_yaxis()
        picture.supxlabel(f"{figure.heading}: median, worst to best round", fontsize=7)
        picture.savefig(path, format="svg", metadata={"Date": None})
    return True
