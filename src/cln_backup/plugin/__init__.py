"""The plugin: two processes between lightningd and the backup."""
