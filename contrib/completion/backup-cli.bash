# The installed program writes the completion itself, once for each shell.
eval "$(_BACKUP_CLI_COMPLETE=bash_source backup-cli)"
