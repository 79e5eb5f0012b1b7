"""Choose named configurations, certify their loss on unseen data, and check records for plausibility."""
