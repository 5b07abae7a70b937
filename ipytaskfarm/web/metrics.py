"""A farm's numbers in the text format of Prometheus.  Labels are bounded: states and nodes, never tasks or names."""

from __future__ import annotations

from ipytaskfarm.view.picture import PictureData

NODES_MAX = 200


def metrics_text(farm: str, picture: PictureData) -> bytes:
    """Return the text for Prometheus.

    Args:
        farm: the farm's name.
        picture: see `view.picture`.
    """
    # 0.1 s, which only a server that is asked for metrics should take.
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"taskfarm_{name}", text, ["farm", *labels], registry=registry)

    is_up = picture.get("status", {}).get("state") == "up"
    gauge("up", "Whether the controller answers").labels(farm).set(is_up)
    if not is_up:  # what was known before would be taken for the present
        return bytes(generate_latest(registry))
    tasks = gauge("tasks", "Tasks that were not cleared, by state", "state")
    for state, count in picture.get("counts", {}).items():
        tasks.labels(farm, state).set(count)
    engines = gauge("engines", "Engines, by what they do", "state")
    for state, count in picture.get("engine_states", {}).items():
        engines.labels(farm, state).set(count)
    gauge("engines_wanted", "Engines that the farm should have").labels(farm).set(picture.get("wanted", 0))
    waiting = gauge("waiting_tasks", "Tasks that wait, by reason", "reason")
    for reason, count, *_ in picture.get("waiting", []):
        waiting.labels(farm, reason).set(count)
    gauge("clients", "Connected clients").labels(farm).set(picture.get("clients", 0))
    gauge("nodes", "Agents").labels(farm).set(picture.get("nodes_total", 0))
    store = gauge("store_bytes", "Bytes of the store when the view connected")
    store.labels(farm).set(picture.get("farm", {}).get("store_bytes", 0))
    load = gauge("node_load", "Share of the node's cores that is busy", "node")
    memory = gauge("node_free_memory_bytes", "Free memory of the node", "node")
    for node, row in list(picture.get("nodes", {}).items())[:NODES_MAX]:
        if row.get("load") is not None:
            load.labels(farm, node).set(row["load"])
        if row.get("free_memory") is not None:
            memory.labels(farm, node).set(row["free_memory"])
    return bytes(generate_latest(registry))
