"""What everything else speaks of: changes, statements, errors."""
