"""`python -m hf_robust.losses` prints the tables of losses and of published sums."""

from hf_common.output import lasting_stdout

from .spec import format_value
from .table import PUBLISHED_SUMS, list_losses


def main() -> None:
    lasting_stdout()
    rows: list[tuple[str, ...]] = [
        ("name", "formula", "parameters", "cifar10", "cifar100", "symmetric", "needs", "paper")
    ]
    for info in list_losses():
        params = ", ".join(f"{name}={format_value(value)}" for name, value in info.params.items())
        published = [info.published.get(dataset, "-") for dataset in ("cifar10", "cifar100")]
        needs = ", ".join(info.needs)
        symmetric = "yes" if info.symmetric else "no"
        rows.append((info.name, info.formula, params or "-", *published, symmetric, needs or "-", info.paper))
    print("p = softmax(z) of the logits z, y = given label, K classes")
    print("cifar10, cifar100: published parameters where they differ from the defaults")
    print("symmetric: the sum over all labels is constant; needs: beside logits and labels, see RobustLoss\n")
    print_table(rows)
    print("\nPublished sums\n")
    sums = [(names, specs.get("cifar10", "-"), specs.get("cifar100", "-")) for names, specs in PUBLISHED_SUMS.items()]
    print_table([("sum", "cifar10", "cifar100"), *sums])


def print_table(rows: list[tuple[str, ...]]) -> None:
    """Print rows of strings, the first of them the head, in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in [rows[0], tuple("-" * width for width in widths), *rows[1:]]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
