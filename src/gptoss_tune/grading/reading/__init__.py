"""What graders read with: numerals, marked places, plain texts, and the settings of rows."""
