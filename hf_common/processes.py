"""What several processes of one run decide together, and how they part."""

from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


def from_first_process(decide: Callable[[], Answer], process_index: int, num_processes: int) -> Answer:
    """What `decide()` gives on the first process, on all; a `ValueError` or `OSError` there is raised on all.

    Files are looked at once, so that no process can see another state of them than the others do.
    """
    answer: list = [None, None]
    if process_index == 0:
        try:
            answer[0] = decide()
        except (ValueError, OSError) as error:
            answer[1] = error
    if num_processes > 1:
        from accelerate.utils import broadcast_object_list  # torch with it, which one process need not load for this

        broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def leave_processes() -> None:
    """At the end of a script: take down what joins its processes, if they are several.

    Left to the interpreter's end, gloo's threads may abort a process that has done its work.
    """
    from accelerate import PartialState

    PartialState().destroy_process_group()
