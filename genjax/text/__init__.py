"""Language models: tokenizers, networks, training task, decoding, baselines."""
