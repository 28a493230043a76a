"""Pure builders of Kubernetes objects, as dicts."""
