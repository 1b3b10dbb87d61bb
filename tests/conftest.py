import os
import tempfile

# Before anything is imported that reads them: no test asks the Hub, and none fills the user's own cache.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HOME", tempfile.mkdtemp(prefix="hf-home-"))
os.environ.setdefault("MPLBACKEND", "Agg")
