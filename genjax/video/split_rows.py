"""What the mesh's sequence axis means for clips: it splits the rows of frames."""

from genjax.errors import UserError


def check_row_split(ways: int, height: int, unit: int = 1) -> None:
    """Check that frames split into as many bands of rows as the mesh asks for.

    Time is not split: motion is recurrent, and discriminators compare frames.

    Args:
        ways: `mesh.sequence`.
        height: rows of a frame.
        unit: rows that stay together, as those of a patch.

    Raises:
        UserError: they do not; without it, devices would all do the same.
    """
    if height % (ways * unit):
        together = f" in steps of {unit}" if unit > 1 else ""
        raise UserError(
            f"mesh.sequence: {ways} devices cannot share the {height} rows of a frame{together} "
            "evenly; choose a divisor, or set mesh.sequence = 1 and use mesh.data or mesh.fsdp"
        )
