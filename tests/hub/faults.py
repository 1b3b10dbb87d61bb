"""Faults to order: which requests fail, in which way, how often."""

import re
from dataclasses import dataclass, field

from .api import Answer, HubError, error_answer


@dataclass
class Fault:
    """One kind of failure of the requests of `method` whose path `path_regex` finds; `times` counts down."""

    method: str
    path_regex: str
    status: int | None = None
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1
    cut_after: int | None = None
    delay_s: float | None = None
    after_commit: bool = False

    def __post_init__(self):
        if self.status is None and self.cut_after is None and self.delay_s is None and not self.after_commit:
            raise ValueError("a fault needs status, cut_after, delay_s or after_commit")

    def answer(self) -> Answer:
        if self.status >= 500:  # a gateway's page, not JSON
            page = f"<html><body><h1>{self.status}</h1>{self.body}</body></html>\n".encode()
            return Answer(self.status, page, {"Content-Type": "text/html", **self.headers})
        return error_answer(HubError(self.status, "a fault that was asked for", **self.headers))

    def hits(self, method: str, path: str) -> bool:
        return self.times > 0 and method == self.method and re.search(self.path_regex, path) is not None
