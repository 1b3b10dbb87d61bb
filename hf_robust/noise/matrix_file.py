"""Transition matrices from files: `.npy`, or JSON that is the matrix or the results of a run with an estimate."""

import os
from pathlib import Path

import numpy as np

from hf_common.foreign import list_of, number, read_array, read_json, refuse

from .base import matrix_fault
from .bounds import CANNOT_TELL, TOO_FEW


def read_transition_matrix(path: str | os.PathLike, num_classes: int | None) -> np.ndarray:
    """The (K, K) float64 matrix of a file; rows are clean classes.

    Args:
        path: `.npy` with the matrix; or `.json` with it as a list of rows, or as `noise.estimated_matrix`, where
            `results.json` of a run has it.

        num_classes: K; None: as many as the file has, two or more.

    Raises:
        ValueError: naming the file: no such matrix, an estimate that says of itself that it can't tell, another size,
            entries outside [0, 1], rows that do not sum to 1.
    """
    path = Path(path)
    if path.suffix == ".npy":
        matrix = read_array(path, (num_classes, num_classes)).astype(np.float64)
        if matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
            raise refuse(path, f"transition_matrix: it must be K x K with K of 2 or more, is {matrix.shape}")
    else:
        content = read_json(path, object)  # what it must be is said below
        if isinstance(content, dict):
            content = _told_matrix(content.get("noise"), path)
        if num_classes is None and isinstance(content, list):
            num_classes = max(2, len(content))
        if num_classes is None or not list_of(list_of(number(), num_classes), num_classes)(content):
            size = num_classes or "K"
            raise refuse(
                path, f"transition_matrix: it holds neither a matrix of {size} classes nor a run's results with one"
            )
        matrix = np.asarray(content, np.float64)
    if fault := matrix_fault(matrix):
        raise refuse(path, f"transition_matrix: {fault}")
    return matrix


def _told_matrix(noise: object, path: Path) -> object:
    """The estimated matrix of a run's results, None without one; a `ValueError` where the run could not tell it."""
    if not isinstance(noise, dict):
        return None
    estimate = noise.get("estimate")
    verdict = estimate.get("verdict") if isinstance(estimate, dict) else None
    if verdict in (CANNOT_TELL, TOO_FEW):
        raise refuse(
            path,
            f"transition_matrix: the estimate of this run says {verdict!r}; allowed are results that can tell, or the "
            "matrix itself as .npy or .json",
        )
    return noise.get("estimated_matrix")
