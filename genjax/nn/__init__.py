"""Layers that more than one wing uses."""
