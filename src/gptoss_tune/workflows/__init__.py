"""Several rooms in one job: a first recipe, demo, calibration, reproduction, sweeps, clusters."""
