"""What a latent chain has become, as a picture."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.patches import Circle, FancyArrowPatch
from numpy.typing import NDArray

from dhmm_rl.languages.language import Language
from dhmm_rl.languages.latent_automaton import LatentAutomaton
from dhmm_rl.plotting import save_figure

RADIUS = 0.36
"""Of a state's circle, in inches."""
MARGIN = 0.9
"""Around the circles' centers, in inches; long labels widen it."""
MAX_ARROWS = 40
"""Nobody can read a picture of more."""
LISTED = 5
"""So many tokens or latent states are named at most, before a …"""

Point = NDArray[np.float64]


def save_automaton(automaton: LatentAutomaton, language: Language[Any], path: Path) -> None:
    """
    Draw an automaton's states on a ring and its transitions as arrows.

    A state shows the token that it predicts and, below, its latent states. An arrow shows its tokens; where the language is not
    deterministic, each with its probability: that the state predicts it and the belief is then there.

    :param path: of the PNG
    """
    number = len(automaton.members)
    ring = max(1.2, 0.26 * number, 0.06 * len(automaton.arrows())) * (number > 1)
    angles = 2 * np.pi * np.arange(number) / number
    outward = np.stack([-np.cos(angles), np.sin(angles)], axis=1)
    places = ring * outward
    low, high = places.min(axis=0) - MARGIN, places.max(axis=0) + MARGIN
    with save_figure(path, high - low, layout=None, bbox_inches="tight") as figure:
        axes = figure.add_axes((0, 0, 1, 1), xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        axes.axis("off")
        circles = [Circle((x, y), RADIUS, facecolor="#eef2fa", edgecolor="black", zorder=2) for x, y in places]
        for circle, members, predicted in zip(circles, automaton.members, automaton.predicted, strict=True):
            axes.add_patch(circle)
            x, y = circle.center
            token = language.tokens[int(predicted.argmax())]
            states = _listed(list(map(str, members)), " ")
            axes.text(x, y + 0.04, token, ha="center", va="center", fontsize=min(11, 62 / len(token)), parse_math=False)
            axes.text(x, y - 0.18, states, ha="center", va="center", fontsize=min(6, 70 / len(states)), color="dimgray")

        for (source, target), ids in automaton.arrows().items():
            begin, end, bend, along, around = places[source], places[target], -0.2, 0.42, np.zeros(2)
            edges: dict[str, Any] = {"patchA": circles[source], "patchB": circles[target]}
            if source == target:  # from the circle's edge out and back
                around, edges = outward[source], {}
                turn = RADIUS * np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
                begin, end, bend, along = begin + turn @ around, end + turn.T @ around, -2.5, 0.5
            axes.add_patch(
                FancyArrowPatch(
                    tuple(begin),
                    tuple(end),
                    connectionstyle=f"arc3,rad={bend}",
                    **edges,
                    shrinkA=0,
                    shrinkB=0,
                    arrowstyle="-|>",
                    mutation_scale=12,
                    color="black",
                )
            )
            names = [language.tokens[id_] for id_ in ids]
            if not language.deterministic:
                shares = (automaton.predicted[source, ids] * automaton.moves[source, ids, target]).tolist()
                names = [f"{name} {share:.2f}" for name, share in zip(names, shares, strict=True)]
            x, y = _on_curve(begin, end, bend, along) + 0.05 * around
            axes.text(
                x,
                y,
                _listed(names, ", " if language.deterministic else "\n"),
                ha=("right", "center", "left")[1 + round(around[0])],
                va=("top", "center", "bottom")[1 + round(around[1])],
                fontsize=9,
                parse_math=False,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
                zorder=3,
            )


def _on_curve(begin: Point, end: Point, bend: float, along: float) -> Point:
    """A point of matplotlib's ``arc3``, a quadratic Bézier curve; ``along`` goes from 0 to 1."""
    x, y = end - begin
    control = (begin + end) / 2 + bend * np.array([y, -x])
    return (1 - along) ** 2 * begin + 2 * along * (1 - along) * control + along**2 * end


def _listed(names: list[str], between: str) -> str:
    return between.join(names[:LISTED] + ["…"] * (len(names) > LISTED))
