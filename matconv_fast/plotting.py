"""Figures and self-contained HTML pages, with plotly (the ``report`` extra)."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _reference
from .solve.loop import State, run

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from .solve.solution import Solution

MOST_PROBLEMS = 4  # of a batch, in one figure
MOST_MAPS = 11  # stops of a slider
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


def snapshots(solution: Solution, index: int = 0, stops: Sequence[int] | None = None) -> list[Snapshot]:
    """Residuals of one problem over its iterations, from running the solve again with stops: the same bits.

    Args:
        solution: of `solve` or `inv`; one of `iterate` yields its last iterate alone.
        index: of the problem in the flattened batch.
        stops: updates of this call after which to look; None spreads `MOST_MAPS` evenly.

    Raises:
        ValueError: M or Y was changed in place since the solve.
    """
    if solution.problem.changed:
        raise ValueError("M or Y was changed in place since the solve; plot or report before, or solve on a clone")
    final = int(solution.iterations.reshape(-1)[index])
    last = _snapshot(solution, _iterate(solution, index), index, final)
    if solution.state is None:  # of iterate: the distance in its own norm
        last = dataclasses.replace(last, loss=float(solution.loss.reshape(-1)[index]))
    state = solution.start
    if state is None:
        return [last]
    first = int(state.iterations[index])
    if stops is None:
        stops = sorted({round(k * (final - first) / (MOST_MAPS - 1)) for k in range(MOST_MAPS)})
    found, done = [], 0
    silent = dataclasses.replace(
        solution.options, atol=0.0, rtol=0.0, patience=None, record_every=0, progress=False, throw=False
    )
    for stop in stops:
        if first + stop >= final:
            break
        state = _advanced(solution, state, dataclasses.replace(silent, max_iters=stop - done))
        done = stop
        found.append(_snapshot(solution, state.X[index], index, first + stop))
    return [*found, last]


@torch.no_grad()
def _advanced(solution: Solution, state: State, options: Any) -> State:
    return run(solution.problem, state.solver, options, state.going_on()).state


def _iterate(solution: Solution, index: int) -> Tensor:
    """X ``[m, n]`` of one problem, in the orientation that was iterated in."""
    problem = solution.problem
    X = solution.X.mT if problem.left else solution.X
    return X.reshape(problem.size, problem.m, problem.n)[index]


def _snapshot(solution: Solution, X: Tensor, index: int, iteration: int) -> Snapshot:
    problem = solution.problem
    R = _reference.residual(X, *problem.one(index))
    loss = problem.loss_of((R * R).sum(dtype=torch.float64))
    return Snapshot(iteration, (R.mT if problem.left else R).cpu(), float(loss))


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


def _problems(solution: Solution) -> list[tuple[int, str]]:
    count = solution.problem.size
    return [(index, "residual" if count == 1 else f"problem {index}") for index in range(min(count, MOST_PROBLEMS))]


def _curves(solution: Solution) -> list[Curve]:
    history = solution.history.reshape(solution.problem.size, solution.history.shape[-1])
    before = [0] * solution.problem.size if solution.start is None else solution.start.iterations.tolist()
    return [
        Curve.of(
            "loss" if name == "residual" else name, history[index], solution.options.record_every or 1, before[index]
        )
        for index, name in _problems(solution)
    ]


def solution_figure(solution: Solution) -> go.Figure:
    """Loss curve above, residual heat map with its slider below, in one figure; see `Solution.plot`."""
    go = _plotly()
    figure: Any = maps_figure({name: snapshots(solution, index) for index, name in _problems(solution)})
    figure.update_layout(height=820, legend={"y": 1}, coloraxis_colorbar={"len": 0.45, "y": 0.2})
    for axis in figure.select_yaxes():
        axis.domain = (0.0, 0.4)
    for annotation in figure.layout.annotations:
        annotation.y = 0.41
    for curve in _curves(solution):
        figure.add_trace(
            go.Scatter(x=curve.iterations, y=curve.losses, name=curve.name, mode="lines", xaxis="x99", yaxis="y99")
        )
    for step in figure.layout.sliders[0].steps:  # the curves stay
        step.args[0]["visible"] = [*step.args[0]["visible"], *[True] * len(_problems(solution))]
    figure.update_layout(
        xaxis99={"anchor": "y99", "title": "iteration", "domain": (0, 1)},
        yaxis99={"anchor": "x99", "type": "log", "title": "loss", "domain": (0.6, 1.0), "exponentformat": "power"},
    )
    return figure


def direct_comparison(solution: Solution, index: int = 0) -> list[tuple[str, str]]:
    """The iterate beside the direct answer: ``torch.linalg.inv`` of a square M where Y is the identity, else ``lstsq``.

    Both in float64. Rows of (what, value).
    """
    problem = solution.problem
    X, (M, Y) = _iterate(solution, index).double(), problem.one(index)
    norm = torch.linalg.matrix_norm
    if M is None:
        return [("||X - Y||_F", f"{norm(X - Y.double()):.3e}")]
    M, Y = M.double(), Y.double()
    rows = [("||X @ M - Y||_F", f"{norm(X @ M - Y):.3e}")]
    if not (M.isfinite().all() and Y.isfinite().all()) or 0 in (problem.m, problem.n, problem.p):
        return rows
    if problem.identity and problem.n == problem.p:
        determinant = torch.linalg.det(M)
        rows.append(("det(M)", f"{determinant:.6g}"))
        if determinant == 0:
            return [*rows, ("torch.linalg.inv(M)", "does not exist: M is singular")]
        name, direct = "torch.linalg.inv(M)", torch.linalg.inv(M)
    else:  # gelsd alone handles rank deficiency, and is for CPUs alone
        name, direct = "torch.linalg.lstsq", torch.linalg.lstsq(M.mT.cpu(), Y.mT.cpu(), driver="gelsd").solution.mT
        direct = direct.to(M.device)
    rows.append((f"||{name} @ M - Y||_F", f"{norm(direct @ M - Y):.3e}"))
    rows.append((f"largest |X - {name}|", f"{(X - direct).abs().max():.3e}"))
    return rows


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


def write_solution_report(solution: Solution, path: Path) -> Path:
    """See `Solution.report`."""
    problem = solution.problem
    equation = "M @ X = Y" if problem.left else "X @ M = Y"
    facts = [
        ("equation", f"{equation}: X [{problem.m}, {problem.n}], {problem.size} problems, loss {problem.loss}"),
        ("solver", str(solution.state.solver) if solution.state is not None else "the user's update"),
        ("result", repr(solution)),
        ("message", solution.message),
    ]
    sections: list[tuple[str, Any]] = [("Result", html_table(facts))]
    if problem.size and problem.m * problem.p:
        sections.append(("Loss, and residual by iteration", solution_figure(solution)))
        sections.append(("Beside the direct answer", html_table(direct_comparison(solution))))
    return write_page(path, f"matconv_fast: {equation}", sections)
