"""LeRobot data sets, version 3.0, to and from ours, with pyarrow and PyAV alone."""
