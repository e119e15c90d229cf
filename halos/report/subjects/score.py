"""Score of each method by a judge, whole and by criterion."""

from __future__ import annotations

from halos.report.lazy import mpl, pd
from halos.report.measures import measures, measures_of
from halos.report.panels import PANEL, draw_points, empty, limits_of, method_grid, panel_title, panels_of, part_of
from halos.report.results import SCORE, WIN, Results
from halos.report.subject import Outline, Subject, subject
from halos.report.words import NO_JUDGE, interval_kind, metric_title


@subject
class Score(Subject):
    figure = "score"

    def shows(self, grid: Outline) -> bool:
        return any(not judge.is_asked for judge in grid.judges)

    def frame(self, results: Results) -> pd.DataFrame:
        """Scores and their criteria over all seeds, with interval, and seed by seed."""
        frame = measures(results)
        return frame[frame["measure"] != WIN]

    def draw(self, results: Results, frame: pd.DataFrame) -> mpl.figure.Figure:
        """A row per judge, dataset and model; a column for the score and one for each criterion; dashed: the
        baseline."""
        if frame.empty:
            return empty(NO_JUDGE if not results.judges else "No judge of this grid gives scores.")
        panels = panels_of(frame)
        columns = max(len(measures_of(results, ids[0])) - 1 for ids in panels)
        figure, axes = method_grid(results, len(panels), columns, width=1.9, row=0.19 if len(panels) < 4 else 0.155)
        for row, ids in zip(axes, panels, strict=True):
            of_judge = frame.loc[frame["judge"] == ids[0], ["mean", "low", "high", "baseline"]]
            limits = limits_of(of_judge.to_numpy().flat)
            names = measures_of(results, ids[0])[1:]
            for ax, measure in zip(row, names, strict=False):
                part = part_of(frame, (*PANEL, "measure"), (*ids, measure))
                draw_points(results, ax, part, at=part["baseline"].mean())
                name = results.score_name(ids[0]).capitalize() if measure == SCORE else metric_title(measure)
                ax.set(xlim=limits, title=name)
            for ax in row[len(names) :]:
                ax.remove()
            if len(panels) > 1:
                row[0].set_title(f"{panel_title(results, ids)}: {results.score_name(ids[0])}")
        kinds = " or ".join(dict.fromkeys(results.score_name(ids[0]) for ids in panels))
        figure.supxlabel(f"{kinds}; dashed: the baseline's own\n({interval_kind(results, short=True)})", fontsize=8)
        return figure
