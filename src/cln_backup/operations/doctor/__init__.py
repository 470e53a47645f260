"""Everything that an operator can get wrong: facts are gathered, and judged by pure functions."""
