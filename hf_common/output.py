"""Standard output that ends no command: its reader may leave, it may be closed, and it may not know a character."""

import io
import os
import sys
from pathlib import Path


class _Outlet(io.TextIOWrapper):
    """A text file whose reader may leave: what is written then goes nowhere, as after an error, which is raised."""

    def write(self, text):
        try:
            return super().write(text)
        except BrokenPipeError:
            self._go_nowhere()
            return len(text)
        except OSError:  # a full disk: told once, and not again at every flush
            self._go_nowhere()
            raise

    def flush(self):
        try:
            super().flush()
        except BrokenPipeError:
            self._go_nowhere()
        except OSError:
            self._go_nowhere()
            raise

    def _go_nowhere(self):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


def lasting_stdout() -> None:
    """Let `sys.stdout` be so; one that is no longer the interpreter's own is left alone."""
    if sys.stdout is None:  # closed before the start
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 it stays open
    elif sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        old = sys.stdout
        old.flush()
        sys.stdout = _Outlet(
            io.BufferedWriter(io.FileIO(old.fileno(), "w", closefd=False)),
            encoding=old.encoding,
            errors="backslashreplace",
            line_buffering=old.line_buffering,
            write_through=old.write_through,
        )
