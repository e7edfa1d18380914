"""Curated schemas, reviewed like code; never inferred from the data that they check."""
