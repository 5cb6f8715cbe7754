"""What is drawn, and how often."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from neurofoundry.runtime.tracking import Tracker
from tests.evaluate.conftest import TASKS, run, scans_table, write_inputs
from tests.support.page import Page


class Recorder(Tracker):
    """Notes the figures that it is to record."""

    def __init__(self) -> None:
        super().__init__()
        self.figures: dict[str, str] = {}

    @property
    def records(self) -> bool:
        return True

    def figure(self, name: str, svg: str, *, step: int) -> None:
        self.figures[name] = svg


def test_every_figure_is_drawn_once_also_where_the_tracker_records_it(tmp_path, monkeypatch):
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **how: (drawn.append(self), save(self, *args, **how))
    )
    tasks = {name: TASKS[name] for name in ("sex", "age")}
    folders = write_inputs(
        tmp_path / "in", scans_table(80), tasks=tasks, skill={"scratch": (1, 1), "simclr": (2, 2)}
    )
    tracker = Recorder()
    run(folders, tmp_path / "out", tasks=tasks, tracker=tracker)
    page = Page(tmp_path / "out/report.html").html
    # Three curves of sex and one of age for each initialization, and one of the pretraining.
    assert len(drawn) == page.count('<svg role="img"') == 2 * (3 + 1) + 1
    assert len(tracker.figures) == len(drawn) - 1
    assert all(svg in page for svg in tracker.figures.values())


def test_every_initialization_has_a_reliability_plot_of_its_own(evaluated, page):
    points = pd.read_csv(evaluated.dir / "plots/reliability.tsv", sep="\t")
    wanted = points[points["split"] == "test"].groupby(["task", "init"]).ngroups
    assert page.html.count(': stated and observed risk"') == wanted == 3 * 4
