"""How good generated images are: figures over features, and the features they are taken in.

Everything but `features` is float64 numpy on the host. Letters: N real examples, M generated ones,
D features, K classes.

Names are not borrowed: a Frechet distance is called FID only over the features of Inception v3
(`genjax.image.inception_v3`); over others the figure's name ends with the extractor's.
"""
