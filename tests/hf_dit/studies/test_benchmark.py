import json
import sys
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hf_dit.attention.base import DiTAttnProcessor
from hf_dit.attention.spec import parse_attn_item
from hf_dit.commands import benchmark as benchmark_command
from hf_dit.models.block import DiTBlock
from hf_dit.studies import measure as measuring
from hf_dit.studies.benchmark import attention_share, operator_call, run_benchmark, speedup_bound
from hf_dit.studies.benchmark_report import benchmark_markdown, plot_benchmark
from hf_dit.studies.measure import measure
from tests import ROOT
from tests.processes import run_process

SCRIPT = ROOT / "scripts" / "benchmark_attention.py"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def script():
    return vars(benchmark_command)


@pytest.fixture
def run(script, monkeypatch, capsys):
    def call(*flags):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags])
        script["main"]()
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize(("tokens", "heads", "head_dim"), [(64, 2, 16), (30, 3, 4), (256, 1, 8)])
def test_the_share_is_that_of_the_counted_multiply_adds_of_a_block(tokens, heads, head_dim):
    dim = heads * head_dim
    block = DiTBlock(dim, heads, head_dim, 4.0, 0.0, True, 1e-6, 1e-6, None)
    # The mathematical kernel is two batched products, the only ones of a block, and the counter knows them.
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as flops:
        block(torch.zeros(1, tokens, dim), torch.zeros(1, dim), (tokens, 1))
    counts = flops.get_flop_counts()["Global"]
    attention = counts[torch.ops.aten.bmm]
    modulation = 2 * dim * 6 * dim  # one a sample, not one a token
    assert attention / (sum(counts.values()) - modulation) == pytest.approx(attention_share(tokens, dim))


def test_the_share_and_its_bound_at_the_sizes_of_the_paper():
    assert attention_share(256, 384) == pytest.approx(0.1)
    assert attention_share(256, 1152) == pytest.approx(1 / 28)
    assert attention_share(4096, 384) == pytest.approx(0.64)
    assert speedup_bound(attention_share(4096, 384)) == pytest.approx((6 * 384 + 4096) / (6 * 384))
    assert speedup_bound(0) == 1


def test_calls_take_turns_and_are_compared_within_a_repeat(monkeypatch):
    order, prepared, clock = [], [], [0.0]
    seconds = {"full": iter([1, 1, 3, 6]), "na3": iter([1, 1, 1.5, 6])}
    monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def call(name):
        def work():
            order.append(name)
            clock[0] += next(seconds[name])

        return work

    rows = measure({("step", name): call(name) for name in seconds}, 2, CPU, prepare=prepared.append)
    assert order == ["full", "full", "na3", "na3", "full", "na3", "full", "na3"]
    assert [attention for _, attention in prepared] == ["full", "na3"] * 3
    full, na3 = rows["step", "full"], rows["step", "na3"]
    assert (full["speedup_min"], full["speedup"], full["speedup_max"]) == (1, 1, 1)
    assert (na3["speedup_min"], na3["speedup"], na3["speedup_max"]) == (1, 1.5, 2)
    assert (na3["ms_min"], na3["ms"], na3["ms_max"]) == (1500, 3750, 6000)
    assert na3["samples"] == [1500, 6000] and na3["peak_bytes"] is None


def test_a_call_that_fails_keeps_its_row_and_what_is_fast_is_called_more_than_once():
    calls = []

    def broken():
        raise torch.OutOfMemoryError("out of memory\nTried to allocate")

    rows = measure({("step", "na3"): lambda: calls.append(0), ("step", "full"): broken}, 3, CPU)
    assert rows["step", "full"]["unavailable"] == "out of memory" and rows["step", "full"]["ms"] is None
    assert rows["step", "na3"]["ms"] > 0 and rows["step", "na3"]["speedup"] is None
    assert len(calls) == 2 + 3 * measuring.MOST_CALLS


@pytest.mark.parametrize("attention", ["full", "swa3", "na3/truncate"])
def test_the_operator_runs_what_it_is_named_after(attention, monkeypatch):
    seen = []
    processor = type(parse_attn_item(attention))
    attend = processor.attend

    def spy(self, query, key, value, grid):
        out = attend(self, query, key, value, grid)
        seen.append((self.spec, query.shape, grid, out.requires_grad))
        return out

    monkeypatch.setattr(processor, "attend", spy)
    inputs = [torch.randn(2, 12, 2, 4) for _ in range(3)]
    operator_call(attention, inputs, (3, 4), backward=False)()
    operator_call(attention, inputs, (3, 4), backward=True)()
    assert seen == [(attention, (2, 12, 2, 4), (3, 4), backward) for backward in (False, True)]


def test_each_step_runs_under_its_own_attention(monkeypatch):
    seen = []
    call = DiTAttnProcessor.__call__

    def spy(self, attn, hidden_states, grid):
        seen.append((self.spec, grid, hidden_states.shape))
        return call(self, attn, hidden_states, grid)

    monkeypatch.setattr(DiTAttnProcessor, "__call__", spy)
    monkeypatch.setattr(measuring, "MOST_CALLS", 1)
    given = {"heads": 3, "head_dim": 4, "num_layers": 1, "batch": 1, "repeats": 2, "phases": ["forward"]}
    report = run_benchmark(["na3"], [(2, 5)], size="dit-micro-2", **given)
    assert [spec for spec, *_ in seen] == ["full", "full", "na3", "na3"] + ["full", "na3"] * 2
    assert {tuple(rest) for _, *rest in seen} == {((2, 5), (1, 10, 12))}
    assert report["settings"] | given | {"attentions": ["full", "na3"]} == report["settings"]


def test_what_cannot_run_is_listed_with_its_reason():
    report = run_benchmark(
        ["na3", "xformers:full", "flex:na3"], [(2, 2)], size="dit-micro-2", repeats=1, phases=["forward+backward"]
    )
    rows = {(row["level"], row["attention"]): row for row in report["rows"]}
    assert len(rows) == len(report["rows"]) == 8
    for attention in ("xformers:full", "flex:na3"):
        with pytest.raises((ImportError, RuntimeError)) as refusal:
            parse_attn_item(attention).check(device=CPU, dtype=torch.float32, grid=(2, 2), head_dim=16, training=True)
        for level in ("operator", "step"):
            row = rows[level, attention]
            assert row["unavailable"] == str(refusal.value) and row["ms"] is None
        assert f"- {attention}: {refusal.value}" in benchmark_markdown(report)
    assert rows["step", "na3"]["unavailable"] is None and rows["step", "na3"]["ms"] > 0
    figure = plot_benchmark(report)
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"full", "na3"} < labels and not {"xformers:full", "flex:na3"} & labels


def test_the_script_writes_tables_figures_and_json(run, tmp_path):
    text = run("--quick", "--grids", "2x3", "3x4", "--output_dir", str(tmp_path / "new"))
    report = json.loads((tmp_path / "new" / "benchmark.json").read_text())
    assert report["settings"]["size"] == "dit-micro-2" and report["settings"]["grids"] == [[2, 3], [3, 4]]
    assert (tmp_path / "new" / "benchmark.md").read_text() in text and str(tmp_path / "new") in text
    combinations = {(r["level"], r["phase"], tuple(r["grid"]), r["attention"]) for r in report["rows"]}
    assert len(combinations) == len(report["rows"]) == 2 * 2 * 2 * len(report["settings"]["attentions"])
    for row in report["rows"]:
        if row["unavailable"] is None:
            assert 0 < row["ms_min"] <= row["ms"] <= row["ms_max"] and 0 < row["speedup_min"] <= row["speedup_max"]
            assert f"| {row['ms']:.4g} |" in text
        else:
            assert row["ms"] is None and f"- {row['attention']}: {row['unavailable']}" in text
    for share in report["shares"]:
        assert share["tokens"] == share["grid"][0] * share["grid"][1]
        assert share["share_of_macs"] == pytest.approx(share["tokens"] / (6 * 32 + share["tokens"]))
        assert 0 < share["share_of_time"] < 1
    assert "At 6 tokens attention is 3.0 % of the multiply-adds" in text and "xformers" in text
    with Image.open(tmp_path / "new" / "benchmark.png") as picture:
        assert min(picture.size) > 500
    assert [path.name for path in (tmp_path / "new").iterdir() if "tmp" in path.name] == []


def test_the_figure_draws_every_time_and_the_bound():
    report = run_benchmark(["na3"], [(4, 4), (2, 2)], size="dit-micro-2", repeats=1, phases=["forward"])
    figure = plot_benchmark(report)
    assert isinstance(figure, Figure)
    operator, step = figure.axes
    tokens_and_times = {
        row["attention"]: (row["tokens"], row["ms"]) for row in report["rows"] if row["level"] == "operator"
    }
    drawn = {line.get_xydata()[-1].tolist()[0] for line in operator.get_lines() if len(line.get_xydata()) == 2}
    assert drawn == {16.0} and tokens_and_times
    bound = [line for line in step.get_lines() if line.get_linestyle() not in ("-", "None")]
    assert bound[0].get_xydata()[:, 1].tolist() == pytest.approx([speedup_bound(n / (6 * 32 + n)) for n in (4, 16)])


def test_the_figure_has_plain_numbers_and_one_thread():
    report = run_benchmark(["na3"], [(2, 2)], size="dit-micro-2", repeats=1, phases=["forward"])
    figure = plot_benchmark(report | {"hardware": "cpu (x86_64, 1 threads)"})
    assert figure.get_suptitle().endswith("cpu (x86_64, 1 thread)")
    axes = figure.axes[0]
    axes.set_ylim(0.05, 0.15)
    figure.draw_without_rendering()
    words = {tick.get_text() for tick in axes.get_yticklabels(which="both")}
    assert {"0.06", "0.1"} <= words and not any("e" in word for word in words)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tokens", "200"], "--tokens must be squares"),
        (["--tokens", "-4"], "--tokens must be squares"),
        (["--grids", "16by32"], "--grids must look like 16x32; got '16by32'"),
        (["--grids", "0x4"], "--grids must look like 16x32"),
        (["--attentions", "na7", "sparse"], "attention item 'sparse' is not known"),
        (["--size", "dit-m-2"], "--size must be one of dit-s-2"),
        (["--repeats", "0"], "--repeats must be 1 or more; got 0"),
        (["--heads", "0"], "--heads must be 1 or more"),
        (["--heads", "3", "--head_dim", "5"], "divisible by 4"),
        (["--device", "cuda"], "torch sees no CUDA device"),
        (["--device", "somewhere"], "--device must be"),
        (["--phases", "backward"], "invalid choice"),
        (["--dtype", "int8"], "invalid choice"),
    ],
)
def test_bad_flags_end_before_anything_is_measured(run, monkeypatch, capsys, flags, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        run("--quick", *flags)
    assert end.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attentions": ["na0"]}, "kernel_size"),
        ({"grids": []}, "grids must be one or more"),
        ({"grids": [(2, 2), (2, 2)]}, "grids must be one or more different"),
        ({"grids": [(0, 2)]}, "rows and columns must be 1 or more"),
        ({"phases": ["backward"]}, "phases must be of forward"),
        ({"batch": 0}, "batch must be 1 or more; got 0"),
        ({"size": "dit-0"}, "name must be one of"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    arguments = {"attentions": ["na3"], "grids": [(2, 2)], "size": "dit-micro-2"} | change
    with pytest.raises(ValueError, match=message):
        run_benchmark(arguments.pop("attentions"), arguments.pop("grids"), **arguments)


def test_peak_memory_sees_what_was_held_only_in_between():
    # In a process of its own: what others of these tests held and gave back may be taken again without a new peak.
    code = """
import torch
from hf_dit.studies.measure import PeakMemory
for numbers in (2**18, 100 * 2**18):  # 1 MiB, then 100 MiB, given back
    with PeakMemory(torch.device("cpu")) as peak:
        torch.ones(numbers)
    print(peak.kind, peak.bytes)
"""
    done = run_process(code)
    small, large = (line.split() for line in done.stdout.split("\n") if line)
    if small[0] == "None":
        pytest.skip("this system does not tell the peak of a process")
    assert small[0] == large[0] == "process_peak_resident_set"
    assert 95 * 2**20 < int(large[1]) - int(small[1]) < 130 * 2**20
