"""What /metrics says."""

import httpx
from prometheus_client.parser import text_string_to_metric_families


def samples(answer: httpx.Response) -> dict[str, float]:
    """Every sample without labels, by name."""
    assert answer.status_code == 200
    families = text_string_to_metric_families(answer.text)
    return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


def adds_up(said: dict[str, float]) -> bool:
    """Whether every reading that was accepted is accounted for."""
    ends = sum(said[f"sensorflow_readings_{end}_total"] for end in ("committed", "rejected", "given_back"))
    return said["sensorflow_readings_accepted_total"] == ends + said["sensorflow_buffer_rows"]
