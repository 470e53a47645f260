"""The commands of `backup-cli`, one module each, for any backend."""
