"""The cost of runs before they are started: parameters, FLOPs, memory, time. Counted from configurations, without torch."""
