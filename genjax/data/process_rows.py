"""Which rows of a batch a process reads, the same for every kind of data."""

from genjax.errors import UserError


def process_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    """The contiguous rows of a global batch that one process reads.

    Raises:
        UserError: The rows do not divide evenly.
    """
    assert 0 <= process_index < process_count
    if batch_size % process_count:
        raise UserError(
            f"batch_size = {batch_size} does not divide among {process_count} processes.\n"
            f"Use a multiple of {process_count}."
        )
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)
