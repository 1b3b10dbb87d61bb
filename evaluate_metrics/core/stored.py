"""What stands for a set of images: files of moments, of embeddings, and the statistics that other programs write.

| program | file | what is read |
| --- | --- | --- |
| this one | `.safetensors` | moments, or embeddings |
| pytorch-fid, clean-fid, TTUR, EDM | `.npz` with `mu`, `sigma` | mean and covariance |
| denoising-diffusion-pytorch | `.npz` with `m2`, `s2` | mean and covariance |
| ADM (guided-diffusion) | `.npz` with `mu`, `sigma`, `mu_s`, `sigma_s`, perhaps `arr_0` | mean and covariance |
| clean-fid (KID), dgm-eval, score_sde | `.npz` with `feats`, `reps`, `pool_3` | embeddings |
| torch-fidelity | `.pt` | mean and covariance, or embeddings |
| cmmd-pytorch | `.npy` | embeddings |

None of the others names its encoder, and mean and covariance come without the number of images. Nothing is unpickled
but by PyTorch's own reader of weights, which builds arrays and calls no code.
"""

import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hf_common.foreign import read_tensors, refuse, short

from .embeddings import load_embeddings
from .encoders import Encoder
from .moments import Moments, float_matrix
from .numpy_files import DAMAGED, ArrayHead, array_heads, read_named_array
from .statistics import Statistics, check_shapes, checked_statistics, joined, part_of

STORED_ENDINGS = (".safetensors", ".npz", ".npy", ".pt", ".pth", ".pkl")
PAIRS = {"mu": "sigma", "m2": "s2", "mu_s": "sigma_s", "mu_clip": "sigma_clip"}  # mean: covariance
FEATURES = ("feats", "reps", "pool_3", "arr_0", "")  # "": of a .npy file
COUNTLESS = "fd, and cmmd without unbiased estimate and standard error"
UNIT_ROWS = 1e-3  # what norms may be off 1


class Stored(NamedTuple):
    """What a file holds in place of images.

    moments: with their number n, or [`Statistics`] without. embeddings: (n, d) float32, where the file has them.
    metadata: of the encoder, see [`Encoder.check`]; None: the file names none. words: what it holds, for messages.
    spatial: of the spatial features of the same images, where the file has them apart.
    """

    moments: Moments | Statistics
    embeddings: Tensor | None
    metadata: dict[str, str] | None
    words: str
    spatial: Moments | Statistics | None = None


def is_stored(path: str | os.PathLike, array: str | None = None) -> bool:
    """Whether [`read_stored`] is to read a file, by its name; arrays of images it leaves to [`open_images`].

    Raises:
        ValueError: a `.npz` or `.npy` that is damaged.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in STORED_ENDINGS or path.is_dir():
        return False
    if ending not in (".npz", ".npy"):
        return True
    if not path.is_file():
        return not re.search(r"[*?\[{]", os.fspath(path))  # a pattern is one of images
    heads = array_heads(path)
    named = array if array is not None else _default_array(heads)
    if named is None:  # neither statistics nor embeddings
        return not any(looks_like_images(head) for head in heads.values())
    return named not in heads or not looks_like_images(heads[named])


def looks_like_images(head: ArrayHead) -> bool:
    """Whether an array can be of images: 3 or 4 dimensions."""
    return len(head.shape) in (3, 4)


def read_stored(path: str | os.PathLike, array: str | None = None, count: int | None = None) -> Stored:
    """What a file holds, see the table of this module.

    Args:
        array: of a `.npz` with several sets, the name of the one; of mean and covariance, that of the mean. Default:
            `mu`, or else what there is.
        count: the number of images of mean and covariance, which makes them moments.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of these, damaged, or has another number of images; begins with its path.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {os.fspath(path)!r}")
    ending = path.suffix.lower()
    if array is not None and ending != ".npz":
        raise refuse(path, f"has no arrays to choose from; got {array!r}")
    if ending == ".safetensors":
        stored = _of_own(path)
    elif ending in (".npz", ".npy"):
        stored = _of_arrays(path, array)
    elif ending in (".pt", ".pth"):
        stored = _of_torch(path)
    elif ending != ".pkl":
        raise refuse(path, f"is no file that stands for images, which end in {', '.join(STORED_ENDINGS[:-1])}")
    else:
        raise refuse(
            path,
            "is a pickle, which can run code and is not read; where you trust it, write its arrays: d = pickle.load("
            "open(name, 'rb'))['fid']; numpy.savez(other, mu=d['mu'], sigma=d['sigma'])",
        )
    if count is None:
        return stored
    if isinstance(stored.moments, Statistics):
        words = f"mean and covariance, of {count} images as was said"
        spatial = stored.spatial.counted(count) if isinstance(stored.spatial, Statistics) else None
        return stored._replace(moments=stored.moments.counted(count), words=words, spatial=spatial)
    if stored.moments.n != count:
        raise refuse(path, f"is of {stored.moments.n} images; got a count of {count}")
    return stored


def allowed_scores(stored: Stored, countable: bool = True) -> str:
    """Which scores a file allows, in words. countable: of references, whose number reference_count can say."""
    if stored.embeddings is not None:
        return "all scores" if countable else "all scores but clip_score, whose captions it lacks"
    if isinstance(stored.moments, Statistics):
        more = "; with reference_count=N all that take moments" if countable else ""
        return f"{COUNTLESS}, for there is no number of images{more}"
    return "scores that take moments, such as cmmd and fd; not kid and p_value, which take embeddings"


def fitted(stored: Stored, encoder: Encoder, name: str) -> tuple[Stored, list[str]]:
    """What is stored, for an encoder, and notes for readers of the scores.

    Parts that the encoder does not give are left out. Spatial features that the file has apart are put behind the
    others where it gives them.

    Raises:
        ValueError: it is of another encoder, of another number of dimensions, lacks the spatial features that the
            encoder gives, or no unit vectors where the encoder gives those; begins with `name`.
    """
    if stored.metadata is not None:
        encoder.check(stored.metadata, name)
    stored = _with_parts(stored, encoder, name)
    dim = stored.moments.dim
    if dim != encoder.dim:
        raise ValueError(f"{name} has {dim} dimensions, {encoder.name} {encoder.dim}")
    if stored.metadata is not None:
        return stored, []
    notes = [f"{name} ({stored.words}) names no encoder: that it is of {encoder.name} is taken on trust"]
    if isinstance(stored.moments, Statistics):
        notes.append(f"{name} has no number of images: of it there can be {COUNTLESS}")
    if not encoder.normalized:
        return stored, notes
    if stored.embeddings is None:
        return stored._replace(moments=_of_unit_vectors(stored.moments, name, encoder)), notes
    norms = stored.embeddings.norm(dim=1, keepdim=True)
    if (norms == 0).any():
        raise ValueError(f"{name} holds a zero vector, which has no direction")
    if ((norms - 1).abs() <= UNIT_ROWS).all():
        return stored, notes
    rows = stored.embeddings / norms
    moments = Moments.zeros(dim).update(rows)
    return stored._replace(moments=moments, embeddings=rows), [*notes, f"{name}: vectors divided by their norms"]


def _with_parts(stored: Stored, encoder: Encoder, name: str) -> Stored:
    """The parts that the encoder gives, where others or less are stored."""
    features = encoder.parts["features"]
    held = stored.metadata is not None and stored.metadata.get("parts")
    if held and len(encoder.parts) == 1:
        rows = None if stored.embeddings is None else stored.embeddings[:, features]
        return stored._replace(moments=part_of(stored.moments, features), embeddings=rows)
    if "spatial" not in encoder.parts or stored.moments.dim != features.stop:
        return stored
    spatial = encoder.parts["spatial"]
    if stored.spatial is None or stored.spatial.dim != spatial.stop - spatial.start:
        lacking = f"{spatial.stop - spatial.start} spatial ones (mu_s and sigma_s, as in ADM's files)"
        raise ValueError(f"{name} holds {features.stop} features and not the {lacking}; leave sfid out")
    return stored._replace(moments=joined(stored.moments, stored.spatial), spatial=None)


def _of_unit_vectors(moments: Moments | Statistics, name: str, encoder: Encoder) -> Moments | Statistics:
    """The same; a `ValueError` unless they can be of unit vectors."""
    statistics = moments
    if isinstance(moments, Moments):
        statistics = Statistics(moments.mean, moments.covariance())
        square = float(moments.outer.trace()) / moments.n
        if abs(square - 1) > 2 * UNIT_ROWS:
            raise ValueError(
                f"{name} is not of unit vectors, as {encoder.name} gives them here, but of a mean squared norm of "
                f"{square:.6g}"
            )
        return moments
    assert isinstance(statistics, Statistics)
    try:
        statistics.unit_moments(name)
    except ValueError as error:
        raise ValueError(f"{name} is of another encoder than {encoder.name} is here: {error}") from None
    return moments


def _of_own(path: Path) -> Stored:
    tensors, _ = read_tensors(path)
    if tensors.keys() == {"embeddings"}:
        embeddings, metadata = load_embeddings(path)
        return Stored(Moments.zeros(embeddings.shape[1]).update(embeddings), embeddings, metadata, "embeddings")
    moments, metadata = Moments.load(path)
    return Stored(moments, None, metadata, "moments")


def _default_array(heads: dict[str, ArrayHead]) -> str | None:
    named = [mean for mean, sigma in PAIRS.items() if mean in heads and sigma in heads]
    return next((name for name in (*named, *FEATURES) if name in heads), None)


def _of_arrays(path: Path, array: str | None) -> Stored:
    heads = array_heads(path)
    name = _default_array(heads) if array is None else array
    if name not in heads:
        wanted = "mu and sigma, m2 and s2, feats, reps or pool_3" if array is None else repr(array)
        raise refuse(path, f"holds the arrays {short(sorted(heads), 80)}, and not {wanted}")
    if name in PAIRS.values():
        raise refuse(path, f"{name!r} is a covariance, and no embeddings; name its mean")
    if name in PAIRS:
        if PAIRS[name] not in heads:
            raise refuse(path, f"holds {name!r} without {PAIRS[name]!r}")
        statistics = _of_pair(path, heads, name)
        images = [
            f"{head.shape[0]} images as column {other}" for other, head in heads.items() if looks_like_images(head)
        ]
        words, spatial = ", beside ".join(["mean and covariance", *images]), None
        if name == "mu" and {"mu_s", "sigma_s"} <= heads.keys():
            spatial = _of_pair(path, heads, "mu_s")
        return Stored(statistics, None, None, words, spatial)
    if len(heads[name].shape) != 2 or heads[name].dtype.kind != "f":
        raise refuse(path, f"{name or 'it'} holds {heads[name].dtype} of the shape {heads[name].shape}, no embeddings")
    return _of_embeddings(path, read_named_array(path, name))


def _of_pair(path: Path, heads: dict[str, ArrayHead], name: str) -> Statistics:
    """Mean and covariance; a covariance of another size, which may be any, is not read."""
    words, mean = f"{name} and {PAIRS[name]}", read_named_array(path, name)
    check_shapes(path, mean, heads[PAIRS[name]], words)
    return checked_statistics(path, mean, read_named_array(path, PAIRS[name]), words)


def _of_embeddings(path: Path, rows: np.ndarray | Tensor) -> Stored:
    try:
        embeddings = float_matrix(rows, "its embeddings")
        if not len(embeddings):
            raise ValueError("it holds no embeddings")
    except (TypeError, ValueError) as error:
        raise refuse(path, error) from None
    embeddings = embeddings.float()
    moments = Moments.zeros(embeddings.shape[1]).update(embeddings)
    return Stored(moments, embeddings, None, f"{len(embeddings)} embeddings")


def _of_torch(path: Path) -> Stored:
    """A cache of torch-fidelity: `{"mu", "sigma"}` of NumPy arrays, or a (n, d) tensor of features."""
    core = np.core if np.__version__ < "2" else np._core  # type: ignore[attr-defined]
    allowed = [core.multiarray._reconstruct, np.ndarray, np.dtype]  # of what it pickles, these arrays alone
    allowed += [type(np.dtype(kind)) for kind in ("float32", "float64")]
    try:
        if zipfile.is_zipfile(path):  # of older versions it is none; PyTorch looks at no checksum
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"{damaged} has another checksum")
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (*DAMAGED, KeyError, TypeError, AttributeError, IndexError) as error:
        raise refuse(path, f"is no cache of torch-fidelity, or damaged: {_first_words(error)}") from None
    except pickle.UnpicklingError as error:
        raise refuse(path, f"holds more than arrays, and is not read: {_first_words(error)}") from None
    if isinstance(content, Tensor):
        return _of_embeddings(path, _plain(path, content))
    if not isinstance(content, dict) or not {"mu", "sigma"} <= content.keys():
        raise refuse(path, "holds neither mu and sigma nor embeddings, as caches of torch-fidelity do")
    both = [content[name] for name in ("mu", "sigma")]
    mean, sigma = (_plain(path, of).numpy() if isinstance(of, Tensor) else np.asarray(of) for of in both)
    return Stored(checked_statistics(path, mean, sigma, "mu and sigma"), None, None, "mean and covariance")


def _plain(path: Path, tensor: Tensor) -> Tensor:
    """The numbers of a tensor alone, of a dtype that NumPy has; a `ValueError` where they lie in no plain array."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise refuse(path, f"holds a tensor that is no plain array: {tensor.layout} on {tensor.device}")
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _first_words(error: Exception) -> str:
    return short(str(error).partition("\n")[0] or type(error).__name__, 120)
