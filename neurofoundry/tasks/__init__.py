"""What can be predicted from a scan: one class a kind of task."""
