import pytest
from accelerate.state import AcceleratorState

from .small import save_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "classes")


@pytest.fixture(scope="session")
def unconditional(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "unconditional", num_classes=None)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
