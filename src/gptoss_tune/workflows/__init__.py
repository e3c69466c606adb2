"""Several rooms in one job: the demo, a calibrated merge, a run once more, cluster jobs."""
