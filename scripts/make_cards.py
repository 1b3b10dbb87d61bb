#!/usr/bin/env python
"""Render the cards in model_cards/ from the measured results in model_cards/results/.

    python scripts/make_cards.py           # write the cards and their pictures
    python scripts/make_cards.py --check   # write nothing; exit status 1 if a card is not what its results give

Cards are never edited by hand: change a template (templates/*.md.jinja) or measure again.
"""

import json
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from hf_common.files import replace_text, save_figure
from hf_dit.publishing.card import dit_pipeline_card
from hf_robust.noisy_dataset.card import dataset_card
from hf_robust.noisy_dataset.figures import write_figures
from hf_robust.studies.publish import draw_figures, run_card

CARDS = Path(__file__).resolve().parents[1] / "model_cards"
CLASSIFIER = "cnn_small-nce-rce-symmetric_40"
PIPELINE = "dit-tiny-4-landscapes"


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="Compare instead of writing.")
    args = parser.parse_args()
    cards = render_cards()
    if args.check:
        stale = [name for name, text in cards.items() if not _is_there(name, text)]
        if stale:
            parser.exit(1, f"not what the results give: {', '.join(stale)}; run scripts/make_cards.py\n")
        return
    write_figures(CARDS, _results("noisy_cifar10"))
    for name, figure in draw_figures(*_classifier_runs()).items():
        save_figure(figure, CARDS / _classifier_figure(name))
    for name, text in cards.items():
        replace_text(CARDS / name, text)
        print(CARDS / name)


def render_cards() -> dict[str, str]:
    """File name in model_cards/ -> what the committed results give."""
    runs, baseline = _classifier_runs()
    pipeline = _results("dit_landscapes")
    return {
        "noisy-cifar10.md": dataset_card(_results("noisy_cifar10")),
        f"{CLASSIFIER}.md": run_card(
            runs,
            f"USER/{CLASSIFIER}",
            figures={name: _classifier_figure(name) for name in draw_figures(runs, baseline)},
            baseline=baseline,
        ),
        f"{PIPELINE}.md": dit_pipeline_card(
            pipeline["training"],
            repo_id=f"USER/{PIPELINE}",
            study=pipeline["study"],
            scores=_results("dit_landscapes_scores"),
            pictures={
                "loss_curve": ["figures/dit_landscapes_loss.png"],
                "samples": ["figures/dit_landscapes_samples.png"],
                "study": ["figures/dit_landscapes_study.png"],
            },
        ),
    }


def _classifier_runs() -> tuple[list[dict], list[dict]]:
    runs = _results("cnn_small_symmetric_40")
    return tuple([run for run in runs if run["settings"]["loss"] == loss] for loss in ("nce + rce", "ce"))


def _classifier_figure(name: str) -> str:
    return f"figures/{CLASSIFIER}-{name}.png"


def _results(name: str):
    return json.loads((CARDS / "results" / f"{name}.json").read_text(encoding="utf-8"))


def _is_there(name: str, text: str) -> bool:
    path = CARDS / name
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    main()
