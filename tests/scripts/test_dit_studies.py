"""The studies of Diffusion Transformers and of the metrics, at a tiny size, from photographs to the report."""

import sys
import threading

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tests import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from findings import claims, dit_runs, guidance, kernels, metrics, report, scores, steps, trainings
from findings.cells import read_cells
from findings.conditionings import CONDITIONINGS
from findings.local import LOCAL
from findings.objectives import OBJECTIVES
from findings.study import Place, Sources

from hf_common.files import slug

sys.path.remove(str(ROOT / "scripts"))

CONFIRMED, REFUTED, OPEN = claims.CONFIRMED, claims.REFUTED, claims.OPEN
ENCODER = """
import numpy as np, torch

def encode(images):
    small = np.stack([np.asarray(image.resize((2, 2))) for image in images]).reshape(len(images), -1)
    return torch.from_numpy(small).float() / 255 - 0.4
"""


def landscapes(folder, sizes={"train": 48, "test": 24}):  # noqa: B006
    """Four classes of another colour each, larger than the studies take them."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abcd"))})
    draw = np.random.default_rng(0)
    for split, count in sizes.items():
        labels = [k % 4 for k in range(count)]
        colours = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40)]
        pixels = [np.array(colours[k]) + draw.normal(0, 25, (24, 24, 3)) for k in labels]
        images = [Image.fromarray(values.clip(0, 255).astype(np.uint8)) for values in pixels]
        rows = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


TINY = [
    comparison._replace(side=16, model="dit-micro-2", images_seen=24)
    for comparison in (LOCAL, OBJECTIVES, CONDITIONINGS)
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    (folder / "tiny_encoder.py").write_text(ENCODER)
    photographs, encoder = str(landscapes(folder / "landscapes")), f"{folder / 'tiny_encoder.py'}:encode"
    return Place(folder / "work", folder / "cells", Sources("digits", "nowhere", photographs, encoder))


@pytest.fixture(scope="module")
def cells(place):
    """All cells of the studies, made in a minute."""
    tiny = pytest.MonkeyPatch()
    with tiny.context() as patch:
        patch.setattr(dit_runs, "BATCH", 8)
        patch.setattr(dit_runs, "RECIPE", {"learning_rate": 1e-3})
        patch.setattr(dit_runs, "EPOCHS_OF_CLASSIFIER", 1)
        for name, value in {"SIDE": 16, "MODEL": "dit-micro-2", "IMAGES_SEEN": 24}.items():
            patch.setattr(guidance, name, value)
        for module in (guidance, trainings):
            patch.setattr(module, "STEPS", 3)
            patch.setattr(module, "IMAGES_PER_CLASS", 3)
        patch.setattr(steps, "IMAGES_PER_CLASS", 2)
        small = {name: [step // 10 + 1 for step in counts] for name, counts in steps.STEPS.items()}
        patch.setattr(steps, "STEPS", small)
        patch.setattr(steps, "CELLS", [])  # of other steps
        guidance.run(place)
        for comparison in TINY:
            comparison.run(place)
        patch.setattr(steps, "CELLS", ["one that is missing"])
        steps.run(place)
    return {name: list(read_cells(name, place.results).values()) for name in report.STUDIES}


def test_every_cell_is_there_and_makes_its_part_of_the_report(cells, place, tmp_path):
    assert [len(cells[name]) for name in ("guidance", "steps", "local", "objectives", "conditionings")] == [
        7,
        26,
        5,
        8,
        4,
    ]
    for name in ("guidance", "local", "objectives", "conditionings"):
        study = report.STUDIES[name]
        assert set(read_cells(name, place.results)) == {slug(cell) for cell in study.cells}
        text = study.paragraph(cells)
        assert "nan" not in text and "None" not in text
        figures = study.figures(cells[name])
        assert len(figures) == 2
        for figure_name, figure in figures.items():
            figure.savefig(tmp_path / f"{figure_name}.png")
    real = next(cell for cell in cells["guidance"] if cell["settings"]["guidance_scale"] is None)
    assert abs(real["scores"]["cmmd"]) < 10 * real["scores"]["cmmd_error"] + 1e-3  # photographs against photographs
    noise = next(cell for cell in cells["guidance"] if cell["settings"]["guidance_scale"] == 1.0)
    assert noise["scores"]["cmmd"] > real["scores"]["cmmd"]
    assert noise["settings"]["images_seen"] == 24 and len(noise["thumbnails"]) == 8


def test_finished_cells_are_not_made_again(cells, place):
    before = {path: path.stat().st_mtime_ns for path in place.results.rglob("*.json")}
    for comparison in TINY:
        comparison.run(place)
    guidance.run(place)
    assert {path: path.stat().st_mtime_ns for path in place.results.rglob("*.json")} == before


def in_two_threads(call):
    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_workers_share_the_cells_and_a_training_is_made_once(tmp_path, monkeypatch):
    made, both = [], threading.Barrier(2, timeout=60)

    def train():
        made.append("training")
        (tmp_path / "trained").mkdir()
        (tmp_path / "trained" / dit_runs.RESULTS).write_text("{}")

    in_two_threads(lambda: dit_runs._finished(tmp_path / "trained", train))
    assert made == ["training"]

    def sampled(pipeline, output, axes, images_per_class, batch_size):
        made.append(output.name)
        if len(made) < 4:  # the first two cells are sampled at the same time
            both.wait()
        facts = {"weights": "a", "seconds": 1.0, "hardware": "", "versions": {}}
        return [facts | dict.fromkeys(("attention", "scheduler", "guidance_scale", "num_inference_steps"))]

    class Measured:
        place, side = Place(tmp_path / "work", tmp_path / "cells", Sources("", "", "", "clip")), 8

        def measure(self, name, images, labels):
            return {"cmmd": 0.0}

    monkeypatch.setattr(dit_runs, "sampled", sampled)
    monkeypatch.setattr(dit_runs, "images_of", lambda cell: ([], np.array([], int)))
    monkeypatch.setattr(dit_runs, "training_facts", lambda folder: {})
    names = {f"cell_{count}": ("ddim", 1.0, count) for count in range(1, 6)}
    in_two_threads(lambda: dit_runs.sample_missing("study", Measured(), tmp_path, names, 1))
    assert sorted(made[1:]) == sorted(names)
    assert sorted(read_cells("study", Measured.place.results)) == sorted(names)


def test_a_mean_cosine_distance_is_that_of_all_pairs():
    vectors = torch.nn.functional.normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = np.array([0, 0, 0, 1, 1, 1, 1])
    expected = []
    for label in (0, 1):
        of_class = vectors[labels == label].double()
        pairs = [(a, b) for a in range(len(of_class)) for b in range(a)]
        expected.append(np.mean([1 - float(of_class[a] @ of_class[b]) for a, b in pairs]))
    assert dit_runs._within_classes(vectors, labels) == pytest.approx(np.mean(expected), abs=1e-6)


def test_saturation_is_that_of_hsv():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    pixels[0, 0] = 0
    from matplotlib.colors import rgb_to_hsv

    assert dit_runs._saturation(pixels) == pytest.approx(rgb_to_hsv(pixels / 255.0)[..., 1].mean())


def guided(scale, **scores):
    plain = {"adherence": 0.5, "diversity": 0.4, "saturation": 0.3, "clipped": 0.0, "cmmd": 0.1, "fd": 0.1}
    found = {key: scores.get(key, value) for key, value in plain.items()}
    return {
        "settings": {"guidance_scale": scale},
        "scores": {"images": 1000, **found, **{f"{key}_error": scores.get("error", 0.01) for key in plain}},
    }


def test_verdicts_on_guidance_follow_the_cells():
    def verdicts(*cells):
        return [claim.verdict for claim in guidance.claims(list(cells))]

    ten = guided(10.0, adherence=0.9, diversity=0.2, saturation=0.6)
    assert verdicts(guided(0.0, adherence=0.26), guided(1.0), ten) == [CONFIRMED, CONFIRMED]
    assert verdicts(guided(0.0, adherence=0.4), guided(1.0), guided(10.0, adherence=0.2)) == [REFUTED, REFUTED]
    assert verdicts(guided(0.0, adherence=0.26), guided(1.0), guided(10.0, adherence=0.9, error=0.2)) == [
        CONFIRMED,
        OPEN,
    ]
    assert verdicts() == [OPEN, OPEN]
    four = guided(4.0, diversity=0.1)
    assert guidance.claims([guided(1.0), four, ten])[1].evidence.endswith(
        "; diversity is least at guidance 4, 0.1 (1,000 samples each)."
    )


def stepped(count, scale, cmmd, error=0.01):
    settings = {"scheduler": "ddpm", "guidance_scale": scale, "num_inference_steps": count, "weights": "a"}
    return {"settings": settings, "scores": {"images": 252, "cmmd": cmmd, "cmmd_error": error}}


def test_what_wins_among_trainings_follows_the_cells():
    def said(**cmmds):
        groups = {
            name.replace("_", "-"): [{"scores": {"cmmd": value, "cmmd_error": 0.03}} for value in values]
            for name, values in cmmds.items()
        }
        return OBJECTIVES._verdict(groups)

    text = said(epsilon=[0.5], v=[0.58], flow=[0.4])
    assert text.startswith("The lowest CMMD is that of `flow`, 0.400. Less `epsilon`,")
    assert "`v` +0.080 ± 0.042, within two; `flow` -0.100 ± 0.042, beyond two." in text  # 0.03 sqrt(2)
    text = said(epsilon=[0.5, 0.7], flow=[0.1])  # seeds scatter by 0.2 / sqrt(2), the mean of two by 0.1
    assert "seeds scatter by 0.141" in text and "`flow` -0.500 ± 0.173, beyond two" in text
    assert said(flow=[0.1]) == said(epsilon=[0.1]) == ""


def test_verdicts_on_steps_follow_the_cells():
    def verdicts(values, error=0.01):
        cells = [
            stepped(n, s, value, error) for n, value in zip((50, 250, 500), values, strict=True) for s in (1.0, 10.0)
        ]
        return [claim.verdict for claim in steps.claims(cells)]

    assert verdicts((1.0, 0.5, 0.5)) == [CONFIRMED, CONFIRMED]
    assert verdicts((0.5, 1.0, 0.4)) == [REFUTED, REFUTED]
    assert verdicts((0.5, 0.5, 0.5), error=0.1) == [OPEN, OPEN]
    assert [claim.verdict for claim in steps.claims([])] == [OPEN, OPEN]


def test_steps_are_drawn_and_told(tmp_path):
    picture = dit_runs._encoded(Image.new("RGB", (8, 8), (9, 99, 199)))
    drawn = [
        stepped(count, scale, 1 / count) | {"thumbnails": [picture] * 8, "seconds": 3.0}
        for scale in steps.SCALES
        for count in steps.STEPS["ddpm"]
    ]
    for cell in drawn:
        cell["settings"]["encoder"] = "clip"
        cell["scores"] |= {"fd": 0.1, "fd_error": 0.01, "adherence": 0.5}
    figures = steps.figures(drawn)
    assert set(figures) == {"steps", "guidance_x_steps"}
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png")
    few = stepped(10, 10.0, 0.1) | {"thumbnails": [picture] * 8}
    few["settings"]["scheduler"] = "ddim"
    assert len(steps.figures([*drawn, few])["guidance_x_steps"].axes) == len(drawn)  # no empty panels
    assert set(steps.figures([drawn[0], few, stepped(20, 10.0, 0.1)])) == {"steps"}
    model = {"settings": {"guidance_scale": 1.0, "weights": "a"}, "thumbnails": []}
    text = steps.paragraph({"steps": drawn, "guidance": [model]})
    assert "DDPM at guidance 1 +0.018 ± 0.014" in text and "DDIM" not in text
    assert text.startswith("The model of the study before, 252 samples")


def test_samples_of_other_weights_are_not_compared():
    cells = [
        stepped(count, scale, 1 / count) | {"thumbnails": [], "seconds": 3.0}
        for scale in steps.SCALES
        for count in (50, 250, 500)
    ]
    cells[2]["settings"]["weights"] = "b"  # 500 steps at guidance 1
    for cell in cells:
        cell["settings"]["encoder"] = "clip"
        cell["scores"] |= {"fd": 0.1, "fd_error": 0.01, "adherence": 0.5}
    assert [claim.verdict for claim in steps.claims(cells)] == [OPEN, OPEN]
    assert [claim.verdict for claim in steps.claims(cells[:2] + cells[3:])][1] == OPEN
    text = steps.paragraph({"steps": cells, "guidance": []})
    assert text.startswith("2 models, of which none is compared") and "DDPM at guidance 1 " not in text
    cells[2]["settings"]["weights"] = "a"
    text = steps.paragraph({"steps": cells, "guidance": []})
    assert text.startswith("A model, trained as that") and "DDPM at guidance 1 " in text


def small_images(folder, **sizes):
    """Splits of 8 x 8 images of ten classes, each class lighter than the one before."""
    for split, count in sizes.items():
        draw = np.random.default_rng(len(split))
        pixels = draw.integers(0, 100, (count, 8, 8, 3)) + 15 * (np.arange(count) % 10)[:, None, None, None]
        rows = datasets.Dataset.from_dict(
            {
                "img": [Image.fromarray(image.astype(np.uint8)) for image in pixels],
                "label": [k % 10 for k in range(count)],
            },
            features=datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")}),
        )
        rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


def test_which_score_sees_what(tmp_path, place, monkeypatch):
    small_images(tmp_path / "cifar", train=120, test=100)
    for name, value in {"PARTS": 4, "PART": 22, "COPIES": 60, "DEVIATION": 60}.items():
        monkeypatch.setattr(scores, name, value)
    own = place._replace(results=tmp_path / "cells", sources=place.sources._replace(cifar10=str(tmp_path / "cifar")))
    scores.run(own)
    cells = read_cells("scores", own.results)
    assert set(cells) == set(scores.SETS) and all(len(cell["parts"]) == 4 for cell in cells.values())
    assert [cells[name]["settings"]["predictions"] for name in ("real", "class", "copies")] == [100, 90, 100]
    # Of 100 images 60 are one: the references that it and the other 40 do not cover are many.
    assert cells["copies"]["whole"]["coverage"] < cells["real"]["whole"]["coverage"] - 0.1
    assert cells["noise"]["whole"]["fd"] > cells["real"]["whole"]["fd"]
    found = scores.differences(list(cells.values()))
    real, worse = (np.array([part["recall"] for part in cells[name]["parts"]]) for name in ("real", "copies"))
    assert found["copies"]["recall"][0] == pytest.approx((real.mean() - worse.mean()) / real.std(ddof=1))
    (figure,) = scores.figures(list(cells.values())).values()
    figure.savefig(tmp_path / "scores.png")
    text = scores.paragraph({"scores": list(cells.values())})
    assert "nan" not in text and "copies of one image: seen by" in text and text.count("| ") > 40
    assert scores.differences([cells["jpeg"]]) == {} and scores.figures([cells["jpeg"]]) == {}


def test_what_the_metrics_see(tmp_path, place, monkeypatch):
    small_images(tmp_path / "cifar", test=90)
    for name, value in {"PREDICTIONS": 20, "REFERENCES": 40, "REPEATS": 2, "SPLITS": 4}.items():
        monkeypatch.setattr(metrics, name, value)
    for name in ("DISTINCT", "COUNTS"):
        monkeypatch.setattr(metrics, name, [12, 8, 6])
    own = place._replace(results=tmp_path / "cells", sources=place.sources._replace(cifar10=str(tmp_path / "cifar")))
    metrics.run(own)
    cells = list(read_cells("metrics", own.results).values())
    assert len(cells) == len(metrics.TITLES)
    duplicates = next(cell for cell in cells if cell["settings"]["kind"] == "duplicates")
    assert all(row["kid"] == row["kid"] for row in duplicates["rows"]) and len(duplicates["rows"]) == 2 * 3
    assert set(metrics.standardised(duplicates)) == {*metrics.METRICS, *metrics.SHARES_OF_BALLS}
    for name, figure in metrics.figures(cells).items():
        figure.savefig(tmp_path / f"{name}.png")
    assert len(metrics.figures(cells)) == 2
    text = metrics.paragraph({"metrics": cells})
    assert "nan" not in text and "--run metrics --encoder siglip`" in text


def test_the_share_of_attention_is_measured_and_judged(tmp_path, place, monkeypatch):
    monkeypatch.setitem(
        kernels.SETTINGS, "cpu", {"size": "dit-micro-2", "batch": 1, "repeats": 1, "grids": [(4, 4), (6, 6)]}
    )
    monkeypatch.setattr(kernels, "ATTENTIONS", ["full", "na3"])
    own = place._replace(results=tmp_path)
    threads = torch.get_num_threads()
    kernels.run(own)
    torch.set_num_threads(threads)
    (cell,) = read_cells("kernels", tmp_path).values()
    kernels.figures([cell])["attention_share"].savefig(tmp_path / "share.png")
    assert "On the CPU" in kernels.paragraph({"kernels": [cell]})
    assert [claim.verdict for claim in kernels.claims([cell])] == [OPEN]

    def step(low, high):
        row = {"level": "step", "phase": "forward", "tokens": 256, "attention": "xformers:full", "unavailable": None}
        return {"rows": [{**row, "speedup": (low + high) / 2, "speedup_min": low, "speedup_max": high}], "shares": []}

    for (low, high), verdict in {(0.8, 0.9): CONFIRMED, (1.1, 1.2): REFUTED, (0.9, 1.1): OPEN}.items():
        assert [claim.verdict for claim in kernels.claims([step(low, high)])] == [verdict]
    assert float(kernels.share_of_attention("dit-s-2", np.array(256))) == pytest.approx(0.1)
