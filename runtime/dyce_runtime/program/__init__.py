"""What can run, what a configuration needs of it, and when a sample leaves."""
