import atexit
import os
import shutil
import tempfile

# Before anything is imported that reads them: no test asks the Hub, and none fills the user's own cache.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf-home-")
os.environ["MPLBACKEND"] = "Agg"
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
