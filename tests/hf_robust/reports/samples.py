"""The results of a run, as figures and tables read them."""


def run(loss="ce", noise="symmetric_40", seed=0, model="cnn_small", test=(0.2, 0.5, 0.4), rate=0.4, **fits):
    history = [{"epoch": float(e), "test_accuracy": a, "train_loss": 1.0} for e, a in enumerate(test, start=1)]
    for key, values in fits.items():
        for row, value in zip(history, values, strict=True):
            row[key] = value
    best = max(history, key=lambda row: row["test_accuracy"])
    return {
        "settings": {"loss": loss, "noise": noise, "model": model, "seed": seed},
        "history": history,
        "accuracy": {"last": test[-1], "best": best["test_accuracy"], "best_epoch": best["epoch"]},
        "noise": {"rate": rate},
    }
