"""The search and its promises: next to brute force, to published searches, and on unseen samples."""
