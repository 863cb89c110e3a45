"""Speed, beside named peers."""
