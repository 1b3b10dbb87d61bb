import numpy as np
import pytest

from hf_robust.noise.draw import make_noisy_labels, transition_matrix
from hf_robust.noise.labels import realised_matrix, realised_rate


def test_realised_rate_and_matrix():
    clean, noisy = [0, 0, 0, 0, 2, 2, 3], [0, 1, 0, 2, 2, 0, 3]
    assert realised_rate(clean, noisy) == 3 / 7
    expected = [[0.5, 0.25, 0.25, 0], [0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1]]  # no image of class 1
    np.testing.assert_array_equal(realised_matrix(clean, noisy, 4), expected)


@pytest.mark.parametrize("spec", ["symmetric_36", "asymmetric_20", "semantic_40", "clean"])
def test_realised_matrix_of_a_quota_is_the_matrix(spec):
    labels = np.arange(10).repeat(100)
    noisy = make_noisy_labels(labels, spec, num_classes=10)
    np.testing.assert_allclose(realised_matrix(labels, noisy, 10), transition_matrix(spec, 10), rtol=0, atol=1e-12)


def test_bad_pairs():
    with pytest.raises(ValueError, match="noisy: expected 2 labels, as many as clean, got 3"):
        realised_rate([0, 1], [0, 1, 2])
    with pytest.raises(ValueError, match=r"noisy: expected values in 0\.\.1, got 2"):
        realised_matrix([0, 1], [0, 2], 2)
