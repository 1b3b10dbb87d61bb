import atexit
import gc
import os
import shutil
import signal
import tempfile

import pytest

# Before anything is imported that reads them: no test asks the Hub, and none fills the user's own cache.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf-home-")
os.environ["MPLBACKEND"] = "Agg"
# A shell without job control starts its background jobs with SIGINT ignored, as their children then have it too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture
def hub(tmp_path_factory, monkeypatch):
    """A loopback Hub of the test's own, to which the client libraries of this process talk; see `hub.client.Client`.

    The user `user` has the token `hf_user`, which may write and is the client's, and `hf_read`, which may not.
    """
    from tests.hub.client import Client, client_env, pointed_at
    from tests.hub.server import HubServer

    home = tmp_path_factory.mktemp("hub") / "home"
    server = HubServer()
    server.add_user("user", token="hf_user")
    server.add_user("user", token="hf_read", role="read")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name, value in client_env(server.url, home, "hf_user").items():
        monkeypatch.setenv(name, value)
    with pointed_at(server.url, home):
        yield Client(server, home, "hf_user")
        # Now, as what a test has patched must not come back after the libraries were put back.
        monkeypatch.undo()
    server.close()
    assert not server.errors, "\n".join(server.errors)


@pytest.fixture(autouse=True, scope="module")
def _freeze():
    """`Trainer` collects garbage after every run: what was imported until now need not be searched each time."""
    gc.collect()
    gc.freeze()
