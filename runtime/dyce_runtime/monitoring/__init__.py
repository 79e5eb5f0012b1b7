"""What an application that runs for long wants to know of its session."""
