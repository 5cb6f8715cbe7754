"""A foundation model of 3D brain MRI, from raw scans to an honest evaluation."""

__version__ = "0.1.0"
