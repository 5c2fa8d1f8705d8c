"""Tables in Markdown that read well as text too."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Collection[int] = ()) -> str:
    """Columns as wide as their longest cell; those of ``numbers`` end at one place."""
    lines = [list(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * (width - 1) + ":" if n in numbers else "-" * width for n, width in enumerate(widths)])
    return "\n".join(
        f"| {' | '.join(_aligned(cell, widths[n], n in numbers) for n, cell in enumerate(line))} |" for line in lines
    )


def _aligned(cell: str, width: int, is_number: bool) -> str:
    return cell.rjust(width) if is_number else cell.ljust(width)
