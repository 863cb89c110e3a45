"""Generative models of text, images and video: pure functions and Flax modules in JAX."""
