"""The pages of the Spaces in a real browser: files in, a table or an error out, wide and narrow."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import evaluate
import numpy as np
import pytest
from PIL import Image

from tests import ROOT

METRICS = ROOT / "evaluate_metrics"
FIRST: dict[str, tuple] = {  # of each page: key and title of its first score, what gives it to a few images
    "cmmd": ("cmmd", "CMMD", {}),
    "fid": ("frechet_distance", "FID", {}),
    "image_quality": ("frechet_distance", "Fréchet distance (with inception the FID)", {"scores": ["fd"]}),
}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# A browser asks its maker's hosts for this and that; here it has only the page.
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")

if CHROMIUM is None:
    pytest.skip("there is no Chromium", allow_module_level=True)
pytest.importorskip("gradio", reason="the page is built by it")
playwright = pytest.importorskip("playwright.sync_api", reason="it drives the browser")


@pytest.fixture(scope="module")
def browser():
    with (
        playwright.sync_playwright() as started,
        started.chromium.launch(executable_path=CHROMIUM, args=QUIET) as opened,
    ):
        yield opened


@pytest.fixture(scope="module", params=["cmmd", "fid", "image_quality"])
def served(request, tmp_path_factory):
    """Name and address of an app that runs as `python app.py` does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }
    log = tmp_path_factory.mktemp("app") / "log.txt"
    with log.open("w") as output:
        command = [sys.executable, str(METRICS / request.param / "app.py")]
        app = subprocess.Popen(command, env=os.environ | variables, cwd=log.parent, stdout=output, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            assert app.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield request.param, url
    finally:
        app.terminate()
        app.wait()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two sets of 5 and 6 images, and the moments of the second one."""
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    sets = []
    for n, low in ((5, 0), (6, 90)):
        paths = [folder / f"{n}-{i}.png" for i in range(n)]
        for path in paths:
            Image.fromarray(draw.integers(low, 256, (40, 50, 3), dtype=np.uint8)).save(path)
        sets.append([str(path) for path in paths])
    return sets


def opened(browser, url, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(15_000)
    page.goto(url)
    page.get_by_role("button", name="Compare").wait_for()
    return page


def upload(page, label, *files):
    """Give files to the field of this label and wait for the last one to be shown."""
    page.locator(".block:has(input[type=file])", has_text=re.compile(label)).last.locator(
        "input[type=file]"
    ).set_input_files(files)
    last = Path(files[-1])
    page.locator(f"img[src*='{last.name}'], :text('{last.stem}')").first.wait_for()


def table(page):
    """Name and value of each row, once there are any."""
    page.get_by_role("gridcell").filter(has_text="generated images").first.wait_for()
    rows = (row.get_by_role("gridcell").all_inner_texts() for row in page.get_by_role("row").all())
    return {row[0].strip(): row[1].strip() for row in rows if len(row) == 2}


@pytest.mark.parametrize("width", [1200, 400])
def test_an_example_is_answered_in_a_window_of_any_width(browser, served, width):
    name, url = served
    page = opened(browser, url, width)
    page.get_by_text("generated images blurred").click()
    page.locator("img[src*='blurred-00']").first.wait_for()
    page.get_by_role("button", name="Compare").click()
    rows = table(page)
    assert float(rows[FIRST[name][1]]) > 0.01 and rows["real images"] == "16"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_two_uploads_give_what_the_metric_computes(browser, served, photos):
    name, url = served
    page = opened(browser, url, 1200)
    upload(page, "Generated images", *photos[0])
    upload(page, "Real images", *photos[1])
    page.get_by_label("tiny").check()
    page.get_by_role("button", name="Compare").click()
    rows = table(page)
    key, label, options = FIRST[name]
    metric = evaluate.load(str(METRICS / name), encoder="tiny", **options)
    expected = metric.compute(predictions=photos[0], references=photos[1])
    assert rows[label] == f"{expected[key]:.4g}" and (rows["generated images"], rows["real images"]) == ("5", "6")
    page.close()


def test_uploaded_statistics_stand_for_the_real_images(browser, served, photos, tmp_path):
    name, url = served
    key, label, options = FIRST[name]
    metric = evaluate.load(str(METRICS / name), encoder="tiny", **options)
    moments, metadata = metric.moments(photos[1])
    moments.save(tmp_path / "photos.safetensors", metadata)
    page = opened(browser, url, 1200)
    upload(page, "Generated images", *photos[0])
    upload(page, "a file of their statistics", str(tmp_path / "photos.safetensors"))
    page.get_by_label("tiny").check()
    page.get_by_role("button", name="Compare").click()
    rows = table(page)
    expected = metric.compute(predictions=photos[0], references=photos[1])
    assert rows[label] == f"{expected[key]:.4g}" and rows["real images"] == "6" and "KID" not in rows
    page.close()


def test_what_is_wrong_is_told_as_text(browser, served, photos, tmp_path):
    _, url = served
    (tmp_path / "broken.safetensors").write_bytes(b"no moments at all")
    page = opened(browser, url, 400)
    page.get_by_role("button", name="Compare").click()
    page.get_by_text(re.compile("Add .*generated.* images")).first.wait_for()
    upload(page, "Generated images", *photos[0])
    upload(page, "a file of their statistics", str(tmp_path / "broken.safetensors"))
    page.get_by_label("tiny").check()
    page.get_by_role("button", name="Compare").click()
    page.get_by_text(re.compile("broken.safetensors")).last.wait_for()
    page.get_by_text(re.compile("can't be read|is no|damaged|not a file of moments")).first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.close()
