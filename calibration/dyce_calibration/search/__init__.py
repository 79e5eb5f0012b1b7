"""Search configurations on records. No model is run."""
