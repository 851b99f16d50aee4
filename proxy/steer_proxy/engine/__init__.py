"""Acting on decisions: attempts, permits, slots, waits. Knows no HTTP; a `Sender` does."""
