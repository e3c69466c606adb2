"""Several rooms in one job: a first recipe, demo, calibration, a run once more, cluster jobs."""
