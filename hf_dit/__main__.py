"""`hf-dit`, or `python -m hf_dit`."""

from hf_common.front import enter

COMMANDS = {
    "train": "train a Diffusion Transformer",
    "sample": "sample one over guidance scales, steps, attentions and schedulers",
    "compare": "train ones that differ in attention, objective, conditioning or seed, and compare them",
    "generate": "sample many images, on any number of processes, into files or scores",
    "benchmark": "time attentions, alone and in a step",
}


def main() -> None:
    enter("hf-dit", "hf_dit", COMMANDS)


if __name__ == "__main__":
    main()
