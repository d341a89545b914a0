"""What the check scripts share: runs that a machine is tried with, and what came of them."""
