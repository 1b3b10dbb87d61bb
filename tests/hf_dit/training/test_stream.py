import numpy as np
import pytest
import torch

from hf_dit.training.stream import PixelSamples, StepBatches, TrainingStream, epoch_order


@pytest.mark.parametrize("length", [1, 2, 7, 30])
def test_each_epoch_visits_every_image_once(length):
    stream = TrainingStream(PixelSamples(torch.zeros(length, 3, 2, 2, dtype=torch.uint8)), None, seed=3)
    orders = [[stream.index(epoch * length + place) for place in range(length)] for epoch in range(3)]
    assert all(sorted(order) == list(range(length)) for order in orders)
    assert length < 7 or orders[0] != orders[1] != orders[2]
    assert length < 7 or list(epoch_order(4, 0, length)) != orders[0]


@pytest.mark.parametrize(("batch", "accumulation", "processes"), [(12, 1, 1), (1, 4, 3), (2, 3, 2), (3, 1, 4)])
def test_processes_and_micro_batches_share_the_positions_of_a_step(batch, accumulation, processes):
    taken = {}
    for process in range(processes):
        sampler = StepBatches(
            range(5, 8), batch_size=batch, accumulation=accumulation, processes=processes, process=process
        )
        assert len(list(sampler)) == len(sampler) == 3 * accumulation
        for number, positions in enumerate(sampler):
            taken.setdefault(5 + number // accumulation, []).extend(positions)
    assert all(sorted(taken[step]) == list(range(12 * step, 12 * step + 12)) for step in (5, 6, 7))


def test_a_sample_depends_on_seed_and_position_alone():
    images = torch.randint(256, (9, 3, 4, 6), dtype=torch.uint8)
    labels = torch.arange(9) % 4

    def stream(seed=0, **changes):
        return TrainingStream(PixelSamples(images), labels, seed=seed, **changes)

    one, other = stream(), stream()
    backwards = [other[p] for p in reversed(range(40))][::-1]
    loader = torch.utils.data.DataLoader(
        stream(), batch_sampler=StepBatches(range(5), batch_size=4, accumulation=2), num_workers=2
    )
    loaded = {name: torch.cat([batch[name] for batch in loader]) for name in one[0]}
    for position in range(40):
        for name, value in one[position].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(backwards[position][name]))
            assert torch.equal(torch.as_tensor(value), loaded[name][position])
        place = one.index(position)
        assert one[position]["label"] == labels[place]
        torch.testing.assert_close(one[position]["clean"], images[place] / 127.5 - 1)

    flipped = stream(random_flip=True)
    for position in range(40):  # a flag changes what it names
        a, b = one[position], flipped[position]
        assert torch.equal(a["noise"], b["noise"]) and a["timestep"] == b["timestep"] and a["drop"] == b["drop"]
        assert torch.equal(b["clean"], a["clean"]) or torch.equal(b["clean"], a["clean"].flip(2))
    mirrored = sum(not torch.equal(one[p]["clean"], flipped[p]["clean"]) for p in range(40))
    assert 8 <= mirrored <= 32
    assert not torch.equal(one[0]["noise"], stream(seed=1)[0]["noise"])
    assert not torch.equal(one[0]["noise"], one[9]["noise"])


def test_labels_are_dropped_and_timesteps_drawn_at_the_right_rates():
    left_and_right = torch.tensor([0, 255], dtype=torch.uint8).expand(7, 3, 1, 2)
    count = 6000
    for probability in (0.0, 0.1, 0.5):
        stream = TrainingStream(
            PixelSamples(left_and_right),
            torch.zeros(7, dtype=torch.int64),
            seed=0,
            num_timesteps=10,
            class_dropout_prob=probability,
            random_flip=True,
        )
        items = [stream[position] for position in range(count)]
        drop = np.array([item["drop"] for item in items])
        flip = np.array([item["clean"][0, 0, 0] == 1 for item in items])
        assert abs(drop.mean() - probability) <= 4 * np.sqrt(probability * (1 - probability) / count)
        assert abs(flip.mean() - 0.5) <= 2 / np.sqrt(count)
        assert abs((drop & flip).mean() - probability / 2) <= 2 / np.sqrt(count)  # neither tells the other
    timesteps = np.bincount([item["timestep"] for item in items], minlength=10)
    assert len(timesteps) == 10 and np.abs(timesteps - count / 10).max() < 5 * np.sqrt(count / 10)
    noise = torch.stack([item["noise"] for item in items])
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
    assert TrainingStream(PixelSamples(left_and_right), None, seed=0)[0].keys() == {"clean", "noise", "timestep"}
