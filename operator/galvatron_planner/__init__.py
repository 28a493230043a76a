"""The pure part of Galvatron: models, profiles, costs, search, plans.

It decides *what* to run and knows neither torch nor Kubernetes, neither files nor clocks: every function takes values
and returns values. The operator and the runtime meet only in the four documents defined here
(:class:`~galvatron_planner.profiles.ProfileRequest`, :class:`~galvatron_planner.profiles.Profile`,
:class:`~galvatron_planner.plan.Plan`, :class:`~galvatron_planner.training.TrainingSpec`).
"""
