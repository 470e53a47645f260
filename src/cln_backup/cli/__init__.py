"""`backup-cli`: arguments, output, exit codes."""
