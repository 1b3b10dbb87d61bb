"""One version: of the distribution, of each package, of the citation and of the newest entry of the changelog."""

import re

import pytest
import yaml

import evaluate_metrics
import hf_common
import hf_dit
import hf_robust
from tests import ROOT

PACKAGES = [hf_common, hf_robust, hf_dit, evaluate_metrics]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_a_package_has_the_version_and_its_types(package):
    assert package.__version__ == hf_common.__version__
    assert (ROOT / package.__name__ / "py.typed").exists()


def test_the_papers_name_it():
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert heading == str(citation["version"]) == hf_common.__version__


def test_the_distribution_reads_it_from_there():
    assert 'dynamic.version = { attr = "hf_common.__version__" }' in (ROOT / "pyproject.toml").read_text()
