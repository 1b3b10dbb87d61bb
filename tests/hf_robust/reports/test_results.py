from hf_robust.reports.results import accuracy_summary, epoch_history


def test_history_joins_the_entries_of_a_step():
    log = [
        {"loss": 2.0, "learning_rate": 0.1, "epoch": 1.0, "step": 5},
        {"eval_accuracy": 0.5, "eval_loss": 1.0, "eval_cross_entropy": 1.5, "epoch": 1.0, "step": 5},
        {"train_memorised": 0.25, "epoch": 1.0, "step": 5},
        {"loss": 1.0, "epoch": 1.5, "step": 7},
        {"eval_accuracy": 0.5, "epoch": 2.0, "step": 10},
        {"train_loss": 9.0, "epoch": 2.0, "step": 10},
    ]
    history = epoch_history(log)
    assert history[0] == {
        "epoch": 1.0, "train_loss": 2.0, "learning_rate": 0.1, "test_accuracy": 0.5, "test_loss": 1.0,
        "test_cross_entropy": 1.5, "train_memorised": 0.25,
    }  # fmt: skip
    assert history[1] == {"epoch": 2.0, "test_accuracy": 0.5}
    assert accuracy_summary(history) == {"last": 0.5, "best": 0.5, "best_epoch": 1.0}
