"""The stages of the workflow as plain functions: tables in, tables out.

enumerate -> estimate -> pareto; `generate` and `compare` write the run's files. The rules call them
through scripts/*.py, the command line through `inprocess`.
"""
