"""Convert a CIFAR-10 ResNet-20 checkpoint into a folder that transformers loads.

    python scripts/convert_resnet20.py --weights model.safetensors --output_dir cifar10-resnet20

The checkpoint names its tensors conv1, bn1, layer{1,2,3}.{0,1,2}.{conv1,bn1,conv2,bn2}, linear, and was trained on
images normalised with the mean (0.485, 0.456, 0.406) and the standard deviation (0.229, 0.224, 0.225). After

    import hf_robust.models

both `AutoModelForImageClassification.from_pretrained("cifar10-resnet20")` and
`pipeline("image-classification", model="cifar10-resnet20")` work.
"""

from argparse import RawDescriptionHelpFormatter
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file
from transformers import HfArgumentParser

from hf_robust.models import convert_resnet20, make_image_processor


@dataclass
class ConvertArguments:
    weights: str = field(metadata={"help": "The checkpoint, a .safetensors file."})
    output_dir: str = field(metadata={"help": "The folder to write; it must be new or empty."})


def main(args: ConvertArguments) -> None:
    weights, output_dir = Path(args.weights), Path(args.output_dir)
    if not weights.is_file():
        raise ValueError(f"--weights must be an existing .safetensors file, got {args.weights!r}")
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"--output_dir must be new or empty, got {args.output_dir!r}")

    model = convert_resnet20(load_file(weights))
    processor = make_image_processor(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), size=32)
    model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters -> {output_dir}")


if __name__ == "__main__":
    parser = HfArgumentParser(ConvertArguments, description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    (arguments,) = parser.parse_args_into_dataclasses()
    main(arguments)
