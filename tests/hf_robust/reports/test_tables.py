import statistics

from hf_robust.reports.tables import details_table, results_table
from tests.hf_robust.reports.samples import run


def test_table_of_one_seed():
    results = [
        run("nce + rce", "symmetric_40", test=(0.55, 0.549)),
        run("ce", "symmetric_40", test=(0.456, 0.423)),
        run("ce", "clean", test=(0.61, 0.6)),
    ]
    assert results_table(results).splitlines() == [
        "Accuracy on the clean test set in percent: last epoch (best epoch).",
        "",
        "| loss | clean | symmetric_40 |",
        "| --- | --- | --- |",
        "| nce+rce | – | 54.9 (55.0) |",
        "| ce | 60.0 (61.0) | 42.3 (45.6) |",
    ]


def test_table_over_seeds_and_models():
    last = [0.5, 0.6, 0.4]
    results = [run(seed=s, model="cnn8", test=(0.7, value)) for s, value in enumerate(last)]
    results.append(run(model="cnn_small", test=(0.3,)))
    spread = statistics.stdev([50, 60, 40])
    assert results_table(results).splitlines() == [
        "Accuracy on the clean test set in percent: last epoch (best epoch), "
        "mean ± standard deviation over 1–3 seeds.",
        "",
        "| model | loss | symmetric_40 |",
        "| --- | --- | --- |",
        f"| cnn8 | ce | 50.0 ± {spread:.1f} (70.0 ± 0.0) |",
        "| cnn_small | ce | 30.0 (30.0) |",
    ]


def test_details_have_a_section_a_noise_and_rows_by_last_accuracy():
    results = [
        run("ce", "symmetric_40", test=(0.456, 0.423)) | {"memorisation": {"train_memorised": 0.8125}},
        run("nce + rce", "symmetric_40", test=(0.55, 0.549))
        | {"memorisation": {"train_memorised": 0.02, "train_separation_auc": 0.97654}},
        {**run("mae", "symmetric_40"), "accuracy": {}},
        run("ce", "clean", test=(0.61,)) | {"memorisation": {"train_memorised": None, "train_separation_auc": None}},
    ]
    caption, *lines = details_table(results).splitlines()
    assert "in percent" in caption and "AUC" in caption and "±" not in caption
    assert lines == [
        "",
        "### clean",
        "",
        "| loss | last | best (epoch) | memorised | AUC |",
        "| --- | --- | --- | --- | --- |",
        "| ce | 61.0 | 61.0 (1) | – | – |",
        "",
        "### symmetric_40",
        "",
        "| loss | last | best (epoch) | memorised | AUC |",
        "| --- | --- | --- | --- | --- |",
        "| nce+rce | 54.9 | 55.0 (1) | 2.0 | 0.977 |",
        "| ce | 42.3 | 45.6 (1) | 81.2 | – |",
        "| mae | – | – | – | – |",
    ]


def test_details_over_seeds_and_models():
    last = [0.5, 0.6, 0.4]
    auc = [0.75, 0.65, None]
    results = [
        run(seed=s, model="cnn8", test=(0.1, 0.7, value) if s else (0.8, 0.7, value))
        | {"memorisation": {"train_memorised": 0.1 * s, "train_separation_auc": auc[s]}}
        for s, value in enumerate(last)
    ]
    results.append(run(model="cnn_small", test=(0.55,)))
    caption, *lines = details_table(results).splitlines()
    assert caption.endswith(", mean ± standard deviation over 1–3 seeds.")
    best, spread = statistics.stdev([80, 70, 70]), statistics.stdev([0.75, 0.65])
    assert lines[-3:] == [
        "| --- | --- | --- | --- | --- | --- |",
        "| cnn_small | ce | 55.0 | 55.0 (1) | – | – |",
        f"| cnn8 | ce | 50.0 ± 10.0 | 73.3 ± {best:.1f} (1–2) | 10.0 ± 10.0 | 0.700 ± {spread:.3f} |",
    ]
