"""What evaluate_images.py measured, as a card's rows and as the entries of its model index."""

from collections.abc import Sequence

from huggingface_hub import EvalResult

TASK = "unconditional-image-generation"  # the Hub's only tag for images that no text or image is given for
# What evaluate_images.py measures: key of the value, of its standard error; type for the model index; titles with any
# encoder, and with the FID network.
METRICS = (
    ("cmmd_unbiased", "standard_error", "cmmd", "CMMD, unbiased", "CMMD, unbiased"),
    ("cmmd", "standard_error", "cmmd", "CMMD, as published", "CMMD, as published"),
    ("frechet_distance", None, "fid", "Fréchet distance (FD)", "FID"),
    ("fd_infinity", "fd_infinity_standard_error", "fid", "FD, n → ∞", "FID, n → ∞"),
    ("kid", None, "kid", "kernel distance", "KID"),
    ("sfid", None, "sfid", "sFID", "sFID"),
    ("inception_score", "inception_score_std", "inception_score", "Inception Score", "Inception Score"),
    ("precision", "precision_standard_error", "precision", "precision", "precision"),
    ("recall", "recall_standard_error", "recall", "recall", "recall"),
    ("density", "density_standard_error", "density", "density", "density"),
    ("coverage", "coverage_standard_error", "coverage", "coverage", "coverage"),
)


def score_rows(one: dict) -> list[dict]:
    """A row for each encoder of a scoring: what was scored, in `values` each value with its standard error or None."""
    arguments, sampling = one["arguments"], one["sampling"]
    real = arguments["predictions"] == arguments["references"]
    return [
        {
            "real": real,
            "sampling": sampling,
            "predictions": _source(arguments, "predictions"),
            "references": _source(arguments, "references"),
            "arguments": arguments,
            "encoder": score["encoder"],
            "digest": score.get("digest", ""),  # of weights and preprocessing; older results lack it
            "n_predictions": score["n_predictions"],
            "n_references": score["n_references"],
            "values": {
                key: (score[key], score[error] if error else None)
                for key, error, *_ in METRICS
                if score.get(key) is not None
            },
            "notes": score["notes"],
        }
        for score in one["scores"]
    ]


def told_apart(rows: Sequence[dict]) -> list[dict]:
    """The rows, with the digest behind the name of an encoder under which there are several: they do not compare."""
    digests: dict[str, set[str]] = {}
    for row in rows:
        digests.setdefault(row["encoder"], set()).add(row["digest"])
    return [
        {**row, "encoder": f"{row['encoder']} ({row['digest'][:8] or 'no digest'})"}
        if len(digests[row["encoder"]]) > 1
        else row
        for row in rows
    ]


def model_index(rows: Sequence[dict]) -> list[EvalResult]:
    """The model index: an entry for each value, with encoder, numbers of images, standard error and sampling."""
    entries = []
    for row in rows:
        arguments, sampling, inception = row["arguments"], row["sampling"], row["encoder"].startswith("inception")
        how = {"encoder": row["encoder"], "n": row["n_predictions"], "n_references": row["n_references"]}
        if sampling is None:
            how["predictions"] = row["predictions"]
        else:
            how |= {key: sampling[key] for key in ("guidance_scale", "num_inference_steps", "scheduler", "attention")}
            how["seed"] = sampling["settings"]["seed"]
        for key, _, kind, title, title_of_inception in METRICS:
            if key in row["values"]:
                value, error = row["values"][key]
                entries.append(
                    EvalResult(
                        task_type=TASK,
                        dataset_type=arguments["references"],
                        dataset_name=arguments["references"],
                        dataset_config=arguments["references_config"],
                        dataset_split=arguments["references_split"],
                        metric_type=kind if inception or kind == "cmmd" else key,
                        metric_name=title_of_inception if inception else title,
                        metric_value=_rounded(value),
                        metric_args={**how, **({} if error is None else {"standard_error": _rounded(error)})},
                    )
                )
    return entries


def _source(arguments: dict, role: str) -> str:
    config, split = arguments[f"{role}_config"], arguments[f"{role}_split"]
    return " ".join(part for part in (arguments[role], config, split) if part is not None)


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
