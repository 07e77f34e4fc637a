"""A model on the tasks of lm-eval: its class there, scoring that shares what requests have in common, the tables."""
