"""What is made of results: the table, pictures, curves."""
