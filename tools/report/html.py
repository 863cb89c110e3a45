"""Small pieces of HTML. Every text that comes from a run passes through `text` or `attribute`."""

import html
from collections.abc import Iterable, Sequence

CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {
    code: 0xFFFD for code in (*range(0x7F, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF)
}


def text(value: object) -> str:
    """Text for the page: markup escaped, control characters shown as symbols.

    Half surrogate pairs, which JSON may hold and UTF-8 may not, become U+FFFD.
    """
    return html.escape(str(value).translate(CONTROLS), quote=True)


def attribute(value: object) -> str:
    """A quoted attribute value."""
    return f'"{text(value)}"'


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "", marks: Sequence[str] = ()
) -> str:
    """A table that scrolls sideways when it is wider than the page.

    Args:
        head: HTML of the column titles.
        rows: HTML of the cells.
        kind: class of the table.
        marks: class of each row, in order; rows beyond its end have none.
    """
    lines = []
    for index, row in enumerate(rows):
        mark = f" class={attribute(marks[index])}" if index < len(marks) and marks[index] else ""
        cells = f'<th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:])
        lines.append(f"<tr{mark}>{cells}</tr>")
    titles = "".join(f'<th scope="col">{title}</th>' for title in head)
    top = f"<thead><tr>{titles}</tr></thead>" if head else ""
    return (
        f'<div class="scroll"><table class={attribute(kind)}>{top}'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def section(title: str, body: str, anchor: str) -> str:
    """A titled section, or nothing where there is nothing to say."""
    return f'<section id="{anchor}"><h2>{text(title)}</h2>{body}</section>' if body else ""


def details(summary: str, body: str, *, is_open: bool = False, kind: str = "") -> str:
    """A block that opens and closes without scripts; `summary` and `body` are HTML."""
    return (
        f"<details class={attribute(kind)}{' open' if is_open else ''}>"
        f"<summary>{summary}</summary>{body}</details>"
    )
