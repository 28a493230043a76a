"""A user's pod template over ours: it adds, and replaces nothing (``api/overlay.py`` says what it may hold)."""

from galvatron_operator.api.overlay import PodOverlay
from galvatron_operator.manifests.metadata import Manifest


def overlaid(template: Manifest, overlay: PodOverlay | None) -> Manifest:
    """Lay an overlay over the template of a pod with one container."""
    if overlay is None:
        return template
    added = overlay.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    metadata, spec = template["metadata"], template["spec"]
    theirs = added.get("spec", {})
    (container,) = spec["containers"]
    (extra,) = theirs.pop("containers", None) or ({},)
    volumes = [*spec["volumes"], *theirs.pop("volumes", ())]
    if "affinity" in theirs:
        # Only kinds that are not ours are left in it: checks.py has refused the others.
        spec = {**spec, "affinity": {**theirs.pop("affinity"), **spec.get("affinity", {})}}
    return {
        "metadata": metadata
        | {kind: {**added.get("metadata", {}).get(kind, {}), **metadata[kind]} for kind in ("labels", "annotations")},
        "spec": {**theirs, **spec, "volumes": volumes, "containers": [_with(container, extra)]},
    }


def _with(container: Manifest, extra: Manifest) -> Manifest:
    # Both name their variables once; theirs may replace a setting of ours, such as OMP_NUM_THREADS.
    env = {variable["name"]: variable for variable in (*container["env"], *extra.get("env", ()))}
    mounts = [*container["volumeMounts"], *extra.get("volumeMounts", ())]
    resources = container["resources"]
    more = extra.get("resources", {})
    amounts = {kind: {**more.get(kind, {}), **resources.get(kind, {})} for kind in ("requests", "limits")}
    return container | {
        "env": list(env.values()),
        "volumeMounts": mounts,
        "resources": {kind: amount for kind, amount in amounts.items() if amount},
    }
