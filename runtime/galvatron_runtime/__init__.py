"""The part of Galvatron that runs on devices: measures a profile, applies a plan, trains, reports.

It knows torch and the four documents of :mod:`galvatron_planner`, and nothing of Kubernetes.
"""
