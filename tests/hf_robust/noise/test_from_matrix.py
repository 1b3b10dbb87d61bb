"""Noise by any transition matrix: its counts, its name, and files that hold none."""

import json

import numpy as np
import pytest

from hf_robust.noise.draw import make_noisy_labels, transition_matrix
from hf_robust.noise.kinds import kind_of
from hf_robust.noise.labels import realised_matrix
from hf_robust.noise.spec import NoiseSpec, spec_patterns
from hf_robust.studies.flags import DataArguments

MATRIX = np.array([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [0.25, 0.35, 0.4]])


@pytest.fixture
def file(tmp_path):
    np.save(tmp_path / "T.npy", MATRIX)
    return tmp_path / "T.npy"


def labels(counts):
    return np.random.default_rng(0).permutation(np.repeat(range(len(counts)), counts))


def test_quotas_are_exact_where_shares_are_whole(file):
    clean = labels([100, 50, 20])
    noisy = make_noisy_labels(clean, f"matrix:{file}", num_classes=3)
    np.testing.assert_allclose(realised_matrix(clean, noisy, 3), MATRIX, atol=1e-12)


@pytest.mark.parametrize("counts", [[7, 3, 11], [1, 1, 1], [0, 5, 9], [1001, 2, 333]])
def test_quotas_are_within_one_sample(file, counts):
    clean = labels(counts)
    noisy = make_noisy_labels(clean, f"matrix:{file}", num_classes=3, seed=4)
    assert len(noisy) == sum(counts)
    found = np.histogram2d(clean, noisy, bins=np.arange(4))[0]
    assert (np.abs(found - MATRIX * np.array(counts)[:, None]) < 1).all()


def test_many_small_classes_have_the_rate_together(tmp_path):
    np.save(tmp_path / "T.npy", 0.7 * np.eye(100) + 0.3 / 100)
    clean = labels([8] * 100)
    noisy = make_noisy_labels(clean, f"matrix:{tmp_path}/T.npy", num_classes=100)
    assert (noisy == clean).sum() == round(0.703 * 800)
    assert np.histogram2d(clean, noisy, bins=np.arange(101))[0][~np.eye(100, dtype=bool)].max() <= 1


def test_each_by_itself_has_the_matrix_in_the_mean(file):
    clean = labels([20_000, 20_000, 20_000])
    noisy = make_noisy_labels(clean, f"matrix:{file}", num_classes=3, sampling="bernoulli")
    assert np.abs(realised_matrix(clean, noisy, 3) - MATRIX).max() < 0.012  # 3.5 standard deviations


def test_the_name_is_that_of_the_numbers_whatever_the_file(file, tmp_path):
    spec = NoiseSpec.parse(f"matrix:{file}")
    (tmp_path / "T.json").write_text(json.dumps(MATRIX.tolist()))
    (tmp_path / "results.json").write_text(json.dumps({"noise": {"estimated_matrix": MATRIX.tolist()}}))
    assert NoiseSpec.parse(f"matrix:{tmp_path}/T.json") == NoiseSpec.parse(f"matrix:{tmp_path}/results.json") == spec
    kind, _, letters = str(spec).partition("_")
    assert kind == "matrix" and len(letters) == 8 and letters.isalpha()
    np.save(tmp_path / "other.npy", MATRIX[::-1, ::-1])
    assert str(NoiseSpec.parse(f"matrix:{tmp_path}/other.npy")) != str(spec)
    np.testing.assert_array_equal(transition_matrix(spec, 3), MATRIX)
    assert kind_of(str(spec)).words.endswith("which keeps 40.0 to 100.0 % of a class")
    assert kind_of("matrix_abcdefgh").entry == kind_of(str(spec)).entry  # a card does not depend on who has the file
    assert spec_patterns().endswith("matrix:FILE") and str(spec) not in spec_patterns()
    np.testing.assert_array_equal(
        make_noisy_labels([0, 1, 2] * 9, spec, num_classes=3),
        make_noisy_labels([0, 1, 2] * 9, f"matrix:{file}", num_classes=3),
    )


def test_a_file_that_is_not_there_is_said_with_its_argument(tmp_path):
    with pytest.raises(FileNotFoundError, match="spec: 'matrix:none.npy' names no file"):
        NoiseSpec.parse("matrix:none.npy")
    with pytest.raises(ValueError, match="^noise: 'matrix:none.npy' names no file"):
        DataArguments(noise="matrix:none.npy")


@pytest.mark.parametrize("verdict", ["cannot tell", "too few"])
def test_an_estimate_that_can_not_tell_is_no_matrix(tmp_path, verdict):
    noise = {"estimated_matrix": MATRIX.tolist(), "estimate": {"verdict": verdict}}
    (tmp_path / "results.json").write_text(json.dumps({"noise": noise}))
    with pytest.raises(
        ValueError, match=f"results.json: transition_matrix: the estimate of this run says '{verdict}'"
    ):
        NoiseSpec.parse(f"matrix:{tmp_path}/results.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([[0.5, 0.5]], "neither a matrix of 2 classes"),
        ([[0.5, 0.5], [0.5]], "neither a matrix of 2 classes"),
        ([[0.5, 0.4], [0, 1]], "rows must sum to 1, row 0 sums to 0.9"),
        ([[1.5, -0.5], [0, 1]], r"entries must be in \[0, 1\], are -0.5 to 1.5"),
        ({"noise": {}}, "nor a run's results with one"),
        ([["a", "b"], ["c", "d"]], "neither a matrix of 2 classes"),
    ],
)
def test_files_without_a_matrix_are_refused(tmp_path, content, message):
    (tmp_path / "T.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        NoiseSpec.parse(f"matrix:{tmp_path}/T.json")


def test_arrays_of_another_shape_a_missing_file_and_other_classes_are_refused(file, tmp_path):
    np.save(tmp_path / "wide.npy", np.eye(4)[:3])
    with pytest.raises(ValueError, match=r"must be K x K with K of 2 or more, is \(3, 4\)"):
        NoiseSpec.parse(f"matrix:{tmp_path}/wide.npy")
    with pytest.raises(OSError, match=r"nothing\.npy"):
        NoiseSpec.parse(f"matrix:{tmp_path}/nothing.npy")
    with pytest.raises(ValueError, match="has a matrix of 3 classes, the data set has 4"):
        make_noisy_labels([0, 1, 2, 3], f"matrix:{file}", num_classes=4)
    with pytest.raises(ValueError, match="was drawn from a matrix; give its file"):
        NoiseSpec.parse("matrix_abcdefgh")
