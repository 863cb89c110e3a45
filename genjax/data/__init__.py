"""Sources of data and the batches cut from them."""
