"""Figures and HTML pages, the demo's among them, and what a browser makes of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from problems import well_conditioned

import matconv_fast as mcf
from matconv_fast import _demo, _workloads, plotting
from matconv_fast.solve.snapshots import direct_comparison, snapshots


def test_snapshots_are_iterates_of_the_solve(backend):
    M = well_conditioned(5)
    sol = mcf.solve(M, solver=mcf.HeavyBall(0.3, 0.7), rtol=1e-3)
    found = snapshots(sol, stops=[0, 3, 10])
    assert [s.iteration for s in found] == [0, 3, 10, int(sol.iterations)]
    for snapshot in found:
        torch.testing.assert_close(snapshot.loss, sol.history[snapshot.iteration].item(), rtol=1e-9, atol=0)
    torch.testing.assert_close(found[-1].residual, sol.X @ M - torch.eye(5), rtol=0, atol=1e-15)


def test_snapshots_of_a_resumed_transposed_batch():
    M = well_conditioned(4, 2)
    first = mcf.solve(M, solver=mcf.HeavyBall(), left=True, max_iters=7)
    sol = mcf.solve(M, X0=first, left=True, rtol=1e-4)
    for index in range(2):
        found = snapshots(sol, index)
        assert found[0].iteration == 7
        assert found[-1].iteration == int(sol.iterations[index])
        start = M[index] @ first.X[index] - torch.eye(4)
        torch.testing.assert_close(found[0].residual, start, rtol=0, atol=1e-14)


def test_a_problem_modified_since_is_refused():
    M = well_conditioned(4)
    sol = mcf.solve(M, solver=mcf.HeavyBall())
    M += 1
    with pytest.raises(ValueError, match="M or Y was modified in place since the solve"):
        sol.plot()


def test_curves_are_thinned_and_keep_their_ends():
    curve = plotting.Curve.of("loss", torch.arange(10_001.0), every=3, start=5)
    assert len(curve.iterations) <= plotting.MOST_POINTS + 1
    assert (curve.iterations[0], curve.iterations[-1], curve.losses[-1]) == (5, 30_005, 10_000.0)


def test_plot_shows_the_loss_and_a_map_for_every_stop():
    sol = mcf.solve(well_conditioned(4), solver=mcf.HeavyBall(), rtol=1e-3)
    figure = sol.plot()
    kinds = [trace.type for trace in figure.data]
    steps = figure.layout.sliders[0].steps
    assert kinds.count("scatter") == 1
    assert kinds.count("heatmap") == len(steps) == plotting.MOST_MAPS
    assert figure.layout.coloraxis.cmin == -1
    for position, step in enumerate(steps):
        shown = [k for k, visible in enumerate(step.args[0]["visible"]) if visible]
        assert shown == [position, len(steps)]  # one map, and the curve


@pytest.mark.parametrize(
    "solution",
    [
        lambda: mcf.solve(well_conditioned(4), solver=mcf.HeavyBall(), rtol=1e-3),
        lambda: mcf.solve(well_conditioned(4, 6), solver=mcf.HeavyBall(), record_every=0, max_iters=20),
        lambda: mcf.solve(torch.diag(torch.tensor([1.0, 0.0])), solver=mcf.HeavyBall(), max_iters=50),
        lambda: mcf.solve(torch.ones(2, 3), torch.ones(4, 3), solver=mcf.HeavyBall()),
        lambda: mcf.solve(None, torch.ones(2, 2), solver=mcf.Adam(0.1), max_iters=30, record_every=7),
        lambda: mcf.solve(torch.eye(2), X0=torch.eye(2)),
        lambda: mcf.iterate(lambda A: A / 2, torch.ones(2, 2), torch.zeros(2, 2)),
        lambda: mcf.solve(torch.ones(0, 3, 3), solver=mcf.HeavyBall()),
        lambda: mcf.solve(torch.full((2, 2), torch.nan), solver=mcf.HeavyBall(0.1)),
        lambda: mcf.solve(torch.full((2, 2), torch.nan), torch.ones(2, 2), solver=mcf.HeavyBall(0.1)),
        lambda: mcf.solve(torch.eye(3, 2), solver=mcf.HeavyBall()),
        lambda: mcf.solve(torch.ones(0, 3), torch.ones(2, 3), solver=mcf.HeavyBall(), max_iters=4),
        lambda: mcf.solve(torch.ones(3, 3), torch.ones(0, 3), solver=mcf.HeavyBall()),
        lambda: mcf.solve(torch.ones(3, 0), torch.ones(2, 0), solver=mcf.HeavyBall()),
    ],
    ids=[
        "plain",
        "batch",
        "singular",
        "rectangular",
        "adam",
        "no iteration",
        "iterate",
        "no problem",
        "nan",
        "nan and Y",
        "left inverse",
        "no unknowns",
        "no rows",
        "no columns",
    ],
)
def test_any_solution_has_a_report(tmp_path, solution):
    sol = solution()
    written = sol.report(tmp_path / "run.html")
    text = written.read_text()
    assert "<script" in text or 0 in (sol.problem.size, sol.problem.m, sol.problem.p)
    assert 'src="http' not in text  # opens without a network
    assert "message" in text


def test_the_comparison_is_with_the_direct_inverse():
    M = well_conditioned(4)
    rows = dict(direct_comparison(mcf.solve(M, solver=mcf.HeavyBall(), rtol=1e-6)))
    assert float(rows["det(M)"]) == pytest.approx(float(torch.linalg.det(M)), rel=1e-5)
    assert float(rows["largest |X - torch.linalg.inv(M)|"]) < 1e-5
    assert float(rows["||torch.linalg.inv(M) @ M - Y||_F"]) < 1e-13
    singular = dict(direct_comparison(mcf.solve(torch.zeros(2, 2), solver=mcf.HeavyBall(0.1), max_iters=3)))
    assert "does not exist" in singular["torch.linalg.inv(M)"]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    quiet = "no-first-run disable-background-networking disable-component-update disable-sync disable-quic"
    for flag in ("headless", "no-sandbox", "disable-gpu", *quiet.split(), f"user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(f"--{flag}")
    options.add_argument("--window-size=1200,2400")
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


def test_the_demos_report_in_a_browser(browser, tmp_path):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    runs = _workloads.notebook_runs()
    _demo.write_report(tmp_path / "report.html", [], runs, [_demo.notebook_job(run).ours() for run in runs])
    browser.get((tmp_path / "report.html").as_uri())
    curves, maps = WebDriverWait(browser, 30).until(
        lambda page: len(found := page.find_elements(By.CSS_SELECTOR, ".js-plotly-plot")) == 2 and found
    )
    assert len(curves.find_elements(By.CSS_SELECTOR, ".scatterlayer .trace path.js-line")) == 4
    assert browser.execute_script("return arguments[0].layout.yaxis.type", curves) == "log"

    def titles():
        return [e.text for e in maps.find_elements(By.CSS_SELECTOR, ".annotation-text")]

    def shown():
        return browser.execute_script(
            "return arguments[0].data.map((t, k) => t.visible ? k : -1).filter(k => k >= 0)", maps
        )

    assert shown() == [0, 1, 2, 3]
    assert "iteration 0, loss 1.665e+00" in titles()[0]
    grip = maps.find_element(By.CSS_SELECTOR, ".slider-grip-rect")
    rail = maps.find_element(By.CSS_SELECTOR, ".slider-rail-rect")
    ActionChains(browser).drag_and_drop_by_offset(grip, rail.size["width"] // 2, 0).perform()
    WebDriverWait(browser, 30).until(lambda _: shown() == [20, 21, 22, 23])
    assert "iteration 5,000" in titles()[0]
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
