#!/usr/bin/env python
"""Publish what the studies made: the noisy data set, the best classifier, the pipeline, both metrics.

    python scripts/release.py --namespace USER --dry_run
    python scripts/release.py --namespace USER

It takes the data set that make_noisy_cifar10.py built, the runs of scripts/studies.py in --work_dir and the metrics of
this repository; the classifier is the one of the highest test accuracy after training on wrong labels. Everything is
checked before anything is sent: folders, cards, token, what is there already. Nothing is sent twice; after a failure
the same command sends the rest. --dry_run checks what needs no Hub, and tells what would go where.
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from findings.report import STUDIES

import evaluate_metrics
from evaluate_metrics.publishing import check_space, publish_space
from hf_common.hub import check_push
from hf_common.run_folder import RESULTS
from hf_common.running import run_command
from hf_common.tables import markdown_table
from hf_dit.publishing.publish import REPOSITORY_FILES, push_pipeline, read_study
from hf_dit.training.records import read_training
from hf_robust.noisy_dataset.hub import check_publish, publish_noisy_dataset
from hf_robust.noisy_dataset.manifest import read_manifest
from hf_robust.studies.arguments import ExperimentArguments
from hf_robust.studies.publish import push_run, read_run
from hf_robust.training.push import check_hub_repo

TRAINED_ON_LABELS = ("noise", "collapse", "human")  # studies whose runs are classifiers
DATA_SET, CLASSIFIER, PIPELINE = "noisy-cifar10", "robust-cifar10", "dit-landscapes"


class Part(NamedTuple):
    """One repository."""

    kind: str
    repo_id: str
    source: Path
    told: str  # of what lies there
    load: str  # what a user types
    check: Callable[[], object]  # raises what would make the push fail
    push: Callable[[], object]


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--namespace", required=True, help="User or organisation on the Hub.")
    parser.add_argument("--noisy_dataset", type=Path, default=Path("noisy-cifar10"), help="The built data set.")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/studies"), help="Folder of the studies' runs.")
    parser.add_argument("--hub_token", help="Default: that of `hf auth login`, or HF_TOKEN.")
    parser.add_argument("--dry_run", action="store_true", help="Send nothing, ask nothing.")
    args = parser.parse_args()
    try:
        parts = release_parts(args.namespace, args.noisy_dataset, args.work_dir, args.hub_token)
        rows = [[part.kind, part.repo_id, str(part.source), part.told] for part in parts]
        print(markdown_table(["what", "repository", "from", "holds"], rows))
        if args.dry_run:
            print("\nnothing was sent (--dry_run)")
        else:
            for part in parts:
                part.check()
            for part in parts:
                part.push()
                print(f"published: {part.kind} {part.repo_id}", file=sys.stderr)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print("\n" + "\n".join(part.load for part in parts))


def release_parts(namespace: str, noisy_dataset: Path, work: Path, token: str | None = None) -> list[Part]:
    """What would be published; a `ValueError` or `OSError` for what is missing or not whole."""
    return [
        _data_set(f"{namespace}/{DATA_SET}", noisy_dataset, token),
        _classifier(f"{namespace}/{CLASSIFIER}", work, token),
        _pipeline(f"{namespace}/{PIPELINE}", work / "guidance", token),
        *(_metric(f"{namespace}/{name}", name, token) for name in evaluate_metrics.METRICS),
    ]


def _data_set(repo_id: str, folder: Path, token: str | None) -> Part:
    configs = list(read_manifest(folder, must_exist=True)["configs"])
    noisy = next((name for name in configs if name != "clean"), configs[0])
    return Part(
        "data set", repo_id, folder, f"{len(configs)} configs",
        f'datasets.load_dataset("{repo_id}", "{noisy}")',
        partial(check_publish, repo_id, token=token),
        partial(publish_noisy_dataset, folder, repo_id, token=token),
    )  # fmt: skip


def _classifier(repo_id: str, work: Path, token: str | None) -> Part:
    folder, results = best_classifier(work)
    settings = results["settings"]
    args = ExperimentArguments(
        output_dir=str(folder), push_to_hub=True, hub_model_id=repo_id, hub_token=token, report_to="none"
    )
    return Part(
        "classifier", repo_id, folder,
        f"{settings['model']}, {settings['loss']}, {settings['noise']}: {100 * results['accuracy']['last']:.1f} %",
        f'transformers.AutoModelForImageClassification.from_pretrained("{repo_id}", trust_remote_code=True)',
        partial(check_hub_repo, args),
        partial(push_run, args),
    )  # fmt: skip


def best_classifier(work: Path) -> tuple[Path, dict]:
    """The run of the studies with the highest test accuracy of the last epoch, of those with wrong labels."""
    folders = [path.parent for name in TRAINED_ON_LABELS for path in sorted((work / name).rglob(RESULTS))]
    runs = [(folder, read_run(folder / RESULTS)) for folder in folders]
    runs = [(folder, run) for folder, run in runs if run["noise"].get("rate") and run["accuracy"]]
    if not runs:
        studies = " or ".join(f"--run {name}" for name in TRAINED_ON_LABELS if name in STUDIES)
        raise ValueError(
            f"{str(work)!r} holds no finished run on wrong labels; make one: scripts/studies.py {studies}"
        )
    return max(runs, key=lambda run: run[1]["accuracy"]["last"])


def _pipeline(repo_id: str, folder: Path, token: str | None) -> Part:
    train, study = folder / "train", folder / "samples"
    if not (train / RESULTS).exists():
        raise ValueError(f"{str(train)!r} holds no finished pipeline; make it: scripts/studies.py --run guidance")
    results = read_training(train / RESULTS)
    if study.exists():
        read_study(study)
    target = {"repo_id": repo_id, "names": REPOSITORY_FILES, "token": token}
    seen = results["steps"] * results["settings"]["global_batch"]
    return Part(
        "pipeline", repo_id, train, f"{results['settings']['model']}, {seen:,} images seen",
        f'diffusers.DiffusionPipeline.from_pretrained("{repo_id}", trust_remote_code=True)',
        partial(check_push, **target),
        partial(push_pipeline, train, target, study if study.exists() else None),
    )  # fmt: skip


def _metric(repo_id: str, name: str, token: str | None) -> Part:
    folder = evaluate_metrics.path(name)
    check_space(folder, repo_id)
    return Part(
        "metric", repo_id, Path(folder), "a Gradio Space", f'evaluate.load("{repo_id}")',
        partial(publish_space, folder, repo_id, token=token, only_check=True),
        partial(publish_space, folder, repo_id, token=token),
    )  # fmt: skip


if __name__ == "__main__":
    run_command(main, "what is published stays; the same command publishes the rest:")
