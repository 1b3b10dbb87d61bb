"""`python -m hf_robust.losses` prints the table of losses."""

from .spec import format_value, list_losses


def main() -> None:
    rows = [("name", "formula", "parameters", "symmetric", "paper")]
    for info in list_losses():
        params = ", ".join(f"{name}={format_value(value)}" for name, value in info.params.items())
        rows.append((info.name, info.formula, params or "-", "yes" if info.symmetric else "no", info.paper))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple("-" * width for width in widths))
    print("p = softmax(logits), y = given label; symmetric: the sum over all labels is constant\n")
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
