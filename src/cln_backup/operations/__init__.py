"""What a person asks for: one module a command, for any backend."""
