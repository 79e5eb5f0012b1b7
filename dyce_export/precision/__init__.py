"""Lower precisions: the same network in another bundle, with records, configurations and promises made again."""
