"""Files that stand for images: those of other programs, written here as they write them."""

import io
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from evaluate_metrics.core.embeddings import load_embeddings, save_embeddings
from evaluate_metrics.core.encoders import make_encoder
from evaluate_metrics.core.frechet import frechet_distance, frechet_distance_at_infinity
from evaluate_metrics.core.image_sources import open_images
from evaluate_metrics.core.mmd import cmmd
from evaluate_metrics.core.moments import Moments
from evaluate_metrics.core.statistics import Statistics, save_statistics
from evaluate_metrics.core.stored import allowed_scores, fitted, is_stored, read_stored
from hf_common.foreign import LONGEST

DIM = 6


def vectors(n=50, seed=0, shift=0.0, unit=False, dim=DIM):
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) * torch.arange(1, dim + 1) / dim + shift
    return torch.nn.functional.normalize(x, dim=1) if unit else x


def moments(x):
    return Moments.zeros(x.shape[1]).update(x)


def numpy_statistics(x):
    """As pytorch-fid has them: `np.mean(act, axis=0)` and `np.cov(act, rowvar=False)`."""
    act = x.double().numpy()
    return np.mean(act, axis=0), np.cov(act, rowvar=False)


def saved(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


def encoder(dim=DIM, normalize=False):
    """An encoder of so many numbers."""

    def encode(images):
        return np.stack([np.resize(np.asarray(image, np.float64).mean((0, 1)) / 255 + 0.1, dim) for image in images])

    return make_encoder(encode, normalize=normalize)


# --- Mean and covariance ---


def test_both_ways_with_pytorch_fid(tmp_path):
    """A file as its `--save-stats` writes it, and one of ours, give the same distance, that of the vectors."""
    x, y = vectors(50), vectors(70, 1, 0.3)
    mu, sigma = numpy_statistics(x)
    np.savez_compressed(tmp_path / "theirs.npz", mu=mu, sigma=sigma)
    save_statistics(tmp_path / "ours.npz", moments(x))
    expected = frechet_distance(moments(x), moments(y))
    for name in ("theirs", "ours"):
        read = read_stored(tmp_path / f"{name}.npz").moments
        assert frechet_distance(read, moments(y)) == pytest.approx(expected, rel=1e-9)
        assert frechet_distance(moments(y), read) == pytest.approx(expected, rel=1e-9)
        assert frechet_distance(read, read) == pytest.approx(0, abs=1e-9)
    with np.load(tmp_path / "ours.npz") as ours:
        assert set(ours) == {"mu", "sigma"} and {ours[name].dtype for name in ours} == {np.dtype("float64")}
        np.testing.assert_allclose(ours["mu"], mu, rtol=1e-12)
        np.testing.assert_allclose(ours["sigma"], sigma, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match=r"ours\.npz is there already"):
        save_statistics(tmp_path / "ours.npz", moments(x))
    with pytest.raises(ValueError, match=r"ends in \.npz; got '.*stats\.txt'"):
        save_statistics(tmp_path / "stats.txt", moments(x))
    with pytest.raises(ValueError, match="2 images or more; got 1"):
        save_statistics(tmp_path / "one.npz", moments(x[:1]))
    assert {path.name for path in tmp_path.iterdir()} == {"theirs.npz", "ours.npz"}


def test_the_closed_form_from_files(tmp_path):
    """Of one covariance the distance is the squared distance of the means."""
    sigma = np.diag(np.arange(1.0, 4))
    a = read_stored(saved(tmp_path / "a.npz", mu=np.zeros(3), sigma=sigma)).moments
    b = read_stored(saved(tmp_path / "b.npz", mu=np.array([3.0, 0, 4]), sigma=sigma)).moments
    assert frechet_distance(a, b) == pytest.approx(25, rel=1e-12)
    c = read_stored(saved(tmp_path / "c.npz", mu=np.zeros(3), sigma=4 * sigma)).moments  # sum of (1 - 2)^2 sigma
    assert frechet_distance(a, c) == pytest.approx(6, rel=1e-12)


@pytest.mark.parametrize(
    ("names", "kinds"),
    [(("mu", "sigma"), (np.float32, np.float64)), (("m2", "s2"), (np.float64, np.float64))],
    ids=["clean-fid", "denoising-diffusion-pytorch"],
)
def test_names_and_kinds_of_numbers(tmp_path, names, kinds):
    mu, sigma = numpy_statistics(vectors())
    arrays = {name: array.astype(kind) for name, array, kind in zip(names, (mu, sigma), kinds, strict=True)}
    stored = read_stored(saved(tmp_path / "s.npz", **arrays))
    assert stored.words == "mean and covariance" and stored.metadata is None and stored.embeddings is None
    assert stored.moments.n is None and stored.moments.dim == DIM
    np.testing.assert_allclose(stored.moments.mean.numpy(), mu, rtol=1e-6)
    assert "no number of images" in allowed_scores(stored) and "fd" in allowed_scores(stored)


def test_a_count_makes_moments_of_them(tmp_path):
    x = vectors(50, unit=True)
    mu, sigma = numpy_statistics(x)
    path = saved(tmp_path / "s.npz", mu=mu, sigma=sigma)
    read = read_stored(path, count=50).moments
    expected = moments(x)
    assert read.n == 50
    torch.testing.assert_close(read.sum, expected.sum, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(read.outer, expected.outer, rtol=1e-9, atol=1e-9)
    y = moments(vectors(40, 1, unit=True))
    assert cmmd(read, y) == pytest.approx(tuple(cmmd(expected, y)), rel=1e-6)
    for count in (1, -3, 50.5, True):
        with pytest.raises(ValueError, match=f"2 images or more; got {count}"):
            read_stored(path, count=count)
    save_embeddings(tmp_path / "e.safetensors", x, {"encoder": "e", "preprocessing": "p"})
    with pytest.raises(ValueError, match=r"e\.safetensors: is of 50 images; got a count of 51"):
        read_stored(tmp_path / "e.safetensors", count=51)


def test_cmmd_without_a_count_is_the_biased_one(tmp_path):
    """The mean squared norm of unit vectors is 1, which tells (n - 1) / n: nothing is lost but what needs n itself."""
    x, y = vectors(9, unit=True), moments(vectors(40, 1, unit=True))
    read = read_stored(
        saved(tmp_path / "s.npz", **dict(zip(("mu", "sigma"), numpy_statistics(x), strict=True)))
    ).moments
    expected = cmmd(moments(x), y)
    for found in (cmmd(read, y), cmmd(y, read)):
        assert found.biased == pytest.approx(expected.biased, rel=1e-6)
        assert found.value == found.biased and found.unbiased is None and found.standard_error is None
        assert found.error_bound == pytest.approx(expected.error_bound, rel=1e-6)
    assert (cmmd(read, y).n_x, cmmd(read, y).n_y) == (None, 40)
    with pytest.raises(ValueError, match="unbiased=True needs the numbers of images"):
        cmmd(read, y, unbiased=True)
    with pytest.raises(ValueError, match="pairs need the embeddings"):
        cmmd(read, y, method="pairwise")
    others = Statistics(*(torch.from_numpy(array) for array in numpy_statistics(vectors())))
    with pytest.raises(ValueError, match="unit vectors are needed, those of y have a mean squared norm of"):
        cmmd(y, others)


def test_fd_infinity_of_references_without_a_count(tmp_path):
    x, y = vectors(200), vectors(300, 1, 0.3)
    path = saved(tmp_path / "s.npz", **dict(zip(("mu", "sigma"), numpy_statistics(y), strict=True)))
    found = frechet_distance_at_infinity(x, read_stored(path).moments)
    assert found.value == pytest.approx(frechet_distance_at_infinity(x, moments(y)).value, rel=1e-6)


def test_adm_reference_batches(tmp_path):
    """Its images are not those that its statistics are of; which is meant is said by the name of an array."""
    pool, spatial = vectors(80), vectors(80, 1, dim=9)
    (mu, sigma), (mu_s, sigma_s) = numpy_statistics(pool), numpy_statistics(spatial)
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    path = saved(tmp_path / "adm.npz", arr_0=images, mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s)
    assert is_stored(path) and not is_stored(path, "arr_0")
    assert read_stored(path).moments.dim == DIM
    found = read_stored(path, "mu_s").moments
    assert found.dim == 9
    np.testing.assert_allclose(found.sigma.numpy(), sigma_s, rtol=1e-9, atol=1e-12)
    assert not is_stored(saved(tmp_path / "samples.npz", arr_0=images, arr_1=np.arange(10)))
    with pytest.raises(ValueError, match=r"adm\.npz: holds the arrays .*'arr_0'.*, and not 'mu_clip'"):
        read_stored(path, "mu_clip")
    with pytest.raises(ValueError, match=r"adm\.npz: arr_0 holds uint8 of the shape .*, no embeddings"):
        read_stored(path, "arr_0")


@pytest.mark.parametrize("name", ["feats", "reps", "pool_3", "arr_0", None])
def test_embeddings_of_other_programs(tmp_path, name):
    """Of clean-fid's KID, dgm-eval, score_sde, `np.savez`, and cmmd-pytorch's `.npy`."""
    x = vectors(30)
    path = tmp_path / ("x.npy" if name is None else "x.npz")
    if name is None:
        np.save(path, x.numpy())
    else:
        np.savez(path, **{name: x.numpy(), "hparams": np.array({"seed": 0}, dtype=object)})
    stored = read_stored(path)
    assert stored.moments.n == 30 and torch.equal(stored.embeddings, x) and stored.metadata is None
    assert stored.words == "30 embeddings" and allowed_scores(stored) == "all scores"
    assert allowed_scores(stored, False) == "all scores but clip_score, whose captions it lacks"
    torch.testing.assert_close(stored.moments.outer, moments(x).outer)


def test_caches_of_torch_fidelity(tmp_path):
    x = vectors(30)
    mu, sigma = numpy_statistics(x)
    torch.save({"mu": mu.astype(np.float32), "sigma": sigma}, tmp_path / "stat.pt")
    stored = read_stored(tmp_path / "stat.pt")
    assert stored.moments.n is None
    np.testing.assert_allclose(stored.moments.sigma.numpy(), sigma, rtol=1e-9, atol=1e-12)
    torch.save(x, tmp_path / "features.pt")
    assert torch.equal(read_stored(tmp_path / "features.pt").embeddings, x)


class Bomb:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_nothing_runs(tmp_path, capsys):
    torch.save({"mu": Bomb(), "sigma": 1}, tmp_path / "bomb.pt")
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps({"fid": Bomb()}))
    np.savez(tmp_path / "bomb.npz", mu=np.array([Bomb()], dtype=object), sigma=np.zeros((1, 1)))
    np.save(tmp_path / "bomb.npy", np.array([[Bomb()]], dtype=object), allow_pickle=True)
    for name, message in (
        ("bomb.pt", "holds more than arrays, and is not read"),
        ("bomb.pkl", r"is a pickle, .* not read; where you trust it, .*numpy\.savez"),
        ("bomb.npz", "mu holds Python objects"),
        ("bomb.npy", "it holds object of the shape"),
    ):
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            read_stored(tmp_path / name)
    assert capsys.readouterr().out == ""


def bad(**changes):
    mu, sigma = numpy_statistics(vectors())
    arrays = {"mu": mu, "sigma": sigma}
    for name, change in changes.items():
        arrays[name] = change(arrays[name].copy())
    return arrays


def with_value(value, *place):
    def change(array):
        array[place] = value
        return array

    return change


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (bad(sigma=lambda s: s[:4]), r"mu and sigma must be .* of the shapes \(d,\) and \(d, d\); got .*\(4, 6\)"),
        (bad(mu=lambda m: m[None]), r"must be .*; got float64 \(1, 6\)"),
        (bad(mu=lambda m: m.astype(int)), "must be floating-point numbers"),
        (bad(mu=with_value(np.nan, 2)), "mu and sigma hold NaN or infinity"),
        (bad(sigma=with_value(np.inf, 2, 2)), "mu and sigma hold NaN or infinity"),
        (bad(sigma=with_value(0.5, 0, 5)), "no covariance, which is symmetric"),
        (bad(sigma=with_value(-1.0, 3, 3)), "no negative number on its diagonal"),
        (bad(sigma=lambda s: s + 9 * (1 - np.eye(6))), "one is larger than the variances allow"),
        (
            bad(sigma=lambda s: np.diag(s.diagonal()) - 0.3 * np.sqrt(np.outer(s.diagonal(), s.diagonal()))),
            "eigenvalue -",
        ),
        ({"mu": np.zeros(3)}, r"holds the arrays \['mu'\], and not mu and sigma"),
        ({"weights": np.zeros((3, 3))}, r"holds the arrays \['weights'\]"),
        ({"reps": np.zeros((3, 3), int)}, "reps holds int64 of the shape"),
        ({"reps": np.full((3, 3), np.nan)}, "its embeddings hold NaN or infinity in 3 of 3 rows"),
        ({"reps": np.zeros((0, 3))}, "holds no embeddings"),
    ],
)
def test_wrong_numbers_are_refused(tmp_path, arrays, message):
    path = saved(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(ValueError, match=f"^{path}: .*{message}") as caught:
        read_stored(path)
    assert len(str(caught.value)) <= LONGEST


def test_a_covariance_of_another_size_is_not_read(tmp_path):
    np.savez_compressed(tmp_path / "huge.npz", mu=np.zeros(6), sigma=np.zeros((4000, 4000)))  # 128 MB in 0.1 MB
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"huge.npz: mu and sigma must be .* \(6,\) and .*\(4000, 4000\)"):
        read_stored(tmp_path / "huge.npz")
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()


def test_what_is_no_such_file(tmp_path):
    for name in ("a.npz", "a.npy", "a.pt", "a.safetensors"):
        (tmp_path / name).write_bytes(b"no such file")
        with pytest.raises(ValueError, match=name):
            read_stored(tmp_path / name)
        with pytest.raises(FileNotFoundError, match=f"gone.*{name}"):
            read_stored(tmp_path / "gone" / name)
    with pytest.raises(ValueError, match=r"a\.npy: has no arrays to choose from; got 'mu'"):
        read_stored(tmp_path / "a.npy", "mu")
    np.savez(tmp_path / "empty.npz")
    with pytest.raises(ValueError, match="holds no arrays"):
        read_stored(tmp_path / "empty.npz")
    np.savez(tmp_path / "named.npz", images=np.zeros((2, 5, 4, 3), np.uint8), labels=np.zeros(2))
    assert not is_stored(tmp_path / "named.npz") and len(open_images(tmp_path / "named.npz")) == 2
    assert is_stored(saved(tmp_path / "vectors.npz", x=np.zeros((3, 3))))
    assert not is_stored("images.zip") and not is_stored(tmp_path) and not is_stored("shard-*.npz")


@pytest.mark.parametrize("form", ["npz", "stored npz", "pt", "embeddings"])
def test_damage_is_refused_or_without_effect(tmp_path, damages, form):
    """A flipped bit in a plain `.npy`, which has no checksum, can't be seen; in the others it is."""
    mu, sigma = numpy_statistics(vectors())
    path = tmp_path / ("x.pt" if form == "pt" else "x.safetensors" if form == "embeddings" else "x.npz")
    if form == "pt":
        torch.save({"mu": mu, "sigma": sigma}, path)
    elif form == "embeddings":
        save_embeddings(path, vectors(), {"encoder": "e", "preprocessing": "p"})
    else:
        (np.savez_compressed if form == "npz" else np.savez)(path, mu=mu, sigma=sigma)
    content, whole, refused, wrong = path.read_bytes(), read_stored(path).moments, 0, 0
    for damaged in damages(content, 150):
        path.write_bytes(damaged)
        try:
            found = read_stored(path).moments
        except ValueError as error:
            assert str(error).startswith(str(path)) and len(str(error)) <= LONGEST
            refused += 1
        else:
            wrong += not torch.equal(found.mean, whole.mean) or not torch.equal(found.covariance(), whole.covariance())
    assert refused > 75 and wrong == 0


# --- Embeddings ---


def test_embeddings_are_kept_in_either_precision(tmp_path):
    x, metadata = vectors(40), {"encoder": "e", "preprocessing": "p", "probe": "q"}
    for dtype, rel in (("float32", 0), ("float16", 1e-3)):
        path = tmp_path / f"{dtype}.safetensors"
        save_embeddings(path, x, metadata, dtype)
        found, told = load_embeddings(path)
        assert found.dtype == torch.float32 and told["images"] == "40" and told.items() >= metadata.items()
        torch.testing.assert_close(found, x, rtol=rel, atol=rel / 10)
        stored = read_stored(path)
        assert stored.moments.n == 40 and stored.metadata == told and stored.words == "embeddings"
    sizes = [(tmp_path / f"{dtype}.safetensors").stat().st_size for dtype in ("float32", "float16")]
    assert sizes[0] - sizes[1] == pytest.approx(40 * DIM * 2, abs=8)
    for values, options, message in (
        (x, {"metadata": {"encoder": "e"}}, r"missing: \['preprocessing'\]"),
        (x, {"dtype": "int8"}, "dtype must be one of float32, float16; got 'int8'"),
        (x[:0], {}, r"n >= 1; got \(0, 6\)"),
        (x * 1e5, {"dtype": "float16"}, "numbers that are none in float16"),
    ):
        with pytest.raises(ValueError, match=message):
            save_embeddings(tmp_path / "no.safetensors", values, **{"metadata": metadata, **options})
    moments(x).save(tmp_path / "m.safetensors", metadata)
    with pytest.raises(ValueError, match="is no file of embeddings: it holds the tensors"):
        load_embeddings(tmp_path / "m.safetensors")


# --- For an encoder ---


def test_files_fit_their_encoder_alone(tmp_path):
    mu, sigma = numpy_statistics(vectors())
    stored = read_stored(saved(tmp_path / "s.npz", mu=mu, sigma=sigma))
    same, notes = fitted(stored, encoder(), "s.npz")
    assert same is stored and len(notes) == 2
    assert notes[0].startswith("s.npz (mean and covariance) names no encoder: that it is of ")
    assert notes[1].startswith("s.npz has no number of images: of it there can be fd, and cmmd without unbiased")
    with pytest.raises(ValueError, match=r"^s\.npz has 6 dimensions, .* 7$"):
        fitted(stored, encoder(7), "s.npz")
    with pytest.raises(ValueError, match="of another encoder than .* unit vectors are needed"):
        fitted(stored, encoder(normalize=True), "s.npz")
    counted = read_stored(tmp_path / "s.npz", count=50)
    with pytest.raises(ValueError, match="is not of unit vectors, as .* but of a mean squared norm of"):
        fitted(counted, encoder(normalize=True), "s.npz")


def test_embeddings_are_normalised_as_the_encoder_does_it(tmp_path):
    np.save(tmp_path / "x.npy", vectors().numpy())
    stored = read_stored(tmp_path / "x.npy")
    assert fitted(stored, encoder(), "x")[0] is stored
    unit, notes = fitted(stored, encoder(normalize=True), "x")
    torch.testing.assert_close(unit.embeddings, vectors(unit=True))
    assert (
        unit.moments.outer.trace() == pytest.approx(50, rel=1e-6) and notes[-1] == "x: vectors divided by their norms"
    )
    assert len(fitted(unit, encoder(normalize=True), "x")[1]) == 1
    np.save(tmp_path / "zero.npy", np.zeros((3, DIM), np.float32))
    with pytest.raises(ValueError, match="x holds a zero vector"):
        fitted(read_stored(tmp_path / "zero.npy"), encoder(normalize=True), "x")


def test_own_files_name_their_encoder(tmp_path):
    one = encoder()
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    x = one.encode([buffer.getvalue()] * 3)
    save_embeddings(tmp_path / "e.safetensors", x, one.metadata)
    assert fitted(read_stored(tmp_path / "e.safetensors"), one, "e")[1] == []
    with pytest.raises(ValueError, match="^e are of the encoder .* normalized"):
        fitted(read_stored(tmp_path / "e.safetensors"), encoder(normalize=True), "e")


@pytest.mark.parametrize("count", [-3, 0, 1, 2.5, 1 << 54, 10**20])
def test_counts_that_no_set_has(count):
    with pytest.raises(ValueError, match=f"a covariance is of .*; got {count}"):
        Statistics(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)).counted(count)


@pytest.mark.parametrize(
    "tensor", [torch.eye(4).to_sparse(), torch.empty(4, 4, device="meta")], ids=["sparse", "meta"]
)
@pytest.mark.parametrize("form", [lambda rows: rows, lambda rows: {"mu": torch.zeros(4), "sigma": rows}])
def test_tensors_that_are_no_plain_arrays_are_refused(tensor, form, tmp_path):
    torch.save(form(tensor), tmp_path / "t.pt")
    with pytest.raises(ValueError, match=r"t\.pt: holds a tensor that is no plain array"):
        read_stored(tmp_path / "t.pt")


def test_tensors_of_other_kinds_are_read_by_their_numbers(tmp_path):
    mean, sigma = torch.ones(4, requires_grad=True), torch.eye(4, dtype=torch.bfloat16)
    torch.save({"mu": mean, "sigma": sigma}, tmp_path / "t.pt")
    moments = read_stored(tmp_path / "t.pt").moments
    assert torch.equal(moments.mean, torch.ones(4).double()) and torch.equal(moments.sigma, torch.eye(4).double())


def test_files_of_other_endings_are_not_called_pickles(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"a\.zip: is no file that stands for images, which end in .*\.pth$"):
        read_stored(tmp_path / "a.zip")
