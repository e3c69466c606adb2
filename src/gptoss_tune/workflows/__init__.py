"""Several rooms in one job: a first recipe, the demo, calibration, a run once more, cluster jobs."""
