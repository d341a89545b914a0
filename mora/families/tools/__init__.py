"""What several kinds of adapters need when one is made. Imports torch."""
