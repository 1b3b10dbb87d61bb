"""Tables, commands, versions and references: what the packages write of themselves."""

import platform
import shlex
import subprocess
from importlib.metadata import version

import pytest
import torch

from hf_common.commands import command_line, launch_command
from hf_common.environment import hardware, versions
from hf_common.references import Paper, bibtex
from hf_common.tables import cell, escaped, markdown_table


def test_table():
    rows = [["ce", "1.0"], ["|x|", "two\nlines"]]
    assert markdown_table(["loss", "score"], rows).splitlines() == [
        "| loss | score |",
        "| --- | --- |",
        "| ce | 1.0 |",
        r"| \|x\| | two lines |",
    ]
    assert markdown_table(["a"], []) == "| a |\n| --- |"


@pytest.mark.parametrize(
    ("text", "found"), [("a", "a"), ("a|b", r"a\|b"), (r"a\|b", r"a\|b"), ("a\r\nb", "a b"), (" a ", " a "), ("", "")]
)
def test_cell(text, found):
    assert cell(text) == found
    assert cell(cell(text)) == found


def test_command_is_what_a_shell_reads():
    flags = {
        "name": "with blank", "none": None, "flag": True, "other": False, "list": [1, 2.0, 0.5], "whole": 3.0,
        "mapping": {"a": 1}, "quoted": "it's", "long": "x" * 60,
    }  # fmt: skip
    text = command_line(["accelerate", "launch", "scripts/run it.py"], flags, width=80)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert text.count(" \\\n    --") == text.count("\n") > 0
    assert shlex.split(text.replace("\\\n", "")) == [
        "accelerate", "launch", "scripts/run it.py", "--name", "with blank", "--flag", "--other", "false",
        "--list", "1", "2", "0.5", "--whole", "3", "--mapping", '{"a": 1}', "--quoted", "it's", "--long", "x" * 60,
    ]  # fmt: skip


def test_a_command_says_line_ends_in_one_line():
    text = command_line(["printf", "%s|"], {"columns": ["a\nb", "it's \\ \u2028"]})
    done = subprocess.run(["bash", "-c", text], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    assert "\n" not in text and done.stdout.decode() == "--columns|a\nb|it's \\ \u2028|"


@pytest.mark.parametrize(
    ("processes", "device", "words", "flags"),
    [
        (1, "cpu (x86_64, 2 threads)", "accelerate launch s.py", {}),
        (1, "NVIDIA H100", "accelerate launch s.py", {}),
        (2, "cpu (x86_64, 2 threads)", "torchrun --nproc_per_node 2 s.py", {"use_cpu": True}),
        (4, "NVIDIA H100", "accelerate launch --multi_gpu --num_processes 4 s.py", {}),
    ],
)
def test_launch(processes, device, words, flags):
    assert launch_command("s.py", processes, device) == (words.split(), flags)


def test_environment():
    assert versions(["torch", "numpy"]) == {
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
    }
    assert hardware(torch.device("cpu")) == f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def test_papers():
    paper = Paper("A. One & B. Two", "On $x$", "ICML 2019", "1905.00001")
    assert paper.markdown() == (
        "A. One & B. Two. *On $x$.* ICML 2019. [arXiv:1905.00001](https://arxiv.org/abs/1905.00001)"
    )
    assert paper._replace(arxiv=None).markdown() == "A. One & B. Two. *On $x$.* ICML 2019."
    assert bibtex(Paper("One et al.", "T", "arXiv:1", "1"), "2019", "x") == (
        "@misc{one2019x,\n  author = {One and others},\n  title = {{T}},\n  year = {2019},\n  eprint = {1},\n"
        "  archivePrefix = {arXiv}\n}"
    )
    assert "  author = {One and Two},\n" in bibtex(Paper("One & Two", "T", "ICML"), "2019")
    assert "  howpublished = {ICML}\n" in bibtex(Paper("One & Two", "T", "ICML"), "2019")


BAD_NAMES = [
    "a\n# heading", "# heading", "```", "~~~\ncode", "<script>alert(1)</script>", "[x](javascript:alert(1))",
    "![x](http://a/b.png)", "**bold**", "_em_ __strong__", "`code`", "- item", "+ item", "* item", "1. item",
    "12) item", "> quoted", "---", "===", "a|b", "&lt;b&gt;", "&#60;b>", "<http://a>", "\\", "a\\", "  - item",
    "<!-- x", "~~gone~~", "a\r\nb", "[1]: http://a", "a\u2028b",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("around", ["{}", "Classes: {}, other.", "- {}", "| a |\n| --- |\n| {} |"])
def test_a_name_of_others_is_text_and_nothing_else(name, around):
    markdown_it = pytest.importorskip("markdown_it")

    def tokens(text):
        found = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).parse(around.format(text))
        return [token for outer in found for token in (outer, *(outer.children or []))]

    def kinds(text):
        return [token.type for token in tokens(text) if token.type not in ("text", "text_special")]

    def shown(text):
        inline = [token for token in tokens(text) if token.type == "inline"][-1]
        return "".join(child.content for child in inline.children)

    assert kinds(escaped(name)) == kinds("plain")
    assert (
        shown(escaped(name)).strip()
        == around.split("\n")[-1]
        .strip("|- ")
        .format(" ".join(name.split("\n")))
        .replace("\r", " ")
        .replace("\u2028", " ")
        .strip()
    )


def test_what_is_not_seen_is_shown_by_its_number():
    assert escaped("a\u202eb\u200bc\0\x1b[31m") == r"aU+202EbU+200BcU+0000U+001B\[31m"
    assert escaped("www.a.org https://a") == "www&#46;a.org https&#58;//a"
    for plain in ("airplane", "noisy-cifar10", "Mädchen (7)", "T-shirt/top", "3", "n01440764", "C++", "a. b"):
        assert escaped(plain) == plain
