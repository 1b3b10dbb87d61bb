import datasets
import pytest

from hf_common.names import data_source, did_you_mean, looks_local
from hf_dit.training.arguments import DataArguments
from hf_dit.training.images import open_rows
from hf_robust.data.load import load_image_splits
from hf_robust.losses import parse_loss_spec
from hf_robust.models import load_model
from hf_robust.noise.spec import NoiseSpec


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ncee", "; did you mean 'nce'?"),
        ("NCE", "; did you mean 'nce'?"),
        ("symetric", "; did you mean 'symmetric' or 'asymmetric_'?"),
        ("something else", ""),
        ("", ""),
        ("x" * 100_000, ""),
    ],
)
def test_what_was_meant(name, said):
    assert did_you_mean(name, ["nce", "gce", "symmetric", "asymmetric_"]) == said


@pytest.mark.parametrize(
    ("name", "local"),
    [("./photos", True), ("../a", True), ("/a", True), ("~/a", True), ("a/b/c", True), ("C:\\\\a", True),
     ("cifar10", False), ("user/name", False), ("user/name/", False)],
)  # fmt: skip
def test_what_can_be_a_path_alone(name, local):
    assert looks_local(name) is local


def test_paths_are_looked_at_before_the_hub(tmp_path, monkeypatch):
    (tmp_path / "my_photos").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("./my_photoz", str(tmp_path / "my_photoz")):
        meant = "dataset: there is no folder '.*my_photoz'; did you mean '.*my_photos'"
        with pytest.raises(FileNotFoundError, match=meant), data_source(name, "dataset"):
            raise AssertionError("the Hub was asked")
    tells = "images: there is no folder 'my_photoz' here; did .* of the Hub: no net"
    with pytest.raises(ConnectionError, match=tells), data_source("my_photoz", "images"):
        raise ConnectionError("no net")
    tells = "there is no folder 'user/none' here; as a data set of the Hub"
    with pytest.raises(FileNotFoundError, match=tells), data_source("user/none", "images"):
        raise datasets.exceptions.DatasetNotFoundError("not there")
    with (
        pytest.raises(FileNotFoundError, match="source: there is no folder 'nosuch/'"),
        data_source("nosuch/", "source"),
    ):
        raise AssertionError("the Hub was asked")
    tells = "there is no folder 'digit' here; did you mean 'digits'"
    with pytest.raises(ConnectionError, match=tells), data_source("digit", "dataset", ["digits"]):
        raise ConnectionError("no net")
    # Of a folder that is there.
    with pytest.raises(ConnectionError, match="^as it was$"), data_source("my_photos", "images"):
        raise ConnectionError("as it was")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: load_image_splits("./my_photoz"), "dataset: there is no folder './my_photoz'"),
        (lambda: open_rows(DataArguments(dataset_name="./my_photoz")), "dataset_name: there is no folder"),
        (lambda: parse_loss_spec("ncee"), "did you mean 'nce'"),
        (lambda: NoiseSpec.parse("symetric_40"), "did you mean 'symmetric'"),
        (lambda: load_model("cnn_smal", num_labels=3), "did you mean 'cnn_small'"),
    ],
)
def test_every_name_is_answered(call, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        call()
