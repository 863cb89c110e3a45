"""What a run shows on the terminal: a bar where there is one, plain lines where there is not."""

import contextlib
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

_LINE_SECONDS = 10.0
"""Seconds between lines where there is no bar."""


class Progress:
    """Steps done, speed, remaining time and loss, with messages above."""

    def __init__(
        self, *, bar: bool = True, quiet: bool = False, console: Console | None = None
    ) -> None:
        """Set up.

        Args:
            bar: whether to show a bar, where there is a terminal.
            quiet: show nothing at all, as in all processes of a run but one.
            console: where to show it; standard error by default.
        """
        self._quiet = quiet
        self._console = console or Console(stderr=True, highlight=False)
        self._bar: RichProgress | None = None
        if bar and not quiet and self._console.is_terminal:
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=self._console,
                transient=True,
            )
        self._last_line = time.perf_counter()
        self._total = 0

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, step: int, total: int) -> None:
        """Show a run of `total` steps, `step` of them done."""
        self._total = total
        if self._bar is not None:
            self._task = self._bar.add_task("training", completed=step, total=total, figures="")

    def update(self, step: int, figures: Mapping[str, str]) -> None:
        """Show the newest step with a few figures, such as {"loss": "1.93"}."""
        text = "  ".join(f"{name} {value}" for name, value in figures.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=step, figures=text)
        elif time.perf_counter() - self._last_line > _LINE_SECONDS:
            self._last_line = time.perf_counter()
            self.tell(f"step {step}/{self._total}  {text}")

    def tell(self, message: str) -> None:
        """Print a message above the bar; output to a full disk is lost, and the run goes on."""
        if self._quiet:
            return
        with contextlib.suppress(OSError):
            self._console.print(message, markup=False, soft_wrap=True)
