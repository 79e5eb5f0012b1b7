"""What turns the active configuration by itself: a governor of latency, and a cap on the work of a call."""
