"""What a run generated, by step: texts, images, clips."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from tools.report.charts import swatch
from tools.report.html import details, section, text
from tools.runs import Record, Run

KINDS = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".mp4": "video/mp4",
}
EMBEDDED_BYTES = 32 * 2**20
"""Files are embedded up to this much in all, newest first; beyond it their paths are shown."""
CELLS = {1: 760, 2: 520, 3: 340}
"""Width in pixels for each of so many images of a step, side by side where there is room."""
FEW, SOME, MANY = 8, 240, 150
"""The width of a cell up to `FEW` images is `SOME`, of more images `MANY`."""
COLUMNS = {1: 760, 2: 520}
"""The widest cell where so many runs stand side by side; `CELLS[3]` where more do."""


def samples(runs: list[Run], labels: list[str]) -> str:
    """Samples by step, newest first and open; several runs stand side by side."""
    album = _Album(COLUMNS.get(len(runs), CELLS[3]))
    columns = []
    for index, (run, label) in enumerate(zip(runs, labels, strict=True)):
        by_step: dict[int, dict[Any, Record]] = {}
        for position, record in enumerate(run.samples):
            key = record["index"] if isinstance(record.get("index"), int) else f"line {position}"
            by_step.setdefault(record["step"], {})[key] = record
        blocks = []
        for step in sorted(by_step, reverse=True):
            parts, cell = album.page(run, step, list(by_step[step].values()))
            count = f'<span class="count">{len(parts)}</span>' if len(parts) > 1 else ""
            style = f' style="--cell:{cell}px"' if cell else ""
            body = f'<div class="samples"{style}>{"".join(parts)}</div>'
            title = f'<span class="at">step {step:,}</span> {count}'
            blocks.append(details(title, body, is_open=not blocks, kind="step"))
        if blocks:
            title = f"<h3>{swatch(index)}{text(label)}</h3>" if len(runs) > 1 else ""
            columns.append(f'<div class="column">{title}{"".join(blocks)}</div>')
    many = " many" if len(columns) > 1 else ""
    body = f'<div class="columns{many}">{"".join(columns)}</div>' if columns else ""
    return section("Samples", body, "samples")


class _Album:
    """Samples as HTML, with what is left of the room for files."""

    def __init__(self, widest: int) -> None:
        self._widest = widest
        self._budget = EMBEDDED_BYTES
        self._shown: dict[tuple[Path, bytes], int] = {}
        """The newest step that showed a file of a run, by its content."""

    def page(self, run: Run, step: int, records: list[Record]) -> tuple[list[str], int | None]:
        """The samples of a step, and the width of their cells if there are images or clips."""
        files = sum("image" in record or "video" in record for record in records)
        cell = None
        if files:
            cell = min(CELLS.get(files, SOME if files <= FEW else MANY), self._widest)
        fresh: dict[tuple[Path, bytes], int] = {}
        parts = [self._sample(run, step, record, cell or 0, fresh) for record in records]
        # Only now: equal images of one step are all shown, for they say something of the model.
        self._shown = fresh | self._shown
        return parts, cell

    def _sample(
        self,
        run: Run,
        step: int,
        record: Record,
        cell: int,
        fresh: dict[tuple[Path, bytes], int],
    ) -> str:
        extras = {
            key: value
            for key, value in record.items()
            if key not in ("step", "index", "text", "image", "video", "kind") and value is not None
        }
        words = [text(extras.pop("what"))] if "what" in extras else []
        caption = ", ".join([*words, *(f"{text(k)}: {text(v)}" for k, v in extras.items())])
        index = record.get("index")
        body = ""
        for key in ("image", "video"):
            if key in record:
                body += self._file(run, step, str(record[key]), index, cell, fresh)
        if "text" in record:
            body += f"<pre>{text(record['text'])}</pre>"
        if not body:
            body = '<p class="note">This sample has neither text nor an image.</p>'
            caption = caption or "empty"
        number = f"<b>{index}</b> " if isinstance(index, int) else ""
        return f'<figure class="sample"><figcaption>{number}{caption}</figcaption>{body}</figure>'

    def _file(
        self,
        run: Run,
        step: int,
        name: str,
        index: Any,
        cell: int,
        fresh: dict[tuple[Path, bytes], int],
    ) -> str:
        path = (run.path / name).resolve()
        kind = KINDS.get(path.suffix.lower())
        if not path.is_relative_to(run.path) or not path.is_file():
            return f'<p class="note">No such file in the run: {text(name)}</p>'
        size = path.stat().st_size
        if kind is None or size > self._budget:
            return f'<p class="note">Not shown here: {text(name)}</p>'
        content = path.read_bytes()
        key = run.path, hashlib.sha256(content).digest()
        if key in self._shown:
            return f'<p class="note">The same as at step {self._shown[key]:,}.</p>'
        fresh[key] = step
        self._budget -= size
        source = f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
        if kind == "video/mp4":
            return f'<video controls loop muted playsinline src="{source}"></video>'
        number = f' data-sample="{index}"' if isinstance(index, int) else ""
        return f'<img alt="{text(name)}"{number}{_size(path, cell)} src="{source}">'


def _size(path: Path, cell: int) -> str:
    """Attributes that show a small image at a whole multiple of its size, its pixels sharp."""
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return ""
    # A page is higher than wide, but nobody wants to scroll over a single image.
    scale = max(1, min(cell // width, 2 * cell // height))
    sharp = ' class="pixels"' if width <= cell else ""
    return f'{sharp} style="width:{scale * width}px"'
