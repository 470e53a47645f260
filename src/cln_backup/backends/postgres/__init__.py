"""`postgresql://HOST/DATABASE?node=NAME`: the records of format 2 as rows of a table."""
