# The installed program writes the completion itself, once for each shell.
_BACKUP_CLI_COMPLETE=fish_source backup-cli | source
