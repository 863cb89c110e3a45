"""The tests. Importing them makes the type checker of pyproject.toml's pytest options known."""

from tests import typecheck as typecheck
