"""Metrics of predictions, their intervals, comparisons of models, and corrections of calibration;
persons, not scans, are the unit of evidence."""
