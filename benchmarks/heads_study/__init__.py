"""What benchmarks/real_heads.py changes in a head."""
