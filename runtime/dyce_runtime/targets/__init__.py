"""Choose a target: find the installed ones, measure which is fastest here, and check what an engine computes."""
