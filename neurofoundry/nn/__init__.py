"""Networks, and volumes as networks read them."""
