"""What runs cost before they are started: parameters, FLOPs, memory, time. Counted from configurations; imports no torch."""
