"""Programs on finished runs."""
