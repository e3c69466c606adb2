"""What a plan asks of this machine itself: ``cpu`` says how long a training takes without a GPU."""
