"""Pictures that people look at, drawn by matplotlib without a window."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dhmm_rl.files import atomic_write


@contextmanager
def save_figure(path: str | Path, size: Any, *, layout: Any = "constrained", **saving: Any) -> Iterator[Figure]:
    """
    Yield a figure, which is written to ``path`` when the block ends.

    :param size: width and height in inches
    :param layout: matplotlib's layout engine
    :param saving: further keywords of ``savefig``
    """
    figure = Figure(figsize=size, layout=layout)
    FigureCanvasAgg(figure)
    yield figure
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, **saving)
