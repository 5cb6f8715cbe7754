"""From heads in their scanners' space to brains on one standard grid."""
