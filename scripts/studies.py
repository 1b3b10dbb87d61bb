#!/usr/bin/env python
"""The studies of model_cards/RESULTS.md: run them, and render the report from what they measured.

    python scripts/studies.py --list
    python scripts/studies.py --run noise --dataset uoft-cs/cifar10
    python scripts/studies.py --collect noise
    python scripts/studies.py --report

What is finished becomes a JSON file under model_cards/results/studies, a cell, and is never made again. --run goes on
after a kill, and shares the cells with other workers: start the same command several times. --collect takes the runs
that are finished in --work_dir and runs nothing. --report renders RESULTS.md and its figures from the JSON alone.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from findings.cells import CARDS, RESULTS, read_cells
from findings.report import STUDIES, write_report
from findings.study import Place, Sources

from hf_common.running import run_command


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--list", action="store_true", help="The studies, and how much of each is there.")
    task.add_argument("--run", choices=STUDIES, help="Make the runs of a study that are missing.")
    task.add_argument("--collect", choices=STUDIES, help="Take the finished runs of a study from --work_dir.")
    task.add_argument("--report", action="store_true", help="Render RESULTS.md.")
    parser.add_argument("--dataset", default="uoft-cs/cifar10", help="CIFAR-10: Hub id or folder.")
    parser.add_argument(
        "--noisy_dataset",
        default="USER/noisy-cifar10",
        help="What make_noisy_cifar10.py built with --human_labels: Hub id or folder.",
    )
    parser.add_argument(
        "--landscapes",
        default="USER/landscapes",
        help="Photographs with an image and a label column, train and test: Hub id or folder.",
    )
    parser.add_argument(
        "--encoder",
        default="clip",
        help="Of images, as evaluate_images.py takes it: its scores are those of the report.",
    )
    parser.add_argument("--work_dir", type=Path, default=Path("runs/studies"), help="Folder of the runs.")
    args = parser.parse_args()
    if args.list:
        for name, study in STUDIES.items():
            print(f"{name:<10} {len(read_cells(name, RESULTS)):>3} of {len(study.cells):>3} cells  {study.title}")
    elif args.report:
        write_report()
        print(CARDS / "RESULTS.md")
    else:
        name = args.run or args.collect
        study = STUDIES[name]
        sources = Sources(args.dataset, args.noisy_dataset, args.landscapes, args.encoder)
        (study.run if args.run else study.collect)(Place(args.work_dir, RESULTS, sources))
        print(f"{len(read_cells(name, RESULTS))} of {len(study.cells)} cells of {name} are there")


if __name__ == "__main__":
    run_command(main, "finished runs and the newest checkpoint of the one at hand are kept; this goes on:")
