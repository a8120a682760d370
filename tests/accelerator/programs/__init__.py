"""Programs that run in a process whose Paddle has the test device. Each prints one line of JSON."""
