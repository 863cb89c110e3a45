"""Adversarial image models: networks, training task, augmentation, metrics."""
