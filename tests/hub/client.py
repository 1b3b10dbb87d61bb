"""Points the real client libraries at a loopback Hub: in this process, and in fresh ones."""

import contextlib
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub

from .server import HubServer

LIBRARIES = ("huggingface_hub", "datasets", "transformers", "diffusers", "evaluate")
# Packages that the libraries make out of downloaded code.
CODE_PACKAGES = ("transformers_modules", "diffusers_modules", "datasets_modules", "evaluate_modules")
SWITCHES = {
    "HF_HUB_OFFLINE": False,
    "HF_DATASETS_OFFLINE": False,
    "HF_HUB_DISABLE_XET": True,
    "HF_HUB_DISABLE_TELEMETRY": True,
}
OWN_PACKAGES = ("hf_common", "hf_robust", "hf_dit", "evaluate_metrics", "model_cards")
WITHOUT_OWN_PACKAGES = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OWN_PACKAGES}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
del Blocker
"""


@dataclass
class Client:
    """What the fixture `hub` hands to a test."""

    server: HubServer
    home: Path  # HF_HOME of this process; fresh processes have another
    token: str

    @property
    def url(self) -> str:
        return self.server.url

    def env(self, **extra: str) -> dict[str, str]:
        """Environment of a fresh process that talks to the server."""
        ours = ("HF_", "TRANSFORMERS_", "DATASETS_", "DIFFUSERS_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        inherited.pop("PYTHONPATH", None)
        return inherited | client_env(self.url, self.home.parent / "fresh", self.token) | extra

    def run(self, code: str, *, isolated: bool = True, **extra_env: str) -> str:
        """Standard output of `code` in a fresh process; `isolated` hides this repository's packages from it."""
        folder = self.home.parent / "cwd"
        folder.mkdir(exist_ok=True)
        result = subprocess.run(
            [sys.executable, "-c", (WITHOUT_OWN_PACKAGES if isolated else "") + code],
            cwd=folder,
            env=self.env(**extra_env),
            capture_output=True,
            text=True,
            timeout=300,
        )
        if result.returncode:
            raise AssertionError(f"exit status {result.returncode}\n{result.stdout}\n{result.stderr}")
        return result.stdout


def client_env(url: str, home: Path, token: str) -> dict[str, str]:
    return {
        "HF_ENDPOINT": url,
        "HF_TOKEN": token,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }


@contextlib.contextmanager
def pointed_at(url: str, home: Path) -> Iterator[None]:
    """The libraries, loaded already or while this lasts, take `url` for the Hub and keep their files below `home`.

    They read the environment once, when they are imported, and pass copies of it on: so each copy is changed.
    """
    old_url, old_home = huggingface_hub.constants.ENDPOINT, huggingface_hub.constants.HF_HOME
    old_switches = {name: huggingface_hub.constants.__dict__.get(name) for name in SWITCHES}
    old_switches["HF_DATASETS_OFFLINE"] = old_switches["HF_HUB_OFFLINE"]
    old_path, old_hosts = sys.path[:], huggingface_hub.constants.HF_URL_HOSTS
    huggingface_hub.constants.HF_URL_HOSTS = old_hosts | {"127.0.0.1"}
    _repoint({old_url: url, old_home: str(home)}, SWITCHES)
    # Where the libraries kept downloaded code until now: it would be found before that below `home`.
    sys.path[:] = [folder for folder in sys.path if not folder.startswith(old_home)]
    try:
        yield
    finally:
        huggingface_hub.constants.HF_URL_HOSTS = old_hosts
        _repoint({url: old_url, str(home): old_home}, old_switches)
        sys.path[:] = old_path


def _repoint(moved: dict[str, str], switches: dict[str, bool]) -> None:
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] not in LIBRARIES:
            continue
        values = vars(module)
        for key, value in list(values.items()):
            if key in switches:
                values[key] = switches[key]
            elif isinstance(value, (str, Path)):
                for old, new in moved.items():
                    if str(value) == old or str(value).startswith((old + "/", old + "{")):
                        values[key] = type(value)(new + str(value)[len(old) :])
    huggingface_hub.hf_api.api.endpoint = huggingface_hub.constants.ENDPOINT
    if "transformers.utils.hub" in sys.modules:  # it keeps the client that it made first
        sys.modules["transformers.utils.hub"]._hf_api = None
    huggingface_hub.HfFileSystem.clear_instance_cache()
    huggingface_hub.close_session()
    for name in [name for name in sys.modules if name.split(".")[0] in CODE_PACKAGES]:
        del sys.modules[name]
    importlib.invalidate_caches()
