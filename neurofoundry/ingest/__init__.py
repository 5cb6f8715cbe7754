"""From folders of raw MRI to one table: which scans can be used, whose they are, in which split."""
