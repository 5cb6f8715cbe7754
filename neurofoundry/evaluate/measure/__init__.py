"""What is measured of an evaluation: numbers and tables, no words."""
