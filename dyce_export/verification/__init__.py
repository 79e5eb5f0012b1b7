"""Whether a bundle computes what the model computed."""
