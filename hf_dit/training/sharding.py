"""Weights of which each process holds a part, by FSDP2 of PyTorch (`torch.distributed.fsdp.fully_shard`).

A part is a `DTensor`: a slice along the first axis. What is computed element by element (the optimizer's steps, the
average of weights) needs no other part; whole tensors are gathered where something is written or sampled.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..models.dit import DiTModel


def check_sharding(processes: int, mixed_precision: str) -> None:
    """Raise a `ValueError` where the weights of a training cannot be sharded."""
    if processes == 1:
        raise ValueError("fsdp shards over several processes, and there is 1; start more, as --help-all says")
    if mixed_precision == "fp16":  # of its scaled losses, all must know of an overflow in one's part
        raise ValueError("fsdp takes mixed_precision no or bf16; got 'fp16'")


def shard_network(network: DiTModel, accelerator: Accelerator) -> None:
    """Leave this process its part of each weight; the network, whole and the same on all, is changed in place.

    The weights of a block are gathered before it runs, in its forward and in its backward pass, and freed after it;
    gradients are averaged part by part, after each backward pass: whole gradients that waited for the last one of an
    accumulation would need the memory that this saves. Weights stay float32; under bf16 those of blocks are gathered
    as bfloat16, what autocast would make of them, and their gradients averaged in float32.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    policy = MixedPrecisionPolicy()
    if accelerator.mixed_precision == "bf16":  # inputs stay as they are: autocast says what is computed in which type
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in network.transformer_blocks:
        for module in block.modules():
            # Float32 in bf16 too, as autocast leaves them: a CPU norms no float32 tokens by other weights.
            if isinstance(module, nn.LayerNorm | nn.RMSNorm) and module.weight is not None:
                fully_shard(module, mesh=mesh)
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh)


def gathered(values: Mapping[Any, Any], keep: bool) -> dict:
    """The whole tensors on the CPU where `keep`, an empty dict elsewhere; every process must call it.

    Values that are no part of a tensor are kept as they are.
    """
    whole = {}
    for name, value in values.items():
        if isinstance(value, DTensor):
            value = value.full_tensor()  # on all processes, one at a time
            value = value.detach().cpu() if keep else None
        if keep:
            whole[name] = value
    return whole


def parts_like(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, cut as that of `like`; the tensor itself where `like` is whole."""
    if not isinstance(like, DTensor):
        return value
    # No data are sent: each process has the whole tensor, and takes its own part.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def keep_states_whole(optimizer: torch.optim.Optimizer, is_first: bool) -> None:
    """Let `state_dict` give, on the first process, what an optimizer of whole weights gives, and read that back.

    A checkpoint is then the same file whether weights were sharded or not, and by how many processes.
    """

    def gather(_: torch.optim.Optimizer, state_dict: dict) -> dict:
        states = {number: gathered(state, is_first) for number, state in state_dict["state"].items()}
        return {**state_dict, "state": states if is_first else {}}

    def cut(optimizer: torch.optim.Optimizer, state_dict: dict) -> dict:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        states = {
            number: {
                name: parts_like(value, weights[number]) if value.shape == weights[number].shape else value
                for name, value in state.items()
            }
            for number, state in state_dict["state"].items()
        }
        return {**state_dict, "state": states}

    optimizer.register_state_dict_post_hook(gather)
    optimizer.register_load_state_dict_pre_hook(cut)


class WholeNetwork:
    """Makes whole networks, on the first process, like one that is sharded.

    Args:
        network: before it is sharded.
    """

    def __init__(self, network: DiTModel):
        # A copy but for the weights, which take memory in none.
        empty: dict[int, Any] = {
            id(weight): torch.nn.Parameter(torch.empty_like(weight, device="meta"), weight.requires_grad)
            for weight in network.parameters()
        }
        self._empty = copy.deepcopy(network, empty)

    def of(self, weights: Mapping[str, Tensor], is_first: bool) -> DiTModel | None:
        """A network of these weights, of which each process gives its parts; on the CPU, in evaluation mode.

        None on other processes than the first. Every process must call it.
        """
        whole = gathered(weights, is_first)
        if not is_first:
            return None
        network = copy.deepcopy(self._empty)
        network.load_state_dict(whole, assign=True)
        return network.eval()
