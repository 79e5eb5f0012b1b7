"""From a bundle to an answer: sessions, what they run, and the contract with engines."""
