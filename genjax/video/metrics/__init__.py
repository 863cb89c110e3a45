"""Figures of predicted and of generated clips."""
