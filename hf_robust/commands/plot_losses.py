"""Draw losses by the probability of the given label: how much each costs, and how hard it pulls at the network.

    python scripts/plot_losses.py --losses ce nce mae gce "nce+rce" --output landscape.png
    python scripts/plot_losses.py --losses "gce(q=0.1)" "gce(q=0.4)" gce mae --num_classes 100 --output gce.pdf

The suffix of --output decides the format. `python -m hf_robust.losses` lists the losses and their parameters.
"""

from dataclasses import dataclass, field
from pathlib import Path

from hf_common.files import save_figure
from hf_common.flags import FlagParser
from hf_common.running import STARTS_OVER, run_command
from hf_robust.studies.front import check_loss_names


@dataclass
class PlotArguments:
    _argument_group_name = "figure"

    losses: list[str] = field(
        default_factory=lambda: ["ce", "nce", "mae", "gce", "nce+rce"], metadata={"help": "Loss specs."}
    )
    num_classes: int = field(default=10, metadata={"help": "Classes K; all but the given label are equally likely."})
    output: str = field(default="loss_landscape.png", metadata={"help": "The file: .png, .pdf, .svg, ..."})


def main() -> None:
    parser = FlagParser(PlotArguments, description=__doc__)
    (args,) = parser.parse_args_into_dataclasses()
    try:
        check_loss_names(args.losses)
    except ValueError as error:
        parser.error(str(error))
    from hf_robust.reports.loss_plots import loss_landscape

    output = Path(args.output).expanduser()
    try:
        figure = loss_landscape(args.losses, args.num_classes)
    except ValueError as error:
        parser.error(str(error))
    formats = figure.canvas.get_supported_filetypes()
    if output.suffix[1:] not in formats:
        parser.error(f"--output: its suffix must be one of {', '.join(formats)}; got {args.output!r}")
    save_figure(figure, output)
    print(output.resolve())


def run() -> None:
    """The command."""
    run_command(main, STARTS_OVER)
