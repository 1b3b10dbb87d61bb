"""Classes by id or by name."""

import difflib
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any


def label_table(id2label: Mapping[int, str]) -> dict[str, list[int]]:
    """Name -> class ids that bear it. `"white shark, man-eater"` can be called by the whole or by either part."""
    table: dict[str, list[int]] = {}
    for class_id, label in id2label.items():
        for name in dict.fromkeys(name.strip() for name in (label, *label.split(","))):
            if name:
                table.setdefault(name, []).append(class_id)
    return dict(sorted(table.items()))


def ids_of_names(table: Mapping[str, Sequence[int]], names: Iterable[str]) -> list[int]:
    """Class ids of names in a [`label_table`]; a `ValueError` for one that no class, or more than one, bears."""
    ids: list[int] = []
    for name in names:
        found = table.get(name.strip(), [])
        if not found and not table:
            raise ValueError(f"class {name!r} has no id: this pipeline has no id2label")
        if not found:
            spellings = {known.lower(): known for known in table}
            close = difflib.get_close_matches(name.strip().lower(), spellings, n=5)
            hint = f"; close: {', '.join(repr(spellings[match]) for match in close)}" if close else ""
            raise ValueError(f"class {name!r} is not among the {len(table)} names of id2label{hint}")
        if len(found) > 1:
            raise ValueError(f"class {name!r} is the name of several classes: pass one of the ids {found}")
        ids += found
    return ids


def checked_labels(
    class_labels: int | str | Iterable | None,
    batch_size: int,
    num_classes: int | None,
    ids_of_name: Callable[[str], Sequence[int]],
) -> list[int] | None:
    """Ids of what is to be sampled, which is given by ids or by names; None for an unconditional model.

    Lists, tuples, ranges, arrays and tensors of them are taken, nested ones as if they were flat.

    Raises:
        ValueError, TypeError: labels or a batch size that a model of `num_classes` can't take.
    """
    if num_classes is None:
        if class_labels is not None:
            raise ValueError(f"class_labels must be None: the model is unconditional; got {class_labels!r}")
        try:
            fits = operator.index(batch_size) >= 1
        except TypeError:
            fits = False
        if not fits:
            raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size}")
        return None
    if class_labels is None:
        raise ValueError("class_labels are missing: the model is conditional (guidance_scale=0 ignores them)")
    if batch_size != 1:
        raise ValueError(
            f"batch_size is for unconditional models, got {batch_size}; this one samples one image per label, "
            "times num_images_per_prompt"
        )
    labels = []
    for label in _flat(class_labels):
        if isinstance(label, str):
            label = ids_of_name(label)[0]
        try:
            labels.append(operator.index(label))
        except TypeError:
            raise TypeError(
                f"class_labels must be ids or names, or a list of them, got {type(label).__name__}"
            ) from None
        if not 0 <= labels[-1] < num_classes:
            raise ValueError(
                f"class_labels must lie in [0, {num_classes}), got {labels[-1]}; guidance_scale=0 samples without "
                "a class"
            )
    if not labels:
        raise ValueError("class_labels is empty")
    return labels


def _flat(labels: Any) -> Iterator:
    if isinstance(labels, str) or not isinstance(labels, Iterable) or getattr(labels, "ndim", 1) == 0:
        yield labels
    else:
        for part in labels:
            yield from _flat(part)
