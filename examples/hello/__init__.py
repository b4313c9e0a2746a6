"""One durable call."""
