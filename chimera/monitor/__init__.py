"""Mission Control: what people see of a run."""
