from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from evaluate_metrics.core.moments import Moments, save_with_digest
from hf_common.foreign import LONGEST

METADATA = {"encoder": "some/model", "preprocessing": "square 32"}


def rows(n, d, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype) + np.linspace(-3, 5, d, dtype=dtype)


def same_bits(a, b):
    return a.n == b.n and torch.equal(a.sum, b.sum) and torch.equal(a.outer, b.outer)


@pytest.mark.parametrize(("n", "d"), [(1, 1), (2, 5), (7, 3), (1300, 11), (40, 65)])
def test_mean_and_covariance_are_those_of_numpy(n, d):
    x = rows(n, d)
    moments = Moments.zeros(d).update(x)
    exact = x.astype(np.float64)
    assert moments.n == n and moments.dim == d
    assert moments.sum.dtype == moments.outer.dtype == torch.float64
    np.testing.assert_allclose(moments.mean, exact.mean(0), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(moments.outer, exact.T @ exact, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        moments.covariance(unbiased=False), np.atleast_2d(np.cov(exact.T, bias=True)), rtol=1e-11, atol=1e-11
    )
    if n > 1:
        np.testing.assert_allclose(moments.covariance(), np.atleast_2d(np.cov(exact.T)), rtol=1e-11, atol=1e-11)


def test_merged_moments_of_integers_are_one_pass_bit_for_bit():
    x = np.random.default_rng(1).integers(-9, 10, (3001, 37)).astype(np.float32)
    one_pass = Moments.zeros(37).update(x)
    parts = [Moments.zeros(37).update(part) for part in np.split(x, [1, 700, 700, 2999])]
    merged, backwards = parts[0], parts[-1]
    for part in parts[1:]:
        merged = merged.merge(part)
    for part in parts[-2::-1]:
        backwards = backwards.merge(part)
    assert same_bits(merged, one_pass) and same_bits(backwards, one_pass)
    whole = x.astype(np.int64)
    assert np.array_equal(one_pass.outer.numpy(), whole.T @ whole) and np.array_equal(one_pass.sum, whole.sum(0))


def test_merged_moments_are_one_pass_to_1e_12():
    x = rows(5000, 48)
    one_pass, merged = Moments.zeros(48).update(x), Moments.zeros(48)
    for part in np.array_split(x, 13):
        merged = merged.merge(Moments.zeros(48).update(part))
    assert merged.n == 5000
    for name in ("sum", "outer", "mean"):
        a, b = getattr(merged, name), getattr(one_pass, name)
        assert (a - b).norm() <= 1e-12 * b.norm()
    assert (merged.covariance() - one_pass.covariance()).norm() <= 1e-12 * one_pass.covariance().norm()


def test_merging_changes_neither_side():
    a, b = Moments.zeros(4).update(rows(3, 4, 0)), Moments.zeros(4).update(rows(5, 4, 1))
    before = [a.outer.clone(), b.outer.clone()]
    a.merge(b).update(rows(2, 4))
    assert a.n == 3 and b.n == 5 and torch.equal(a.outer, before[0]) and torch.equal(b.outer, before[1])


def test_float32_batches_lose_nothing_in_float64():
    # 1 + 2^-23 squared needs 47 bits: a float32 product would round it.
    x = np.full((8, 2), 1 + 2**-23, dtype=np.float32)
    assert Moments.zeros(2).update(x).outer[0, 1] == 8 * (1 + 2**-23) ** 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_dtype_and_tensors_and_arrays(dtype):
    x = torch.from_numpy(rows(20, 6)).to(dtype)
    moments = Moments.zeros(6).update(x)
    assert torch.allclose(moments.sum, x.double().sum(0), rtol=1e-14)
    if dtype != torch.bfloat16:
        of_array = Moments.zeros(6).update(x.numpy())
        torch.testing.assert_close((of_array.sum, of_array.outer), (moments.sum, moments.outer), rtol=1e-13, atol=0)


def test_views_gradients_and_empty_batches():
    x = rows(30, 6)
    moments = Moments.zeros(6).update(x[::-2])
    assert moments.n == 15 and np.allclose(moments.sum, x[::-2].sum(0, dtype=np.float64))
    locked = x.copy()
    locked.setflags(write=False)
    assert moments.update(locked) is moments
    moments.update(torch.ones(1, 6, requires_grad=True)).update(np.empty((0, 6), np.float32))
    assert moments.n == 46 and not moments.sum.requires_grad


@pytest.mark.parametrize(
    ("batch", "error", "words"),
    [
        (np.full((2, 3), np.nan, np.float32), ValueError, "NaN or infinity in 2 of 2 rows, the first is row 0"),
        (torch.tensor([[1.0, 2, 3], [4, float("inf"), 6]]), ValueError, "in 1 of 2 rows, the first is row 1"),
        (np.ones((2, 4), np.float32), ValueError, "must have 3 columns as those before, got 4"),
        (np.ones(3, np.float32), ValueError, r"shape \(images, dimensions\), got \(3,\)"),
        (np.ones((2, 0), np.float32), ValueError, "shape"),
        (np.ones((2, 3), np.int64), TypeError, "floating-point numbers, got int64"),
        (torch.ones(2, 3, dtype=torch.int32), TypeError, "floating-point numbers, got torch.int32"),
        ([[1.0, 2.0, 3.0]], TypeError, "got list"),
    ],
)
def test_bad_batches_are_refused_and_leave_the_moments_alone(batch, error, words):
    moments = Moments.zeros(3).update(np.ones((2, 3), np.float32))
    with pytest.raises(error, match=words):
        moments.update(batch)
    assert same_bits(moments, Moments.zeros(3).update(np.ones((2, 3), np.float32)))


def test_too_few_embeddings_and_unlike_dimensions_are_refused():
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        Moments.zeros(0)
    with pytest.raises(ValueError, match="at least 1 embedding, got none"):
        _ = Moments.zeros(3).mean
    with pytest.raises(ValueError, match="at least 2 embeddings, got 1"):
        Moments.zeros(3).update(rows(1, 3)).covariance()
    with pytest.raises(ValueError, match="of 3 and of 4 dimensions"):
        Moments.zeros(3).merge(Moments.zeros(4))


def test_a_file_brings_back_the_same_bits_and_can_be_added_to(tmp_path):
    moments = Moments.zeros(5).update(rows(17, 5))
    path = tmp_path / "new" / "folder" / "m.safetensors"
    moments.save(path, {**METADATA, "note": "half"})
    moments.save(path, METADATA)  # over the one before
    assert [file.name for file in path.parent.iterdir()] == ["m.safetensors"]
    loaded, metadata = Moments.load(path)
    assert same_bits(loaded, moments)
    assert len(metadata.pop("sha256")) == 64
    assert metadata == {**METADATA, "version": "2", "images": "17"}
    loaded.update(rows(3, 5))
    # Metadata may be those of a file, once its number is corrected.
    loaded.save(path, {**Moments.load(path)[1], "images": "20"})
    assert Moments.load(path)[0].n == 20


def test_metadata_must_be_complete_and_true(tmp_path):
    moments = Moments.zeros(2).update(rows(4, 2))
    with pytest.raises(ValueError, match=r"missing: \['preprocessing'\]"):
        moments.save(tmp_path / "m", {"encoder": "x"})
    with pytest.raises(ValueError, match="must agree with these moments.*got {'images': '5'}"):
        moments.save(tmp_path / "m", {**METADATA, "images": "5"})
    with pytest.raises(ValueError, match="moments of no images can't be saved"):
        Moments.zeros(2).save(tmp_path / "m", METADATA)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [
        ({"weight": torch.zeros(2)}, None, r"is not a moments file: it holds the tensors \['weight'\]"),
        ({"sum": torch.zeros(2), "outer": torch.zeros(2, 2)}, {}, "must hold float64 tensors"),
        ({"sum": torch.zeros(2).double(), "outer": torch.zeros(2, 3).double()}, {}, r"torch.float64 \(2, 3\)"),
        (
            {"sum": torch.zeros(2).double(), "outer": torch.zeros(2, 2).double()},
            {"version": "7"},
            "has format version 7",
        ),
        (
            {"sum": torch.zeros(2).double(), "outer": torch.zeros(2, 2).double()},
            {"images": "many"},
            "finite sums of a number of images, got 'many' images",
        ),
        ({"sum": torch.full((2,), float("nan")).double(), "outer": torch.zeros(2, 2).double()}, {}, "finite sums"),
        (
            {"sum": torch.zeros(2).double(), "outer": torch.zeros(2, 2).double()},
            {"images": "0"},
            "a number of images, got '0'",
        ),
        (
            {"sum": torch.zeros(2).double(), "outer": torch.zeros(2, 2).double()},
            {"images": "9" * 5000},
            "a number of images, got '9",
        ),
        (
            {"sum": torch.zeros(2).double(), "outer": torch.tensor([[1, 0.5], [0.4, 1]]).double()},
            {},
            "a symmetric 'outer'",
        ),
        (
            {"sum": torch.zeros(2).double(), "outer": torch.tensor([[1.0, 0], [0, -1]]).double()},
            {},
            "without negative numbers",
        ),
        (
            {"sum": torch.zeros(2).double(), "outer": torch.tensor([[4, 6.1], [6.1, 9]]).double()},
            {},
            "sums that no 3 embeddings have",
        ),
        (
            {"sum": torch.tensor([3.5, 0]).double(), "outer": torch.tensor([[4, 0], [0, 9]]).double()},
            {},
            "sums that no 3 embeddings have",
        ),
        ({"sum": torch.zeros(0).double(), "outer": torch.zeros(0, 0).double()}, {}, "finite sums"),
    ],
)
def test_other_safetensors_files_are_refused_by_name(tmp_path, tensors, metadata, words):
    path = tmp_path / "other.safetensors"
    complete = {**METADATA, "version": "2", "images": "3"}
    if metadata is None:
        save_file(tensors, path)
    else:
        save_with_digest(path, tensors, {**complete, **metadata})
    with pytest.raises(ValueError, match=f"other.safetensors.*{words}") as caught:
        Moments.load(path)
    assert len(str(caught.value)) <= LONGEST


def test_what_embeddings_can_have_is_loaded(tmp_path):
    """Those that lie on one line, where the inequalities are equalities, are not refused for their rounding."""
    for n, step in ((1, 1e-30), (3, 1e-7), (1000, 1 / 3), (4000, 1e9)):
        direction = rows(1, 9, dtype=np.float64) * step
        direction[0, 4] = 0
        moments = Moments.zeros(9).update(np.repeat(direction, n, 0))
        moments.save(tmp_path / "m", METADATA)
        assert same_bits(Moments.load(tmp_path / "m")[0], moments)


def test_format_1_is_refused_with_what_makes_it_anew():
    path = Path(__file__).with_name("moments_0_1.safetensors")
    with pytest.raises(ValueError, match="moments_0_1.safetensors: is of format 1, without a digest") as caught:
        Moments.load(path)
    for words in ("evaluate_images.py --encoders 'mine.quarters' --save_moments", "metric.moments(images)"):
        assert words in str(caught.value)


def content_of_a_file(path):
    Moments.zeros(6).update(rows(17, 6)).save(path, {**METADATA, "source": "grün"})
    return path.read_bytes()


def test_every_flipped_bit_is_seen(tmp_path):
    content, path = content_of_a_file(tmp_path / "m"), tmp_path / "m"
    draw = np.random.default_rng(0)
    # The head, which has names and numbers as text, twice as often as its share.
    places = [*draw.integers(0, len(content), 200).tolist(), *draw.integers(0, 600, 100).tolist()]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(draw.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(ValueError) as caught:
            Moments.load(path)
        assert str(caught.value).startswith(f"{path}: ") and len(str(caught.value)) <= LONGEST


def test_damage_of_any_kind_is_refused_or_without_effect(damages, tmp_path):
    content, path = content_of_a_file(tmp_path / "m"), tmp_path / "m"
    whole, metadata = Moments.load(path)
    refused = 0
    for damaged in damages(content, 300):
        path.write_bytes(damaged)
        try:
            found = Moments.load(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and len(str(error)) <= LONGEST
            refused += 1
        else:
            assert same_bits(found[0], whole) and found[1] == metadata
    assert refused >= 295


def test_other_files_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="no moments file at .*gone"):
        Moments.load(tmp_path / "gone")
    path = tmp_path / "text"
    path.write_text("not a tensor in sight")
    with pytest.raises(ValueError, match="text: is no safetensors file"):
        Moments.load(path)
