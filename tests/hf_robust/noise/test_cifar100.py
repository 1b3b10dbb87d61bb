"""Noise on CIFAR-100: the ring that papers describe, and the one that their code runs."""

import numpy as np
import pytest

from hf_robust import make_noisy_labels, transition_matrix
from hf_robust.data.load import add_noise
from hf_robust.data.memory import ImageTensorDataset
from hf_robust.noise.cifar100 import CIFAR100_CLASSES, SUPERCLASSES, are_cifar100

LABELS = np.repeat(np.arange(100), 500)
COARSE = np.array(SUPERCLASSES)


def test_the_table_of_superclasses():
    assert len(CIFAR100_CLASSES) == 100 and list(CIFAR100_CLASSES) == sorted(CIFAR100_CLASSES)
    assert np.bincount(SUPERCLASSES).tolist() == [5] * 20
    members = {"aquatic mammals": 0, "trees": 17, "vehicles 2": 19, "people": 14}
    named = {name: [CIFAR100_CLASSES[i] for i in np.flatnonzero(group == COARSE)] for name, group in members.items()}
    assert named == {
        "aquatic mammals": ["beaver", "dolphin", "otter", "seal", "whale"],
        "trees": ["maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"],
        "vehicles 2": ["lawn_mower", "rocket", "streetcar", "tank", "tractor"],
        "people": ["baby", "boy", "girl", "man", "woman"],
    }


@pytest.mark.parametrize("noise", ["superclass", "block5"])
def test_a_ring_of_five_at_the_rate_that_is_asked_for(noise):
    matrix = transition_matrix(f"{noise}_20", 100)
    np.testing.assert_allclose(matrix.sum(0), 1)
    np.testing.assert_allclose(np.diag(matrix), 0.8)
    targets = (matrix - 0.8 * np.eye(100)).argmax(1)
    ring = np.arange(100)
    for _ in range(5):
        ring = targets[ring]
    assert ring.tolist() == list(range(100)) and (targets != np.arange(100)).all()
    noisy = make_noisy_labels(LABELS, f"{noise}_20", num_classes=100)
    assert [(noisy[c == LABELS] != c).sum() for c in range(100)] == [100] * 100
    # Of the released codes: RandomState(0).multinomial by the rows of this matrix.
    draw = np.random.RandomState(0)
    published = np.array([draw.multinomial(1, row).argmax() for row in matrix[LABELS]])
    assert (published != LABELS).mean() == pytest.approx({"superclass": 0.20024, "block5": 0.1991}[noise], abs=6e-5)
    assert ((published[:500] != 0).sum(), (published[500:1000] != 1).sum()) == (95, 106)
    assert (COARSE[published] != COARSE[LABELS]).mean() == pytest.approx(
        {"superclass": 0, "block5": 0.18734}[noise], abs=6e-6
    )


def test_six_arrows_of_the_blocks_stay_in_a_superclass():
    targets = (transition_matrix("block5_20", 100) - 0.8 * np.eye(100)).argmax(1)
    inside = [CIFAR100_CLASSES[i] for i in range(100) if COARSE[i] == COARSE[targets[i]]]
    assert inside == ["bee", "cattle", "leopard", "possum", "telephone", "tractor"] or inside == [
        "bee", "cattle", "leopard", "porcupine", "telephone", "tractor",
    ]  # fmt: skip


def test_other_classes_are_refused():
    with pytest.raises(ValueError, match="superclass_20 is defined on the 100 classes of CIFAR-100, got 10"):
        transition_matrix("superclass_20", 10)
    with pytest.raises(ValueError, match="block5_20 needs a multiple of 5 classes, got 12"):
        transition_matrix("block5_20", 12)
    spelled = [{"crab": "cra", "maple_tree": "maple"}.get(name, name) for name in CIFAR100_CLASSES]
    assert are_cifar100(spelled) and not are_cifar100(spelled[::-1])
    import torch

    images = torch.zeros(100, 3, 2, 2, dtype=torch.uint8)
    train = ImageTensorDataset(images, torch.arange(100))
    assert (add_noise(train, "superclass_100", spelled).labels != train.labels).all()
    with pytest.raises(ValueError, match="is defined on the superclasses of CIFAR-100"):
        add_noise(train, "superclass_20", [str(i) for i in range(100)])
