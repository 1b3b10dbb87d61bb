"""Label errors without training a network: a linear classifier on frozen features, cross-validated."""

import numpy as np

from .folds import assign_folds

MOST_ITERATIONS = 1000  # of L-BFGS; standardised features need a fraction of them
# Of the weights' Gaussian prior, times scikit-learn's default. The smaller it is, the less labels that are wrong are
# fitted: on 400 photographs with 30 % wrong labels and 320 features, of what is found 0.47 is wrong with 1 and 0.70
# with 0.001.
VARIANCES = (1.0, 0.1, 0.01, 0.001)


def linear_probabilities(features: np.ndarray, given: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """Class probabilities (N, K) of each sample, by a logistic regression on the folds that it is not in.

    That is cleanlab's own way for images and text. Features are standardised with the mean and deviation of the folds
    that are learned from. Of several priors of the weights that one is taken which gives the labels that were held
    out the largest likelihood; they are the given ones, since no others are known.

    Args:
        features: (N, d) finite floats.
        given: (N,) int64 in 0..K-1, the labels that may be wrong.
        num_folds, seed: as for [`assign_folds`].
    """
    folds = assign_folds(given, num_folds, seed)
    candidates = [_probabilities(features, given, folds, variance) for variance in VARIANCES]
    tiny = np.finfo(np.float64).tiny
    likelihoods = [np.log(np.maximum(found[np.arange(len(given)), given], tiny)).sum() for found in candidates]
    return candidates[int(np.argmax(likelihoods))]


def _probabilities(features: np.ndarray, given: np.ndarray, folds: np.ndarray, variance: float) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probabilities = np.zeros((len(given), int(given.max()) + 1))
    for fold in np.unique(folds):
        held_out = folds == fold
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=variance, max_iter=MOST_ITERATIONS))
        classifier.fit(features[~held_out].astype(np.float64), given[~held_out])
        found = classifier.predict_proba(features[held_out].astype(np.float64))
        probabilities[np.ix_(held_out, classifier.classes_)] = found
    return probabilities
