"""The balanced strategy search: PlanningProblem -> Solution."""
