"""Scripts that produce every published figure."""
