"""The backup server for nodes on other machines, over protocol 1 and its extension."""
