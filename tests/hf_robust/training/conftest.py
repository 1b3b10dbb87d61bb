import pytest
from accelerate.state import GradientState


@pytest.fixture(autouse=True)
def no_loader_left_over():
    """A training that a test stops in mid-epoch leaves its loader where accelerate looks for the end of an epoch."""
    yield
    GradientState().dataloader_references = [None]
