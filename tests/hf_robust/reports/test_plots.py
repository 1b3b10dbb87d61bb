import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from hf_common.files import save_figure
from hf_robust.reports.matrix_plot import plot_transition_matrices
from hf_robust.reports.plots import plot_accuracy_vs_noise, plot_curves, plot_runs
from hf_robust.reports.style import STYLES
from hf_robust.reports.tables import details_table, results_table
from tests.hf_robust.reports.samples import run


def lines(axes):
    return {line.get_label(): line for line in axes.lines}


def texts(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def solid(axes):
    return {label: line for label, line in lines(axes).items() if not label.startswith("_")}


def dashed(axes):
    return [line for line in axes.lines if line.get_linestyle() == "--"]


def error_bars(axes):
    """(colour, x, low, high) of every error bar."""
    bars = []
    for container in axes.containers:
        _, _, (segments,) = container.lines
        bars += [(segment[0][0], segment[0][1], segment[1][1]) for segment in segments.get_segments()]
    return sorted(bars)


# --- one run -------------------------------------------------------------------------------------------------------


def test_curves_show_the_history_and_mark_the_best():
    result = run(train_clean_accuracy=(0.3, 0.6, 0.5), train_memorised=(0.1, 0.4, 0.9))
    figure = plot_curves(result)
    test, train = figure.axes
    assert figure.get_suptitle() == "ce on symmetric_40, cnn_small, seed 0"
    assert (test.get_xlabel(), test.get_ylabel()) == ("Epoch", "Test accuracy (%)")
    assert (train.get_xlabel(), train.get_ylabel()) == ("Epoch", "Fitted (%)")
    assert {name: line.get_xydata().tolist() for name, line in lines(test).items()} == {
        "last 40.0 %": [[1, 20], [2, 50], [3, 40]],
        "best 50.0 %, epoch 2": [[2, 50]],
    }
    clean, wrong = lines(train).values()
    assert "clean label" in clean.get_label() and "memorised" in wrong.get_label()
    assert clean.get_xydata().tolist() == [[1, 30], [2, 60], [3, 50]]
    assert wrong.get_xydata().tolist() == [[1, 10], [2, 40], [3, 90]]


def test_curves_leave_out_what_is_unknown():
    (test,) = plot_curves(run()).axes
    assert test.get_title() == "Clean test set"
    unknown = run(train_clean_accuracy=(None,) * 3, train_memorised=(None,) * 3)
    assert len(plot_curves(unknown).axes) == 1
    _, train = plot_curves(run(noise="clean", train_clean_accuracy=(0.3, 0.6, 0.5))).axes
    assert len(train.lines) == 1
    _, gaps = plot_curves(run(train_clean_accuracy=(0.3, None, 0.5))).axes
    assert gaps.lines[0].get_xydata().tolist() == [[1, 30], [3, 50]]


def test_the_first_of_equal_best_epochs_is_marked():
    _, best = plot_curves(run(test=(0.5, 0.5, 0.4))).axes[0].lines
    assert best.get_xydata().tolist() == [[1, 50]]


# --- several runs --------------------------------------------------------------------------------------------------


def test_runs_have_a_column_a_noise_and_a_line_a_loss():
    results = [
        run("ce", "asymmetric_40", test=(0.1, 0.2, 0.3), train_memorised=(0.1, 0.5, 0.9)),
        run("nce + rce", "asymmetric_40", test=(0.1, 0.3, 0.4), train_memorised=(0.1, 0.1, 0.1)),
        run("ce", "symmetric_60", test=(0.2, 0.2, 0.2), train_memorised=(0.3, 0.3, 0.3)),
        run("ce", "clean", test=(0.6, 0.7, 0.8)),
        run("ce", "symmetric_20", test=(0.5, 0.5, 0.5), train_memorised=(0.2, 0.2, 0.2)),
    ]
    figure = plot_runs(results)
    top, bottom = figure.axes[:4], figure.axes[4:]
    assert [axes.get_title() for axes in top] == ["clean", "symmetric_20", "symmetric_60", "asymmetric_40"]
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "Test accuracy (%)", "", "", "", "Wrong labels memorised (%)", "", "", "",
    ]  # fmt: skip
    assert [axes.get_xlabel() for axes in figure.axes] == [""] * 4 + ["Epoch"] * 4
    assert texts(figure) == ["ce", "nce+rce"]
    assert lines(top[3])["ce"].get_xydata().tolist() == [[1, 10], [2, 20], [3, 30]]
    assert lines(top[3])["nce+rce"].get_xydata().tolist() == [[1, 10], [2, 30], [3, 40]]
    assert lines(bottom[3])["ce"].get_xydata().tolist() == [[1, 10], [2, 50], [3, 90]]
    assert not bottom[0].lines and [text.get_text() for text in bottom[0].texts] == ["no wrong labels known"]


def test_runs_without_known_wrong_labels_have_one_row():
    (axes,) = plot_runs([run(), run("nce")]).axes
    assert list(lines(axes)) == ["ce", "nce"]
    assert not axes.collections  # one seed: no band


def test_runs_average_over_seeds_with_a_band_from_lowest_to_highest():
    seeds = [(0.1, 0.2, 0.3), (0.2, 0.4, 0.6), (0.3, 0.3, 0.3)]
    (axes,) = plot_runs([run(seed=s, test=test) for s, test in enumerate(seeds)]).axes
    (line,), (band,) = axes.lines, axes.collections
    np.testing.assert_allclose(line.get_xydata(), [[1, 20], [2, 30], [3, 40]])
    corners = {(x, round(y, 6)) for x, y in band.get_paths()[0].vertices.tolist()}
    assert corners == {(1, 10), (1, 30), (2, 20), (2, 40), (3, 30), (3, 60)}


def test_models_are_not_mixed():
    results = [run(model="cnn8", test=(0.8,)), run(model="cnn_small", test=(0.4,))]
    panels = {axes.get_title(): axes.lines[0].get_ydata().tolist() for axes in plot_runs(results).axes}
    assert panels == {"symmetric_40, cnn8": [80], "symmetric_40, cnn_small": [40]}
    panels = {
        axes.get_title(): solid(axes)["ce"].get_ydata().tolist() for axes in plot_accuracy_vs_noise(results).axes
    }
    assert panels == {"symmetric noise, cnn8": [80], "symmetric noise, cnn_small": [40]}


# --- accuracy against noise ----------------------------------------------------------------------------------------


def test_accuracy_against_noise():
    by_noise = {
        "clean": (0.9, 0.9),
        "symmetric_60": (0.5, 0.3),
        "symmetric_20": (0.8, 0.7),
        "asymmetric_40": (0.7, 0.6),
    }
    figure = plot_accuracy_vs_noise([run("ce", noise, test=test) for noise, test in by_noise.items()])
    symmetric, asymmetric = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["symmetric noise", "asymmetric noise"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["Noise rate (%)"] * 2
    assert [axes.get_ylabel() for axes in figure.axes] == ["Test accuracy (%)", ""]
    np.testing.assert_allclose(solid(symmetric)["ce"].get_xydata(), [[0, 90], [20, 70], [60, 30]])
    np.testing.assert_allclose(solid(asymmetric)["ce"].get_xydata(), [[0, 90], [40, 60]])
    (best,) = dashed(symmetric)
    np.testing.assert_allclose(best.get_xydata(), [[0, 90], [20, 80], [60, 50]])
    assert best.get_color() == solid(symmetric)["ce"].get_color()
    assert not symmetric.containers  # one seed: no error bars
    assert texts(figure) == ["ce", "last epoch", "best epoch"]


def test_a_single_rate_has_one_tick_and_a_mark_for_the_best():
    (axes,) = plot_accuracy_vs_noise([run(), run(loss="gce")]).axes
    assert axes.get_xticks().tolist() == [40]
    assert [line.get_markersize() for line in dashed(axes)] == [16, 16]
    (axes,) = plot_accuracy_vs_noise([run(), run(noise="symmetric_20")]).axes
    assert [line.get_markersize() for line in dashed(axes)] != [16]


def test_error_bars_are_the_standard_deviation_over_seeds():
    last = [0.5, 0.6, 0.4]
    results = [run("ce", "symmetric_40", seed=s, test=(0.7, value)) for s, value in enumerate(last)]
    (axes,) = plot_accuracy_vs_noise([*results, run("ce", "symmetric_20", test=(0.8,))]).axes
    np.testing.assert_allclose(solid(axes)["ce"].get_xydata(), [[20, 80], [40, 50]])
    np.testing.assert_allclose(error_bars(axes), [(40, 40, 60)])  # stdev(40, 50, 60) = 10


def test_human_labels_stand_at_their_realised_rate():
    results = [run(noise="human_worst", test=(0.6,), rate=0.402), run(noise="human_aggregate", test=(0.8,), rate=0.09)]
    (axes,) = plot_accuracy_vs_noise(results).axes
    assert axes.get_title() == "human noise"
    np.testing.assert_allclose(solid(axes)["ce"].get_xydata(), [[9, 80], [40.2, 60]])


def test_clean_labels_alone_make_a_panel():
    (axes,) = plot_accuracy_vs_noise([run(noise="clean", test=(0.8,), rate=0.0)]).axes
    assert axes.get_title() == "clean labels"
    assert solid(axes)["ce"].get_xydata().tolist() == [[0, 80]]


# --- colours -------------------------------------------------------------------------------------------------------


def test_a_loss_looks_the_same_in_every_figure():
    alone = plot_curves(run("nce + rce")).axes[0].lines[0]
    among = lines(plot_runs([run("ce"), run("gce(q=0.5)"), run("nce+rce")]).axes[0])["nce+rce"]
    against = solid(plot_accuracy_vs_noise([run("mae"), run("nce + rce")]).axes[0])["nce+rce"]
    looks = {(line.get_color(), line.get_marker()) for line in (alone, among, against)}
    assert looks == {STYLES["nce+rce"]}


# --- transition matrices -------------------------------------------------------------------------------------------


def matrices(**noise):
    names = ["cat", "dog", "ship"]
    return {**run("nce + rce"), "noise": {"rate": None, "matrix": None, **noise}, "label_names": names}


def panels(figure):
    """Title -> (heat map in percent, numbers in the cells by rows)."""
    return {
        axes.get_title(): (axes.images[0].get_array(), [text.get_text() for text in axes.texts])
        for axes in figure.axes
        if axes.images
    }


def test_true_and_estimated_matrix_stand_side_by_side():
    true = [[60, 40, 0], [0, 100, 0], [25, 25, 150]]  # counts: the rows are divided by their sums
    estimated = [[0.6, 0.3, 0.1], [0, 1, 0], [0.125, 0.125, 0.75]]
    figure = plot_transition_matrices(
        matrices(matrix=true, rate=0.2251, estimated_matrix=estimated, estimated_rate=0.2)
    )
    assert figure.get_suptitle() == "nce+rce on symmetric_40, cnn_small, seed 0"
    shown = panels(figure)
    assert list(shown) == ["true: 22.5 % wrong labels", "estimated: 20.0 % wrong labels"]
    (left, left_numbers), (right, right_numbers) = shown.values()
    np.testing.assert_allclose(left, [[60, 40, 0], [0, 100, 0], [12.5, 12.5, 75]])
    np.testing.assert_allclose(right, 100 * np.array(estimated))
    assert left_numbers == ["60.0", "40.0", "0", "0", "100.0", "0", "12.5", "12.5", "75.0"]
    assert right_numbers[:3] == ["60.0", "30.0", "10.0"]
    for axes in figure.axes[:2]:
        for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
            assert [tick.get_text() for tick in ticks] == ["cat", "dog", "ship"]
    # A row is the clean class, as in the matrix.
    assert (figure.axes[0].get_ylabel(), figure.axes[0].get_xlabel()) == ("Clean label", "Given label")
    assert len({axes.images[0].norm.vmax for axes in figure.axes[:2]}) == 1  # one colour scale


def test_an_unknown_matrix_or_rate_is_left_out():
    shown = panels(plot_transition_matrices(matrices(estimated_matrix=np.eye(3).tolist(), estimated_rate=None)))
    assert list(shown) == ["estimated"]
    empty_class = panels(plot_transition_matrices(matrices(matrix=[[0, 0, 0], [1, 1, 0], [0, 0, 2]])))
    np.testing.assert_array_equal(empty_class["true"][0], [[0, 0, 0], [50, 50, 0], [0, 0, 100]])


def test_an_estimate_is_shown_between_its_bounds_or_not_at_all():
    estimate = {
        "verdict": "ok",
        "rate_interval": [0.123, 0.456],
        "low": [[0.7, 0, 0.1], [0.05, 0.8, 0], None],
        "high": [[0.9, 0, 0.2], [0.15, 0.95, 0.1], None],
    }
    known = {"estimated_matrix": np.eye(3).tolist(), "estimated_rate": 0.2}
    ((title, (shares, numbers)),) = panels(plot_transition_matrices(matrices(**known, estimate=estimate))).items()
    assert title == "estimated: 12.3 to 45.6 % wrong labels"
    assert numbers == ["70–90", "0", "10–20", "5–15", "80–95", "0–10", "fewer than 25 images"]
    np.testing.assert_allclose(np.ma.filled(shares, np.nan), [[80, 0, 15], [10, 87.5, 5], [np.nan] * 3])
    for verdict, words in {
        "too few": "too few images (60)",
        "cannot tell": "cannot tell: predictions and labels agree too little (kappa 0.210)",
        "in sample": "estimated: 20.0 % wrong labels, by images it was trained on",
    }.items():
        changed = {"verdict": verdict, "images": 60, "kappa": 0.21}
        ((title, (shares, numbers)),) = panels(plot_transition_matrices(matrices(**known, estimate=changed))).items()
        told = title if verdict == "in sample" else " ".join(" ".join(numbers).split())
        assert told == words
        assert (len(numbers) == 1) == (verdict != "in sample") == bool(np.ma.getmaskarray(shares).all())


def test_of_training_images_a_class_without_confident_ones_has_no_row():
    estimate = {"verdict": "in sample", "images": 60, "kappa": 0.5, "confident_per_class": [30, 0, 24]}
    result = matrices(estimated_matrix=np.eye(3).tolist(), estimated_rate=0.2, estimate=estimate)
    ((_, (shares, numbers)),) = panels(plot_transition_matrices(result)).items()
    np.testing.assert_allclose(np.ma.filled(shares, np.nan), [[100, 0, 0], [np.nan] * 3, [np.nan] * 3])
    assert numbers == ["100.0", "0", "0", "fewer than 25 images", "fewer than 25 images"]


def test_labels_of_which_nobody_says_that_they_are_right_are_not_called_clean():
    known, unknown = run(noise="clean", rate=0.0), run(noise="clean", rate=None)
    assert plot_curves(known).get_suptitle() == "ce on clean, cnn_small, seed 0"
    assert plot_curves(known).axes[0].get_ylabel() == "Test accuracy (%)"
    unknown["noise"]["test_labels"] = "given"
    assert plot_curves(unknown).axes[0].get_ylabel() == "Accuracy (%)"
    assert plot_curves(unknown).get_suptitle() == "ce on given labels, cnn_small, seed 0"
    unknown["noise"]["estimated_matrix"], unknown["label_names"] = np.eye(3).tolist(), ["a", "b", "c"]
    unknown["settings"]["features"] = "dinov2"
    assert plot_transition_matrices(unknown).get_suptitle() == "features of dinov2 on given labels, seed 0"


def test_many_classes_have_no_numbers():
    for classes, numbers in ((20, 400), (21, 0), (100, 0)):
        result = matrices(matrix=np.eye(classes).tolist()) | {"label_names": [f"class{k}" for k in range(classes)]}
        figure = plot_transition_matrices(result)
        assert len(panels(figure)["true"][1]) == numbers
        assert len(figure.axes[0].get_xticklabels()) <= 50


def test_matrices_that_are_missing_or_of_another_size_are_refused():
    with pytest.raises(ValueError, match="neither a matrix nor an estimated_matrix"):
        plot_transition_matrices(matrices())
    with pytest.raises(ValueError, match=r"noise\['estimated_matrix'\]: expected shape \(3, 3\), got \(2, 2\)"):
        plot_transition_matrices(matrices(estimated_matrix=[[1, 0], [0, 1]]))


# --- files and bad input -------------------------------------------------------------------------------------------


def test_save_figure_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "figures" / "curves.png"
    for _ in range(2):
        save_figure(plot_curves(run()), path)
    assert [p.name for p in path.parent.iterdir()] == ["curves.png"]
    with Image.open(path) as image:
        assert image.size == (4.8 * 150, 4.2 * 150)


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")

    def fail(self, target, **kwargs):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        save_figure(plot_curves(run()), path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("curves.png", b"old")]


def test_results_without_numbers_are_refused():
    nothing = {**run(), "history": [], "accuracy": {}}
    for plot in (plot_runs, plot_accuracy_vs_noise):
        for results in ([], [nothing]):
            with pytest.raises(ValueError, match="results: no"):
                plot(results)
    with pytest.raises(ValueError, match="no history holds a test_accuracy"):
        plot_curves(nothing)
    for table in (results_table, details_table):
        with pytest.raises(ValueError, match="results: there are none"):
            table([])
    assert results_table([nothing]).splitlines()[-1] == "| ce | – |"
    unknown_rate = run(noise="plain_text", rate=None)
    with pytest.raises(ValueError, match="noise rate"):
        plot_accuracy_vs_noise([unknown_rate])
