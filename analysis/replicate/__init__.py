"""Published numbers recomputed from public tables, one module a study.

A package where the design has one module: nine studies do not fit 300 lines.
"""
