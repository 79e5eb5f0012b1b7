"""Lower precisions: the same network in another bundle, with what was recorded, chosen and promised done again."""
