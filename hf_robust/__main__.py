"""`hf-robust`, or `python -m hf_robust`."""

from hf_common.front import enter

COMMANDS = {
    "train": "train a classifier on labels of which some are wrong",
    "sweep": "compare losses, noises, networks and seeds",
    "find-label-errors": "find the training images whose labels look wrong",
    "make-dataset": "write CIFAR-10 with noisy labels as a data set folder, or publish it",
    "make-noisy-dataset": "the same of any data set of classes, images or text",
    "plot-losses": "draw losses and their gradients",
}


def main() -> None:
    enter("hf-robust", "hf_robust", COMMANDS)


if __name__ == "__main__":
    main()
