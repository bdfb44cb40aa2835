"""Graders by rule, and readers of judges' replies: pure functions on text, a protocol each.

A grader returns None where an answer or a reply does not say what it is asked for. None is a
missing value and never a score: the caller counts it.
"""
