"""Plots of the automaton of a latent chain."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch
from numpy.typing import NDArray

from dhmm_rl.languages.language import Language
from dhmm_rl.languages.latent_automaton import LatentAutomaton
from dhmm_rl.plotting import save_figure

RADIUS = 0.36
"""Radius of a state's circle in inches."""
MARGIN = 0.9
"""Margin around the centers of the circles in inches. Long labels make it wider."""
MAX_ARROWS = 40
"""Largest number of arrows in a readable plot."""
MAX_NAMES = 5
"""Largest number of tokens or latent states in a label; the others become …"""

Point = NDArray[np.float64]


def save_automaton(automaton: LatentAutomaton, language: Language[Any], path: Path) -> None:
    """
    Plot an automaton with its states on a ring and its transitions as arrows.

    A state shows the token that it predicts and, below, its latent states. An arrow shows its tokens. If the language is not
    deterministic, each token has a probability: that the state predicts it and the belief is then in the arrow's target.

    :param automaton: automaton to plot
    :param language: language of the automaton's tokens
    :param path: path of the PNG file
    """
    number = len(automaton.members)
    ring = max(1.2, 0.26 * number, 0.06 * len(automaton.arrows())) * (number > 1)
    angles = 2 * np.pi * np.arange(number) / number
    outward = np.stack([-np.cos(angles), np.sin(angles)], axis=1)
    centers = ring * outward
    low, high = centers.min(axis=0) - MARGIN, centers.max(axis=0) + MARGIN
    with save_figure(path, high - low, layout=None, bbox_inches="tight") as figure:
        axes = figure.add_axes((0, 0, 1, 1), xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        axes.axis("off")
        circles = [Circle((x, y), RADIUS, facecolor="#eef2fa", edgecolor="black", zorder=2) for x, y in centers]
        for circle, members, predicted in zip(circles, automaton.members, automaton.predicted, strict=True):
            _draw_state(axes, circle, members, language.tokens[int(predicted.argmax())])
        for (source, target), ids in automaton.arrows().items():
            names = [language.tokens[id_] for id_ in ids]
            if not language.deterministic:
                probabilities = (automaton.predicted[source, ids] * automaton.moves[source, ids, target]).tolist()
                names = [f"{name} {probability:.2f}" for name, probability in zip(names, probabilities, strict=True)]
            label = _join_names(names, ", " if language.deterministic else "\n")
            if source == target:
                _draw_loop(axes, centers[source], outward[source], label)
            else:
                _draw_arrow(axes, circles[source], circles[target], label)


def _draw_state(axes: Axes, circle: Circle, members: Sequence[int], token: str) -> None:
    axes.add_patch(circle)
    x, y = circle.center
    states = _join_names([str(member) for member in members], " ")
    axes.text(x, y + 0.04, token, ha="center", va="center", fontsize=min(11, 62 / len(token)), parse_math=False)
    axes.text(x, y - 0.18, states, ha="center", va="center", fontsize=min(6, 70 / len(states)), color="dimgray")


def _draw_arrow(axes: Axes, source: Circle, target: Circle, label: str) -> None:
    """Draw a slightly bent arrow between two states. Matplotlib cuts it off at their circles."""
    begin, end = np.array(source.center), np.array(target.center)
    _draw_curve(axes, begin, end, bend=-0.2, patchA=source, patchB=target)
    _draw_label(axes, _on_curve(begin, end, -0.2, 0.42), np.zeros(2), label)


def _draw_loop(axes: Axes, center: Point, outward: Point, label: str) -> None:
    """Draw an arrow from the edge of a state's circle out of the ring and back."""
    turn = RADIUS * np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    begin, end = center + turn @ outward, center + turn.T @ outward
    _draw_curve(axes, begin, end, bend=-2.5)
    _draw_label(axes, _on_curve(begin, end, -2.5, 0.5) + 0.05 * outward, outward, label)


def _draw_curve(axes: Axes, begin: Point, end: Point, bend: float, **edges: Any) -> None:
    style: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 12, "color": "black", "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(tuple(begin), tuple(end), connectionstyle=f"arc3,rad={bend}", **edges, **style))


def _draw_label(axes: Axes, position: Point, outward: Point, label: str) -> None:
    """Write a label at a position, or next to it in the direction ``outward``."""
    x, y = position
    axes.text(
        x,
        y,
        label,
        ha=("right", "center", "left")[1 + round(outward[0])],
        va=("top", "center", "bottom")[1 + round(outward[1])],
        fontsize=9,
        parse_math=False,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        zorder=3,
    )


def _on_curve(begin: Point, end: Point, bend: float, along: float) -> Point:
    """Return a point of matplotlib's ``arc3``, a quadratic Bézier curve; ``along`` goes from 0 to 1."""
    x, y = end - begin
    control = (begin + end) / 2 + bend * np.array([y, -x])
    return (1 - along) ** 2 * begin + 2 * along * (1 - along) * control + along**2 * end


def _join_names(names: list[str], between: str) -> str:
    return between.join(names[:MAX_NAMES] + ["…"] * (len(names) > MAX_NAMES))
