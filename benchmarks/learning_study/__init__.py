"""What `learning.py` is made of: its cohort, and what it claims."""
