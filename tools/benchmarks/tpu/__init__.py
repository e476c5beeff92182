"""What the TPU compiler says: kernels, choices of the planner, slices that hold a run."""
