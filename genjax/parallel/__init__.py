"""Meshes, partition rules and start-up: the only place that knows devices."""
