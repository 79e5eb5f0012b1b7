"""Evaluate the search and its certificates: against brute force, published searches and unseen samples."""
