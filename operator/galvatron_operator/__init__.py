"""Turns a GalvatronJob into objects of a cluster, or into local processes (``galvatron run``).

It knows Kubernetes (through kopf and one client module) and the documents of :mod:`galvatron_planner`, never torch.
"""
