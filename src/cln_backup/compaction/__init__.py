"""Compaction: folds a history into one snapshot."""
