"""Video: frame prediction, video GANs, and their metrics."""
