"""The runs of the studies of noisy labels: what is trained, where, and how a finished one becomes a cell."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from hf_common.files import slug
from hf_common.run_folder import RESULTS
from hf_robust.losses import format_loss_spec, parse_loss_spec
from hf_robust.reports.results import read_results
from hf_robust.studies.arguments import DataArguments, ExperimentArguments, ModelArguments
from hf_robust.studies.sweep import Run, run_missing

from .accuracy import cell_of_run
from .cells import cell_file, write_cell
from .claims import Claim
from .study import Cells, Place, Study

EPOCHS = 12.0


class Plan(NamedTuple):
    """One run of a study; what it does not say is as `sweep_robust.py` has it by default."""

    loss: str
    noise: str
    seed: int = 0
    config: str | None = None  # of a data set that is noisy already, in place of `noise`
    variant: str = "cnn_small"  # its name in folders and cells
    model: str = "cnn_small"
    overrides: str | None = None
    images: int | None = 10_000
    augmentation: str = "none"
    flags: dict = {}  # of the training

    @property
    def name(self) -> str:
        """Of the cell."""
        size = "" if self.images is not None else "-all"
        return f"{self.noise}-{self.variant}-{slug(self.loss)}-seed{self.seed}{size}"

    def run(self, folder: Path, dataset: str) -> Run:
        """Its arguments."""
        drawn = {} if self.config is not None else {"noise": self.noise, "noise_seed": self.seed}
        data = DataArguments(
            dataset=dataset,
            dataset_config=self.config,
            max_train_samples=self.images,
            augmentation=self.augmentation,
            **drawn,
        )
        size, loss = "" if self.images is not None else "-all", format_loss_spec(parse_loss_spec(self.loss))
        place = folder / self.noise / f"{self.variant}{size}" / slug(loss) / f"seed{self.seed}"
        training = {"num_train_epochs": EPOCHS, **self.flags}
        args = ExperimentArguments(
            output_dir=str(place), loss=self.loss, seed=self.seed, disable_tqdm=True, report_to="none", **training
        )
        return Run(data, ModelArguments(self.model, self.overrides), args)


def run_plans(study: str, plans: Iterable[Plan], place: Place) -> None:
    """Make the cells that are missing, each written when its run is finished; several workers share them."""
    plans = list(plans)
    collect(study, plans, place)
    groups: dict[tuple, list[Plan]] = {}
    for plan in plans:  # runs that share their images
        if not cell_file(study, plan.name, place.results).exists():
            source = place.sources.cifar10 if plan.config is None else place.sources.noisy_cifar10
            groups.setdefault((source, plan.config, plan.images), []).append(plan)
    for (source, *_), group in groups.items():
        runs = [plan.run(place.work / study, source) for plan in group]
        run_missing(runs, each=lambda _, group=group: collect(study, group, place))
        collect(study, group, place)


def collect(study: str, plans: Iterable[Plan], place: Place) -> None:
    """Write the cells of the runs that are finished and have none."""
    for plan in plans:
        path = Path(plan.run(place.work / study, "").args.output_dir) / RESULTS
        if path.exists() and not cell_file(study, plan.name, place.results).exists():
            write_cell(study, plan.name, cell_of_run(read_results(path)), place.results)


def robust_study(
    name: str,
    title: str,
    plans: list[Plan],
    paragraph: Callable[[Cells], str],
    figures: Callable[[list[dict]], dict[str, Figure]],
    claims: Callable[[list[dict]], list[Claim]] = lambda cells: [],
) -> Study:
    """A study whose cells are runs."""
    cells, run, take = [plan.name for plan in plans], partial(run_plans, name, plans), partial(collect, name, plans)
    return Study(title, cells, run, paragraph, figures, claims, take)
