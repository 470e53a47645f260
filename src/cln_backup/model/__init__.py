"""The vocabulary of all other packages: changes, statements, errors."""
