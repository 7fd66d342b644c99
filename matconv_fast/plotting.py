"""Figures and self-contained HTML pages, with plotly (the ``report`` extra). It knows nothing of solves."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST_PROBLEMS = 4  # of a batch, in one figure
MOST_MAPS = 11  # positions of a slider
MOST_POINTS = 2_000  # of a curve: more than a screen is wide
MOST_CELLS = 256  # rows or columns of a heat map


def _plotly() -> Any:
    try:
        import plotly.graph_objects
    except ImportError as error:
        raise ImportError("plots and reports need plotly: pip install 'matconv_fast[report]'") from error
    return plotly.graph_objects


@dataclass(frozen=True)
class Curve:
    """Loss against iteration."""

    name: str
    iterations: Sequence[int]
    losses: Sequence[float]

    @classmethod
    def of(cls, name: str, history: Tensor, every: int = 1, start: int = 0) -> Curve:
        """From a history ``[H]``, thinned evenly where it is longer than a figure can show."""
        history = history[~history.isnan()].cpu()
        step = -(-len(history) // MOST_POINTS) or 1
        keep = sorted({*range(0, len(history), step), len(history) - 1} - {-1})
        return cls(name, [start + every * k for k in keep], [float(history[k]) for k in keep])


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One problem's residual at one iteration."""

    iteration: int
    residual: Tensor
    loss: float


def loss_figure(curves: Sequence[Curve]) -> go.Figure:
    """Loss curves together, on a log axis."""
    go = _plotly()
    figure = go.Figure([go.Scatter(x=c.iterations, y=c.losses, mode="lines", name=c.name) for c in curves])
    figure.update_yaxes(type="log", title="loss", exponentformat="power")
    figure.update_xaxes(title="iteration")
    figure.update_layout(template="plotly_white", height=420, margin={"t": 40}, showlegend=True)
    return figure


def _heatmap(go: Any, snapshot: Snapshot, visible: bool) -> Any:
    R = snapshot.residual[:MOST_CELLS, :MOST_CELLS]
    return go.Heatmap(z=R.tolist(), zmin=-1, zmax=1, colorscale="RdBu", zmid=0, visible=visible, coloraxis="coloraxis")


def maps_figure(maps: dict[str, list[Snapshot]]) -> go.Figure:
    """Residuals ``X @ M - Y`` as heat maps on -1..1, one beside the other, with one slider over the iterations."""
    go = _plotly()
    from plotly.subplots import make_subplots

    figure: Any = make_subplots(1, len(maps), subplot_titles=list(maps))
    count = max(len(found) for found in maps.values())
    for position in range(count):
        for column, found in enumerate(maps.values(), start=1):
            snapshot = found[min(position, len(found) - 1)]
            figure.add_trace(_heatmap(go, snapshot, position == 0), row=1, col=column)
    titles = [
        [f"{name}<br>iteration {s.iteration:,}, loss {s.loss:.3e}" for name, s in _at(maps, position)]
        for position in range(count)
    ]
    steps = []
    for position in range(count):
        visible = [trace // len(maps) == position for trace in range(count * len(maps))]
        annotations = {f"annotations[{i}].text": text for i, text in enumerate(titles[position])}
        iteration = max(s.iteration for _, s in _at(maps, position))
        steps.append({"method": "update", "label": f"{iteration:,}", "args": [{"visible": visible}, annotations]})
    for annotation, text in zip(figure.layout.annotations, titles[0], strict=True):
        annotation.text = text
    for column, found in enumerate(maps.values(), start=1):
        shape = found[0].residual.shape
        axis = "x" if column == 1 else f"x{column}"
        square = {"scaleanchor": axis} if max(shape) <= 4 * min(shape) else {}
        figure.update_yaxes(
            autorange="reversed", constrain="domain", showticklabels=max(shape) <= 20, row=1, col=column, **square
        )
        figure.update_xaxes(showticklabels=max(shape) <= 20, constrain="domain", row=1, col=column)
    figure.update_layout(
        template="plotly_white",
        height=440,
        margin={"t": 90},
        coloraxis={"colorscale": "RdBu", "cmin": -1, "cmax": 1},
        sliders=[{"steps": steps, "currentvalue": {"prefix": "iteration "}, "pad": {"t": 30}}],
    )
    return figure


def _at(maps: dict[str, list[Snapshot]], position: int) -> list[tuple[str, Snapshot]]:
    return [(name, found[min(position, len(found) - 1)]) for name, found in maps.items()]


def problem_names(count: int) -> list[str]:
    """Titles of the problems of a batch that one figure shows: the first `MOST_PROBLEMS`."""
    return ["residual"] if count == 1 else [f"problem {index}" for index in range(min(count, MOST_PROBLEMS))]


def solution_figure(maps: dict[str, list[Snapshot]], curves: Sequence[Curve]) -> go.Figure:
    """Loss curves above, residual heat maps with their slider below, in one figure; see `Solution.plot`."""
    go = _plotly()
    figure: Any = maps_figure(maps)
    figure.update_layout(height=820, legend={"y": 1}, coloraxis_colorbar={"len": 0.45, "y": 0.2})
    for axis in figure.select_yaxes():
        axis.domain = (0.0, 0.4)
    for annotation in figure.layout.annotations:
        annotation.y = 0.41
    for curve in curves:
        figure.add_trace(
            go.Scatter(x=curve.iterations, y=curve.losses, name=curve.name, mode="lines", xaxis="x99", yaxis="y99")
        )
    for step in figure.layout.sliders[0].steps:  # the curves stay
        step.args[0]["visible"] = [*step.args[0]["visible"], *[True] * len(curves)]
    figure.update_layout(
        xaxis99={"anchor": "y99", "title": "iteration", "domain": (0, 1)},
        yaxis99={"anchor": "x99", "type": "log", "title": "loss", "domain": (0.6, 1.0), "exponentformat": "power"},
    )
    return figure


def html_table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """A table; everything in it is escaped."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    head = f"<thead>{line(header, 'th')}</thead>" if header else ""
    return f"<table>{head}<tbody>{''.join(line(row, 'td') for row in rows)}</tbody></table>"


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ padding: .3rem .8rem; text-align: left; border-bottom: 1px solid #ddd }}
</style></head><body><h1>{title}</h1>
{body}
</body></html>
"""


def write_page(path: Path, title: str, sections: Sequence[tuple[str, Any]]) -> Path:
    """A self-contained HTML page: plotly's script is inside, so it opens without a network.

    Args:
        path: where to.
        title: plain text.
        sections: (heading, figure or HTML) in order.
    """
    go = _plotly()
    parts, script = [], True
    for heading, content in sections:
        parts.append(f"<h2>{html.escape(heading)}</h2>")
        if isinstance(content, go.Figure):
            parts.append(content.to_html(full_html=False, include_plotlyjs=script))
            script = False
        else:
            parts.append(content)
    path.write_text(PAGE.format(title=html.escape(title), body="\n".join(parts)), encoding="utf-8")
    return path
